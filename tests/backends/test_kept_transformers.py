"""A model of transformers whose program is kept, and changes within an installed package that must make it a miss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shaped import ScalarTrainer, StateError
from shaped.backends import program

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")

SCALE = {"loss": 1.0}


def model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 65, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False)
    return GPT2LMHeadModel(config).eval()


def loss(net: nn.Module, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    logits = net(input_ids=ids).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) * SCALE["loss"]


IDS = torch.arange(32).reshape(2, 16)
OPTIONS: dict[str, Any] = {"backend": "compiled", "assume": ["seq <= 32"]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    file, net = tmp_path_factory.mktemp("kept") / "gpt2.program", model()
    trainer = ScalarTrainer(loss, net, **OPTIONS)
    trainer.adamw_step(IDS, lr=0.1)

    assert trainer.save_program(file) == []

    return file, net.transformer.wte.weight.detach().clone()


def test_a_model_of_transformers_starts_without_a_proof(
    kept: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model()
    monkeypatch.setattr(program, "prove_setting", None)
    trainer = ScalarTrainer.load_program(kept[0], loss, net, **OPTIONS)
    trainer.adamw_step(IDS, lr=0.1)

    assert [(e.how, e.held) for e in trainer.executors] == [("kept", True)]
    assert torch.equal(net.transformer.wte.weight, kept[1])


def gpt2() -> Any:
    from transformers.models.gpt2 import modeling_gpt2

    return modeling_gpt2


def another(*args: Any, **named: Any) -> Any:
    raise AssertionError("never run")


def attention(net: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(gpt2().ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", another)


CHANGES: dict[str, Callable[[Any, pytest.MonkeyPatch], None]] = {
    "the config": lambda net, patch: setattr(net.config, "layer_norm_epsilon", 1e-3),
    "the attention of the config": lambda net, patch: net.set_attn_implementation("eager"),
    "a number of a layer": lambda net, patch: setattr(net.transformer.h[0].ln_1, "eps", 1e-3),
    "a flag of a layer": lambda net, patch: setattr(net.transformer.h[0].attn, "scale_attn_weights", False),
    "a layer": lambda net, patch: setattr(net.transformer.h[0].mlp, "act", nn.ReLU()),
    "a method": lambda net, patch: patch.setattr(gpt2().GPT2Block, "forward", another),
    "a wrapped method": lambda net, patch: patch.setattr(gpt2().GPT2Model, "forward", another),
    "a global function": lambda net, patch: patch.setattr(gpt2(), "create_causal_mask", another),
    "a function in a table": attention,
    "a global of the loss": lambda net, patch: patch.setitem(SCALE, "loss", 2.0),
    "a hook": lambda net, patch: net.transformer.register_forward_hook(another) and None,
    "a method of one module": lambda net, patch: patch.setattr(net.transformer, "forward", another),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_within_a_model_of_transformers_is_a_miss(
    kept: tuple[Path, Tensor], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model()
    CHANGES[what](net, monkeypatch)

    with pytest.raises(StateError, match="is not used"):
        ScalarTrainer.load_program(kept[0], loss, net, **OPTIONS)
