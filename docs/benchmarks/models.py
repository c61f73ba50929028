"""Models of public libraries, tiny and drawn at random: three AdamW steps compiled, eager and in plain torch.

    pip install transformers timm diffusers        # what is missing is left out
    PYTHONPATH=.:kernels python docs/benchmarks/models.py [--only clip t5] [--interpreted]

A figure is the largest difference of any parameter after three steps, in parts of that parameter's own change (of a
thousandth of the largest change of all, where that is more: a gradient that is zero up to rounding moves by rounding
alone). Plain torch in float64 is the truth, where its kernels take float64; batches are of two sizes. `--interpreted`
runs the compiled graph operation by operation, without a C++ compiler: seconds for minutes.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ScalarTrainer
from shaped.backends import inductor

Scalar = Float[Tensor, ""]
STEP: dict[str, Any] = {"lr": 1e-2, "eps": 1e-2, "weight_decay": 0.01}
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
EXPERTS: dict[str, Any] = {**SMALL, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
T5: dict[str, Any] = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4}
SEEN: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}


def of_tokens(net: nn.Module, ids: Int[Tensor, "batch 8"]) -> Scalar:
    return net(input_ids=ids, labels=ids, use_cache=False).loss


def of_both(net: nn.Module, ids: Int[Tensor, "batch 8"], pixels: Float[Tensor, "batch 3 16 16"]) -> Scalar:
    return net(input_ids=ids, pixel_values=pixels, return_loss=True).loss


def of_pixels(net: nn.Module, pixels: Float[Tensor, "batch 3 32 32"], y: Int[Tensor, " batch"]) -> Scalar:
    return F.cross_entropy(net(pixels), y)


def denoised(net: nn.Module, x: Float[Tensor, "batch 4 8 8"], t: Int[Tensor, " batch"], c: Float[Tensor, "batch 5 8"],
             y: Float[Tensor, "batch 4 8 8"]) -> Scalar:  # fmt: skip
    return F.mse_loss(net(x, t, c).sample, y)


def of_transformers(name: str, config: str, **given: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = import_module("transformers")
        model: nn.Module = getattr(library, name)(getattr(library, config)(**given))
        return model

    return make


def resnet() -> nn.Module:
    module = import_module("timm.models.resnet")
    blocks, channels = [1, 1, 1, 1], [4, 8, 8, 8]
    model: nn.Module = module.ResNet(module.BasicBlock, blocks, num_classes=5, channels=channels, stem_width=4)
    return model


def unet() -> nn.Module:
    model: nn.Module = import_module("diffusers").UNet2DConditionModel(
        block_out_channels=(4, 8), norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8, attention_head_dim=2,
        layers_per_block=1, sample_size=8,
    )  # fmt: skip
    return model


def tokens(batch: int) -> list[Tensor]:
    return [torch.randint(1, 32, (batch, 8))]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Callable[[int], list[Tensor]]]] = {
    "t5": (of_transformers("T5ForConditionalGeneration", "T5Config", **T5, dropout_rate=0.0, decoder_start_token_id=0),
           of_tokens, tokens),
    "bloom": (of_transformers("BloomForCausalLM", "BloomConfig", vocab_size=32, hidden_size=16, n_layer=1, n_head=4,
                              hidden_dropout=0.0, attention_dropout=0.0), of_tokens, tokens),
    "mixtral": (of_transformers("MixtralForCausalLM", "MixtralConfig", **SMALL, num_key_value_heads=2,
                                num_local_experts=4), of_tokens, tokens),
    "qwen3-moe": (of_transformers("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **EXPERTS, num_key_value_heads=2, head_dim=4,
                                  num_experts=4), of_tokens, tokens),
    "deepseek-v3": (of_transformers("DeepseekV3ForCausalLM", "DeepseekV3Config", **EXPERTS, num_key_value_heads=4,
                                    n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=0, q_lora_rank=8,
                                    kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4),
                    of_tokens, tokens),
    "gpt-oss": (of_transformers("GptOssForCausalLM", "GptOssConfig", **SMALL, num_key_value_heads=2, head_dim=4,
                                num_local_experts=4, num_experts_per_tok=2), of_tokens, tokens),
    "clip": (of_transformers("CLIPModel", "CLIPConfig", projection_dim=8,
                             text_config={**SEEN, "vocab_size": 32, "max_position_embeddings": 16, "eos_token_id": 31,
                                          "bos_token_id": 0},
                             vision_config={**SEEN, "image_size": 16, "patch_size": 8}),
             of_both, lambda n: [*tokens(n), torch.randn(n, 3, 16, 16)]),
    "resnet": (resnet, of_pixels, lambda n: [torch.randn(n, 3, 32, 32), torch.randint(0, 5, (n,))]),
    "unet": (unet, denoised, lambda n: [torch.randn(n, 4, 8, 8), torch.randint(0, 1000, (n,)), torch.randn(n, 5, 8),
                                        torch.randn(n, 4, 8, 8)]),
}  # fmt: skip


def measured(name: str) -> list[str]:
    make, loss, batch = MODELS[name]
    torch.manual_seed(5)
    batches = [batch(3), batch(3), batch(4)]

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make().train()

    def plain(dtype: torch.dtype) -> list[Tensor]:
        net = fresh().to(dtype)
        optimizer = torch.optim.AdamW(net.parameters(), foreach=False, **STEP)
        for given in batches:
            optimizer.zero_grad()
            loss(net, *[x.to(dtype) if x.is_floating_point() else x for x in given]).backward()
            optimizer.step()
        return [p.detach().double() for p in net.parameters()]

    def trained(backend: Any) -> list[Tensor]:
        net = fresh()
        trainer = ScalarTrainer(loss, net, backend=backend, allow_unused=True)
        for given in batches:
            trainer.adamw_step(*given, **STEP)
        return [p.detach().double() for p in net.parameters()]

    start = [p.detach().double() for p in fresh().parameters()]

    def apart(found: Sequence[Tensor], truth: Sequence[Tensor]) -> str:
        moves = [float((t - s).abs().max()) for t, s in zip(truth, start, strict=True)]
        pairs = zip(found, truth, moves, strict=True)
        return f"{max(float((a - b).abs().max()) / max(move, 1e-3 * max(moves)) for a, b, move in pairs):.1e}"

    eager, compiled, single = trained("eager"), trained("compiled"), plain(torch.float32)
    try:
        exact = plain(torch.float64)
    except RuntimeError:  # grouped products take no float64
        return [name, apart(eager, single), apart(compiled, eager), "", ""]
    return [name, apart(eager, single), apart(compiled, eager), apart(eager, exact), apart(compiled, exact)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--interpreted", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread{', graphs interpreted' if options.interpreted else ''}\n")
    print("| model | eager, plain | compiled, eager | eager, float64 | compiled, float64 |\n|---|---|---|---|---|")
    compiler = (lambda: False) if options.interpreted else inductor.has_cpp_compiler
    with patch.object(inductor, "has_cpp_compiler", compiler):
        for name in options.only:
            try:
                print(f"| {' | '.join(measured(name))} |", flush=True)
            except ModuleNotFoundError as error:
                print(f"| {name} | {error} | | | |", flush=True)


if __name__ == "__main__":
    main()
