"""Models written with einops, as many repositories are."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList


class Attention(ParamList):
    qkv: Float[Tensor, "dim 3*dim"]
    out: Float[Tensor, "dim dim"]


def einops_attention(p: Attention, x: Float[Tensor, "batch seq dim"], heads: int = 4) -> Float[Tensor, "batch seq dim"]:
    q, k, v = rearrange(x @ p.qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
    weights = einsum(q, k, "b h i d, b h j d -> b h i j").softmax(dim=-1)
    return rearrange(weights @ v, "b h n d -> b n (h d)") @ p.out


class Mixer(ParamList):
    embed: Float[Tensor, "c*64 dim"]
    tokens: Float[Tensor, "16 16"]
    channels: Float[Tensor, "dim dim"]
    head: Float[Tensor, "dim classes"]


def mixer_loss(p: Mixer, image: Float[Tensor, "batch c 32 32"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    x = rearrange(image, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=8, p2=8) @ p.embed
    x = x + rearrange(F.gelu(rearrange(x, "b n d -> b d n") @ p.tokens), "b d n -> b n d")
    x = x + F.gelu(x @ p.channels)
    return F.cross_entropy(reduce(x, "b n d -> b d", "mean") @ p.head, y)


def einops_pooling(x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height//2 width//2"]:
    return reduce(x, "b c (h 2) (w 2) -> b c h w", "max")


class Latents(ParamList):
    latents: Float[Tensor, "n dim"]
    w: Float[Tensor, "2*dim dim"]


def einops_fusion(p: Latents, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch n dim"]:
    latents = repeat(p.latents, "n d -> b n d", b=x.shape[0])
    return torch.cat([latents, repeat(x, "b d -> b n d", n=p.latents.shape[0])], dim=-1) @ p.w
