"""Transformers: attention in its variants, positions, experts, adapters, and losses over tokens."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ParamList, init


class Block(ParamList):
    norm1: Float[Tensor, " dim"] = init.ones()
    qkv: Float[Tensor, "dim 3*dim"]
    out: Float[Tensor, "dim dim"]
    norm2: Float[Tensor, " dim"] = init.ones()
    up: Float[Tensor, "dim 4*dim"]
    down: Float[Tensor, "4*dim dim"]


class GPT(ParamList):
    wte: Float[Tensor, "vocab dim"] = init.normal()
    wpe: Float[Tensor, "context dim"] = init.normal()
    blocks: list[Block]
    norm: Float[Tensor, " dim"] = init.ones()


HEADS = 4


def gpt_loss(p: GPT, idx: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    b, t = idx.size()
    if t > p.wpe.size(0):
        raise ValueError("the sequence is longer than the context")
    pos = torch.arange(0, t, dtype=torch.long)
    x = F.embedding(idx, p.wte) + F.embedding(pos, p.wpe)
    for block in p.blocks:
        c = x.size(-1)
        q, k, v = (F.layer_norm(x, (c,), block.norm1) @ block.qkv).split(c, dim=2)
        k = k.view(b, t, HEADS, c // HEADS).transpose(1, 2)
        q = q.view(b, t, HEADS, c // HEADS).transpose(1, 2)
        v = v.view(b, t, HEADS, c // HEADS).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(torch.tril(torch.ones(t, t)) == 0, float("-inf"))
        y = F.dropout(att.softmax(dim=-1), 0.1) @ v
        x = x + y.transpose(1, 2).contiguous().view(b, t, c) @ block.out
        x = x + F.gelu(F.layer_norm(x, (c,), block.norm2) @ block.up) @ block.down
    logits = F.layer_norm(x, (x.size(-1),), p.norm) @ p.wte.T
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


class Attention(ParamList):
    q: Float[Tensor, "dim dim"]
    k: Float[Tensor, "dim dim"]
    v: Float[Tensor, "dim dim"]
    out: Float[Tensor, "dim dim"]


def attention_block(
    p: Attention, x: Float[Tensor, "batch seq dim"], heads: int = 8, causal: bool = True
) -> Float[Tensor, "batch seq dim"]:
    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    h = F.layer_norm(x, x.shape[-1:])
    y = F.scaled_dot_product_attention(split(h @ p.q), split(h @ p.k), split(h @ p.v), is_causal=causal)
    return x + y.transpose(1, 2).flatten(2) @ p.out


class CrossAttention(ParamList):
    q: Float[Tensor, "dim heads*depth"]
    k: Float[Tensor, "width heads*depth"]
    v: Float[Tensor, "width heads*depth"]
    out: Float[Tensor, "heads depth dim"]


def cross_attention(
    p: CrossAttention,
    x: Float[Tensor, "batch queries dim"],
    memory: Float[Tensor, "batch keys width"],
    keep: Bool[Tensor, "batch keys"],
) -> Float[Tensor, "batch queries dim"]:
    heads, depth, _ = p.out.shape
    q = (x @ p.q).view(x.shape[0], -1, heads, depth)
    k, v = ((memory @ w).view(memory.shape[0], -1, heads, depth) for w in (p.k, p.v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / depth**0.5
    scores = scores.masked_fill(~keep[:, None, None, :], torch.finfo(scores.dtype).min)
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    return torch.einsum("bqhd,hdm->bqm", mixed, p.out)


def rotary_scores(
    q: Float[Tensor, "batch heads seq depth"], k: Float[Tensor, "batch heads seq depth"], base: float = 10000.0
) -> Float[Tensor, "batch heads seq seq"]:
    seq, depth = q.shape[-2:]
    frequency = base ** (-torch.arange(0, depth, 2) / depth)
    angle = torch.outer(torch.arange(seq), frequency)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def rotate(x: Tensor) -> Tensor:
        left, right = x[..., : depth // 2], x[..., depth // 2 :]
        return x * cos + torch.cat((-right, left), dim=-1) * sin

    return rotate(q) @ rotate(k).transpose(-2, -1)


def rotary_interleaved(x: Float[Tensor, "batch seq heads depth"]) -> Float[Tensor, "batch seq heads depth"]:
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    angle = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(pairs.shape[-2]) / pairs.shape[-2])
    cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def alibi_attention(
    q: Float[Tensor, "batch heads seq depth"],
    k: Float[Tensor, "batch heads seq depth"],
    v: Float[Tensor, "batch heads seq depth"],
) -> Float[Tensor, "batch heads seq depth"]:
    heads, seq = q.shape[1], q.shape[2]
    slopes = 2 ** (-8 * torch.arange(1, heads + 1) / heads)
    position = torch.arange(seq)
    bias = slopes[:, None, None] * (position[None, :] - position[:, None])
    causal = position[:, None] >= position[None, :]
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v


def grouped_query_attention(
    q: Float[Tensor, "batch seq heads depth"],
    k: Float[Tensor, "batch seq groups depth"],
    v: Float[Tensor, "batch seq groups depth"],
) -> Float[Tensor, "batch seq heads*depth"]:
    repeats = q.shape[2] // k.shape[2]
    k, v = (y.repeat_interleave(repeats, dim=2).transpose(1, 2) for y in (k, v))
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
    return mixed.transpose(1, 2).flatten(2)


def sliding_window_attention(
    q: Float[Tensor, "batch seq dim"],
    k: Float[Tensor, "batch seq dim"],
    v: Float[Tensor, "batch seq dim"],
    window: int = 4,
) -> Float[Tensor, "batch seq dim"]:
    i = torch.arange(q.shape[1])
    near = (i[:, None] >= i) & (i[:, None] - i < window)
    scores = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.where(near, scores, float("-inf")).softmax(-1) @ v


class RelativeBias(ParamList):
    table: Float[Tensor, "32 heads"]


def relative_position_bias(
    p: RelativeBias, scores: Float[Tensor, "batch heads queries keys"]
) -> Float[Tensor, "batch heads queries keys"]:
    q, k = scores.shape[-2:]
    distance = torch.arange(k)[None] - torch.arange(q)[:, None]
    bucket = distance.clamp(-16, 15) + 16
    return scores + p.table[bucket].permute(2, 0, 1).unsqueeze(0)


def linear_attention(
    q: Float[Tensor, "batch heads seq depth"],
    k: Float[Tensor, "batch heads seq depth"],
    v: Float[Tensor, "batch heads seq value"],
) -> Float[Tensor, "batch heads seq value"]:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    state = torch.einsum("bhsd,bhsv->bhsdv", k, v).cumsum(dim=2)
    norm = torch.einsum("bhsd,bhsd->bhs", q, k.cumsum(dim=2))
    return torch.einsum("bhsd,bhsdv->bhsv", q, state) / norm[..., None]


class Experts(ParamList):
    router: Float[Tensor, "dim experts"]
    up: Float[Tensor, "experts dim hidden"]
    down: Float[Tensor, "experts hidden dim"]


def mixture_of_experts_loss(
    p: Experts, x: Float[Tensor, "tokens dim"], y: Float[Tensor, "tokens dim"], k: int = 2
) -> Float[Tensor, ""]:
    probability = (x @ p.router).softmax(dim=-1)
    weight, chosen = probability.topk(k, dim=-1)
    gate = torch.zeros_like(probability).scatter(1, chosen, weight / weight.sum(-1, keepdim=True))
    h = F.silu(torch.einsum("td,edh->teh", x, p.up))
    out = torch.einsum("teh,ehd,te->td", h, p.down, gate)
    balance = (probability.mean(0) * (gate > 0).float().mean(0)).sum() * p.router.shape[1]
    return F.mse_loss(out, y) + 0.01 * balance


def routed_experts(p: Experts, x: Float[Tensor, "tokens dim"], k: int = 2) -> Float[Tensor, "tokens dim"]:
    weight, chosen = (x @ p.router).topk(k, dim=-1)
    h = F.gelu(torch.einsum("td,tkdh->tkh", x, p.up[chosen]))
    out = torch.einsum("tkh,tkhd->tkd", h, p.down[chosen])
    return (weight.softmax(-1).unsqueeze(-1) * out).sum(1)


class LoRA(ParamList):
    w: Float[Tensor, "outputs inputs"]
    a: Float[Tensor, "rank inputs"]
    b: Float[Tensor, "outputs rank"] = init.zeros()


def lora_loss(
    p: LoRA, x: Float[Tensor, "batch seq inputs"], y: Float[Tensor, "batch seq outputs"], alpha: float = 16.0
) -> Float[Tensor, ""]:
    scale = alpha / p.a.shape[0]
    h = F.linear(x, p.w.detach()) + F.linear(F.linear(F.dropout(x, 0.05), p.a), p.b) * scale
    return (h - y).pow(2).mean()


class Perceiver(ParamList):
    latents: Float[Tensor, "latents dim"]
    q: Float[Tensor, "dim dim"]
    kv: Float[Tensor, "width 2*dim"]


def perceiver_read(p: Perceiver, x: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch latents dim"]:
    latents = p.latents.expand(x.shape[0], -1, -1)
    k, v = (x @ p.kv).chunk(2, dim=-1)
    return latents + F.scaled_dot_product_attention(latents @ p.q, k, v)


def packed_attention(
    q: Float[Tensor, "batch heads seq depth"],
    k: Float[Tensor, "batch heads seq depth"],
    v: Float[Tensor, "batch heads seq depth"],
    document: Int[Tensor, "batch seq"],
) -> Float[Tensor, "batch heads seq depth"]:
    same = document[:, :, None] == document[:, None, :]
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(same & causal)[:, None])


def cached_attention(
    q: Float[Tensor, "batch heads 1 depth"],
    k: Float[Tensor, "batch heads 1 depth"],
    v: Float[Tensor, "batch heads 1 depth"],
    keys: Float[Tensor, "batch heads past depth"],
    values: Float[Tensor, "batch heads past depth"],
) -> tuple[
    Float[Tensor, "batch heads 1 depth"],
    Float[Tensor, "batch heads past+1 depth"],
    Float[Tensor, "batch heads past+1 depth"],
]:
    keys = torch.cat([keys, k], dim=-2)
    values = torch.cat([values, v], dim=-2)
    weights = torch.softmax(q @ keys.mT / math.sqrt(q.size(-1)), dim=-1)
    return weights @ values, keys, values


def masked_mean_pooling(
    hidden: Float[Tensor, "batch seq dim"], mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch dim"]:
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    return F.normalize(pooled, p=2, dim=1)


class Prompted(ParamList):
    prompt: Float[Tensor, "prompts dim"]
    head: Float[Tensor, "dim vocab"]


def prompt_tuning_loss(
    p: Prompted, x: Float[Tensor, "batch seq dim"], labels: Int[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    batch, seq, _ = x.shape
    x = torch.cat([p.prompt[None].repeat(batch, 1, 1), x], dim=1)
    x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    logits = x[:, -seq:] @ p.head
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)


class Policy(ParamList):
    table: Float[Tensor, "vocab dim"]
    head: Float[Tensor, "dim vocab"]


def preference_loss(
    policy: Policy,
    chosen: Int[Tensor, "batch seq"],
    rejected: Int[Tensor, "batch seq2"],
    reference_chosen: Float[Tensor, " batch"],
    reference_rejected: Float[Tensor, " batch"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    def log_probability(ids: Tensor) -> Tensor:
        logits = (policy.table[ids[:, :-1]] @ policy.head).log_softmax(-1)
        return logits.gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2).sum(-1)

    margin = log_probability(chosen) - log_probability(rejected)
    return -F.logsigmoid(beta * (margin - (reference_chosen - reference_rejected))).mean()
