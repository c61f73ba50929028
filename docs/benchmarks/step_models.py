"""The losses that `steps.py` trains, with their sizes and one batch each, in torch. `step_jax.py` has them in JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, init
from shaped.data import digits

LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 1e-2  # AdamW's, in every contender


class Line(ParamList):
    w: Float[Tensor, " features"] = init.normal(0.1)
    b: Float[Tensor, ""] = init.zeros()


def line_loss(p: Line, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w + p.b - y).square().mean()


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


def mlp_loss(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)


class CNN(ParamList):
    k1: Float[Tensor, "c1 1 3 3"]
    b1: Float[Tensor, " c1"] = init.zeros()
    k2: Float[Tensor, "c2 c1 3 3"]
    b2: Float[Tensor, " c2"] = init.zeros()
    head: Float[Tensor, "4*c2 classes"]
    b3: Float[Tensor, " classes"] = init.zeros()


def cnn_loss(p: CNN, x: Float[Tensor, "batch 1 8 8"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.max_pool2d(F.relu(F.conv2d(x, p.k1, p.b1, padding=1)), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, p.k2, p.b2, padding=1)), 2)
    return F.cross_entropy(h.flatten(1) @ p.head + p.b3, y)


class Block(ParamList):
    norm1: Float[Tensor, " dim"] = init.ones()
    qkv: Float[Tensor, "dim 3*dim"] = init.normal()
    out: Float[Tensor, "dim dim"] = init.normal()
    norm2: Float[Tensor, " dim"] = init.ones()
    up: Float[Tensor, "dim 4*dim"] = init.normal()
    down: Float[Tensor, "4*dim dim"] = init.normal()


class GPT(ParamList):
    tokens: Float[Tensor, "vocab dim"] = init.normal()
    places: Float[Tensor, "context dim"] = init.normal()
    blocks: list[Block]
    norm: Float[Tensor, " dim"] = init.ones()


def gpt(p: GPT, x: Tensor, y: Tensor, heads: int) -> Tensor:
    b, t = x.shape
    h = p.tokens[x] + p.places[:t]
    d = h.shape[-1]
    for block in p.blocks:
        parts = (F.layer_norm(h, (d,), block.norm1) @ block.qkv).chunk(3, dim=-1)
        q, k, v = (part.view(b, t, heads, d // heads).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + mixed.transpose(1, 2).reshape(b, t, d) @ block.out
        h = h + F.gelu(F.layer_norm(h, (d,), block.norm2) @ block.up) @ block.down
    logits = F.layer_norm(h, (d,), p.norm) @ p.tokens.T
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


def gpt_loss(p: GPT, x: Int[Tensor, "batch seq"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return gpt(p, x, y, heads=4)


def gpt2_loss(p: GPT, x: Int[Tensor, "batch seq"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return gpt(p, x, y, heads=12)


@dataclass(frozen=True)
class Model:
    """A loss with the sizes it is timed at.

    Attributes:
        autocast: The dtype that every contender runs the loss in under torch.autocast; None for float32.
        tolerance: How far the losses of the first steps may be from those of float64, relatively.
    """

    loss: Callable[..., Tensor]
    kind: type[ParamList]
    sizes: Mapping[str, Any]
    batch: Callable[[], tuple[Tensor, ...]] = field(repr=False)
    autocast: torch.dtype | None = None
    tolerance: float = 1e-4

    def params(self) -> Any:
        return self.kind.init(**self.sizes, seed=0)


def line_batch() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=g)
    return x, x @ torch.randn(16, generator=g)


def digits_batch(square: bool = False) -> tuple[Tensor, ...]:
    x, y = next(iter(digits(batch_size=64, seed=0)))
    return (x.view(-1, 1, 8, 8) if square else x), y


def text_batch(vocab: int, batch: int, seq: int) -> tuple[Tensor, ...]:
    """Random tokens and the tokens after them."""
    text = torch.randint(0, vocab, (batch, seq + 1), generator=torch.Generator().manual_seed(0))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


_GPT2 = {"vocab": 50257, "context": 1024, "dim": 768, "blocks": 12}
_CHARS = {"vocab": 65, "context": 64, "dim": 128, "blocks": 4}
MODELS: Mapping[str, Model] = {
    "linear regression": Model(line_loss, Line, {"features": 16}, line_batch),
    "mlp": Model(mlp_loss, MLP, {"pixels": 64, "hidden": 128, "classes": 10}, digits_batch),
    "cnn": Model(cnn_loss, CNN, {"c1": 16, "c2": 32, "classes": 10}, lambda: digits_batch(square=True)),
    "char gpt": Model(gpt_loss, GPT, _CHARS, lambda: text_batch(65, 16, 64)),
}
ON_GPU: Mapping[str, Model] = {
    "gpt2 124M, 1 x 64": Model(gpt2_loss, GPT, _GPT2, lambda: text_batch(50257, 1, 64), torch.bfloat16, 2e-2),
    "gpt2 124M, 8 x 1024": Model(gpt2_loss, GPT, _GPT2, lambda: text_batch(50257, 8, 1024), torch.bfloat16, 2e-2),
}
SIZES = {
    "linear regression": "batch 64, 16 features",
    "mlp": "64-128-10, batch 64 of the digits",
    "cnn": "two 3x3 convolutions of 16 and 32 channels, batch 64 of the digits",
    "char gpt": "4 layers, dim 128, 4 heads, vocabulary 65, batch 16 x 64 tokens",
    "gpt2 124M, 1 x 64": "12 layers, dim 768, bfloat16 autocast, batch 1 x 64 tokens",
    "gpt2 124M, 8 x 1024": "12 layers, dim 768, bfloat16 autocast, batch 8 x 1024 tokens",
}
