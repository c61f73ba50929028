"""Models of public libraries, tiny and drawn at random: steps are those of plain torch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ScalarTrainer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def of_language(net: nn.Module, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return net(input_ids=ids, labels=ids).loss


def of_pixels(net: nn.Module, pixels: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, ""]:
    return net(pixel_values=pixels).logits.square().mean()


def gpt2() -> nn.Module:
    """Its output layer is its embedding."""
    config = transformers.GPT2Config(vocab_size=17, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def segformer() -> nn.Module:
    """It gathers what its stages give by hooks that its first pass makes."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    model: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    return model


@pytest.mark.parametrize(
    ("backend", "make", "loss"),
    [("eager", gpt2, of_language), ("compiled", gpt2, of_language), ("eager", segformer, of_pixels)],
)
def test_three_steps_of_a_public_model_are_those_of_plain_torch(
    backend: Any, make: Callable[[], nn.Module], loss: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    net = make()
    twin = copy.deepcopy(net)
    batch = torch.randint(0, 17, (2, 6)) if loss is of_language else torch.randn(2, 3, 32, 32)
    trainer = ScalarTrainer(loss, net, backend=backend)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        trainer.step(batch, lr=0.1)
        optimizer.zero_grad()
        loss(twin, batch).backward()
        optimizer.step()

    # Equal where the same kernels run; generated ones sum in another order, over some hundred terms of 2**-24 each.
    bound = {"eager": 0.0, "compiled": 1e-4}[backend]
    for (name, mine), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=bound, atol=bound, msg=name)
    assert trainer._program.outside.now.number == 0  # proved once, whatever it logs and collects by hooks


def of_eight(net: nn.Module, ids: Int[Tensor, "batch 8"]) -> Float[Tensor, ""]:
    return net(input_ids=ids, labels=ids, use_cache=False).loss


def bloom() -> nn.Module:
    """Its attention is biased by distance, and its heads lie as the kernels of eager leave them."""
    config = transformers.BloomConfig(vocab_size=17, hidden_size=8, n_layer=1, n_head=2)
    config.update({"hidden_dropout": 0.0, "attention_dropout": 0.0})
    model: nn.Module = transformers.BloomForCausalLM(config)
    return model


def t5() -> nn.Module:
    """Its positions are a table of relative distances, and three layers share one embedding."""
    config = transformers.T5Config(
        vocab_size=17, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0
    )
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    return model


def mixtral() -> nn.Module:
    """Its experts are one grouped product."""
    config = transformers.MixtralConfig(
        vocab_size=17, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    model: nn.Module = transformers.MixtralForCausalLM(config)
    return model


@pytest.mark.parametrize(
    ("make", "loss"), [(bloom, of_language), (t5, of_eight), (mixtral, of_eight), (segformer, of_pixels)]
)
def test_the_compiled_graph_of_a_public_model_is_the_model(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module], loss: Callable[..., Tensor]
) -> None:
    """Without a C++ compiler: what the graph computes, operation by operation."""
    monkeypatch.setattr("shaped.backends.inductor.has_cpp_compiler", lambda: False)
    monkeypatch.setattr("shaped.backends.inductor._warned", True)
    torch.manual_seed(0)
    net = make()
    twin, start = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    trainer = ScalarTrainer(loss, net, backend="compiled", allow_unused=True)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, eps=1e-2)
    for _ in range(3):
        batch = torch.randn(2, 3, 32, 32) if loss is of_pixels else torch.randint(1, 17, (3, 8))
        trainer.adamw_step(batch, lr=1e-2, eps=1e-2)
        optimizer.zero_grad()
        loss(twin, batch).backward()
        optimizer.step()

    # A gradient that is zero up to rounding moves a parameter by rounding alone: the largest move of all is the scale.
    moves = {name: (theirs - start[name]).abs().max() for name, theirs in twin.state_dict().items()}
    for (name, mine), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-4 * float(max(moves.values())), msg=name)
