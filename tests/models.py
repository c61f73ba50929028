"""Models that many tests share: small, so that a compile takes seconds."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, init


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


def mlp_loss(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(x @ p.w1 + p.b1)
    return F.cross_entropy(h @ p.w2 + p.b2, y)


def mlp(seed: int = 0, dtype: torch.dtype | None = None, **options: object) -> MLP:
    return MLP.init(pixels=6, hidden=8, classes=3, seed=seed, dtype=dtype, **options)  # type: ignore[arg-type]


def batch(size: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (size,), generator=generator)


class Block(ParamList):
    wq: Float[Tensor, "dim dim"]
    wk: Float[Tensor, "dim dim"]
    wv: Float[Tensor, "dim dim"]
    wo: Float[Tensor, "dim dim"]
    up: Float[Tensor, "dim 4*dim"]
    down: Float[Tensor, "4*dim dim"]


class GPT(ParamList):
    wte: Float[Tensor, "vocab dim"] = init.normal()
    wpe: Float[Tensor, "context dim"] = init.normal()
    blocks: list[Block]


def attention(x: Tensor, block: Block, mask: Tensor, heads: int) -> Tensor:
    b, t, d = x.shape
    q, k, v = ((x @ w).view(b, t, heads, d // heads).transpose(1, 2) for w in (block.wq, block.wk, block.wv))
    weights = (q @ k.transpose(-1, -2)) / math.sqrt(d // heads)
    mixed = weights.masked_fill(~mask, float("-inf")).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(b, t, d) @ block.wo


def gpt_loss(
    p: GPT, tokens: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"], heads: int = 4
) -> Float[Tensor, ""]:
    t = tokens.shape[1]
    x = p.wte[tokens] + p.wpe[:t]
    mask = torch.tril(torch.ones(t, t, dtype=torch.bool))
    for block in p.blocks:
        x = x + attention(F.layer_norm(x, (x.shape[-1],)), block, mask, heads)
        x = x + F.gelu(F.layer_norm(x, (x.shape[-1],)) @ block.up) @ block.down
    logits = x @ p.wte.T
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
