"""Models of transformers, tiny and drawn at random: which `ScalarTrainer(loss, model)` proves with all sizes free.

    pip install transformers
    PYTHONPATH=.:kernels python docs/benchmarks/architectures.py [--only gpt2 xglm] [--seconds 60] [--json ROWS]

Each architecture of a list is made of its configuration with what has a size set small, so that a proof is the same
and a run is quick. The loss is the model's own, of token numbers `[batch, seq]` that are its labels too. A model counts
as proved if the statement has neither batch nor seq fixed; conditions (`seq <= 16`) are part of it. Each has a process
of its own and a limit of processor time.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ScalarTrainer
from shaped.errors import ShapedError

_NAMES = """apertus arcee bart bert bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot blenderbot-small
bloom camembert codegen cohere cohere2 ctrl data2vec-text deepseek_v2 deepseek_v3 diffllama electra ernie ernie4_5
exaone4 falcon falcon_mamba gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
gpt_oss gptj granite granitemoe helium jamba jetmoe lfm2 llama mamba mamba2 marian mbart megatron-bert ministral mistral
mixtral modernbert-decoder mpt mvp nemotron olmo olmo2 olmo3 olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe
plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma rembert roberta roberta-prelayernorm
roc_bert roformer rwkv smollm3 stablelm starcoder2 xglm xlm xlm-roberta xlnet xmod zamba zamba2 t5 mt5 umt5
longt5 afmoe cohere2_moe cwm doge ernie4_5_moe exaone flex_olmo fsmt gemma4_text glm4_moe granite_swa granitemoe_swa
granitemoeshared hyperclovax internlm3 jais2 led llama4_text m2m_100 minimax_m2 ministral3 nanochat nllb-moe olmo_hybrid
pegasus_x seed_oss solar_open trocr vaultgemma xlm-roberta-xl"""
NAMES = _NAMES.split()
_DOTTED = "transformers.models.auto.modeling_auto"
_SMALL = (
    (r"(.*_)?vocab_size(_.*)?|n_words|emb_dim$", 32),
    (r"hidden_size|n_embd|d_model|embedding_size|word_embed_proj_dim|embed_dim|d_embed|lru_width|state_size", 16),
    (r"(.*_)?intermediate_size|n_inner|d_ff|(.*_)?ffn_dim|dff|feed_forward_hidden_size|d_inner|ffn_hidden_size", 16),
    (r"(num|n)_(hidden_)?layers?|(encoder|decoder)_layers|num_(encoder|decoder)_layers|num_mem_blocks", 2),
    (r"n_heads?|num_heads?|((num_)?(encoder|decoder)|num)_attention_heads?", 4),
    (r"num_key_value_heads|n_head_kv|num_kv_heads", 2),
    (r"d_kv|d_head|rotary_dim|((attention|v|qk_nope|qk_rope|global)_)?head_dim", 4),
    (r"(q|kv)_lora_rank", 8),
    (r"max_position_embeddings|n_positions|n_ctx|max_sequence_length|context_length|max_seq_len|seq_length", 64),
    (r"num_(local_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok|n_group", 2),
    (r"topk_group|first_k_dense_replace|n_shared_experts", 1),
)  # fmt: skip
_TOKENS = ("pad", "bos", "eos", "decoder_start", "sep", "cls", "mask", "unk", "forced_eos", "forced_bos")


def small(config: Any) -> dict[str, Any]:
    """What a configuration is made with, to be small."""
    given: dict[str, Any] = {}
    for name, value in vars(config).items():
        if type(value) is int and (size := next((n for p, n in _SMALL if re.fullmatch(p, name)), None)) is not None:
            given[name] = size
        if re.fullmatch(r".*(drop|dropout|pdrop|layerdrop)(_.*)?", name) and isinstance(value, float):
            given[name] = 0.0
    layers = [value for name, value in given.items() if re.fullmatch(_SMALL[3][0], name)]
    known = getattr(config, "layer_types", None)
    if known and layers:
        kinds = list(dict.fromkeys(known))
        given["layer_types"] = (kinds * layers[0])[: layers[0]]
    for token in _TOKENS:
        if type(getattr(config, f"{token}_token_id", None)) is int:
            given[f"{token}_token_id"] = min(getattr(config, f"{token}_token_id"), 3)
    return given


def model_of(name: str) -> nn.Module:
    """The model of a configuration that is small."""
    auto = import_module(_DOTTED)
    tables = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    kind = next(table[name] for table in tables if name in table)
    library = import_module("transformers")
    config = library.AutoConfig.for_model(name)
    given = small(config) | EXTRA.get(name, {})
    try:
        made = library.AutoConfig.for_model(name, **given)
    except AttributeError:  # some work their layers out themselves
        made = library.AutoConfig.for_model(name, **{k: v for k, v in given.items() if k != "layer_types"})
    if hasattr(made, "is_decoder") and not made.is_encoder_decoder:
        made.is_decoder = True
    model: nn.Module = getattr(library, kind)(made)
    return model


EXTRA: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 4},
    **{
        name: {"qk_rope_head_dim": 4, "head_dim": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2}
        for name in ("deepseek_v2", "deepseek_v3")
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1},
    "zamba": {"num_hidden_layers": 6, "layer_types": ["linear_attention", "hybrid"] * 3},
    "zamba2": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "mamba_headdim": 8,
        "n_mamba_heads": 4,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "nemotron": {"num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
    **{name: {"decoder_start_token_id": 0} for name in ("t5", "mt5", "umt5", "longt5")},
}


def of_tokens(net: nn.Module, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return net(input_ids=ids, labels=ids).loss


class _Late(BaseException):
    pass


def _late(*_: Any) -> None:
    raise _Late


def _asked(name: str, seconds: int) -> dict[str, Any]:
    """What becomes of one architecture."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"name": name, "status": "made", "said": "", "seconds": 0.0}
    try:
        net = model_of(name).train()
        float(of_tokens(net, torch.randint(4, 32, (2, 8))))
        row["parameters"] = sum(p.numel() for p in net.parameters())
    except Exception as error:
        return row | {"status": "unmade", "said": f"{type(error).__name__}: {error}"[:300]}
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    start = time.process_time()
    try:
        proof = ScalarTrainer(of_tokens, net, backend="eager", allow_unused=True).proof
        free = {"batch", "seq"} <= set(proof.dims) - set(proof.static)
        row |= {"status": "proved" if free else "fixed", "said": ", ".join(proof.conditions)}
    except _Late:
        row |= {"status": "late", "said": f"more than {seconds} s"}
    except ShapedError as error:
        row |= {"status": type(error).__name__, "said": str(error)}
    except Exception as error:
        row |= {"status": "error", "said": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return row | {"seconds": round(time.process_time() - start, 1)}


def _aside(name: str, seconds: int) -> dict[str, Any]:
    """The same in a child, which has imported everything."""
    with tempfile.TemporaryFile("w+") as rows:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                rows.write(json.dumps(_asked(name, seconds)))
                rows.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        rows.seek(0)
        text = rows.read()
        return json.loads(text) if text else {"name": name, "status": "crash", "said": "", "seconds": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--seconds", type=int, default=60, help="of processor time for one proof")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for module in ("transformers", "shaped.proof.search"):
        import_module(module)
    rows = []
    print(f"torch {torch.__version__}, transformers {import_module('transformers').__version__}\n")
    print("| architecture | proved with all sizes free | seconds | conditions, or why not |\n|---|---|--:|---|")
    for name in options.only:
        row = _aside(name, options.seconds)
        rows.append(row)
        said = " ".join(row["said"].split("\n")[:2])
        print(f"| {name} | {row['status']} | {row['seconds']:.1f} | {said} |", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1))
    proved = sum(row["status"] == "proved" for row in rows)
    print(f"\n{proved} of {sum(row['status'] != 'unmade' for row in rows)} proved", file=sys.stderr)


if __name__ == "__main__":
    main()
