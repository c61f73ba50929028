"""How programs are put together: nesting, leading axes, containers, keywords, vmap, checkpoints, autocast."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shaped import ParamList, dims, init


class Linear(ParamList):
    w: Float[Tensor, "inputs outputs"]
    b: Float[Tensor, " outputs"] = init.zeros()


class Encoder(ParamList):
    first: Annotated[Linear, dims(inputs="features", outputs="hidden")]
    hidden: Annotated[list[Linear], dims(inputs="hidden", outputs="hidden")] = 3  # type: ignore[assignment]


class Autoencoder(ParamList):
    encoder: Encoder
    decoder: Annotated[Encoder, dims(features="hidden", hidden="2*hidden")]
    out: Annotated[Linear, dims(inputs="2*hidden", outputs="features")]


def nested_loss(p: Autoencoder, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    def encode(e: Encoder, h: Tensor) -> Tensor:
        h = F.elu(h @ e.first.w + e.first.b)
        for layer in e.hidden:
            h = h + F.elu(h @ layer.w + layer.b)
        return h

    decoded = encode(p.decoder, encode(p.encoder, x)) @ p.out.w + p.out.b
    return F.l1_loss(decoded, x)


def linear(p: Linear, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
    return x @ p.w + p.b


def residual_projection(
    x: Float[Tensor, "batch inner"], w: Float[Tensor, "inner outer"]
) -> Float[Tensor, "batch outer"]:  # fmt: skip
    return x + F.selu(x @ w)


def rms_norm(
    x: Float[Tensor, "*batch dim"], scale: Float[Tensor, " dim"], *, eps: float = 1e-6
) -> Float[Tensor, "*batch dim"]:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * scale


class SwiGLU(ParamList):
    gate: Float[Tensor, "hidden dim"]
    up: Float[Tensor, "hidden dim"]
    down: Float[Tensor, "dim hidden"]


def feed_forward(p: SwiGLU, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    return F.linear(F.silu(F.linear(x, p.gate)) * F.linear(x, p.up), p.down)


def pairwise_attention(
    q: Float[Tensor, "*batch queries dim"], k: Float[Tensor, "*batch keys dim"], v: Float[Tensor, "*batch keys value"]
) -> Float[Tensor, "*batch queries value"]:
    weights = torch.einsum("...qd,...kd->...qk", q, k).softmax(-1)
    return torch.einsum("...qk,...kv->...qv", weights, v)


def masked_loss(
    prediction: Float[Tensor, "*batch dim"], target: Float[Tensor, "*batch dim"], *, mask: Bool[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    error = (prediction - target).square().mean(-1)
    return torch.where(mask, error, 0.0).sum() / mask.sum()


class Tokens(TypedDict):
    ids: Int[Tensor, "batch seq"]
    segments: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]


class BERT(ParamList):
    words: Float[Tensor, "vocab dim"]
    places: Float[Tensor, "context dim"]
    segments: Float[Tensor, "2 dim"]
    qkv: Float[Tensor, "3 dim dim"]
    bias: Float[Tensor, " vocab"]


def masked_language_loss(p: BERT, batch: Tokens, labels: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    seq = batch["ids"].shape[1]
    x = p.words[batch["ids"]] + p.places[:seq] + p.segments[batch["segments"]]
    q, k, v = torch.einsum("bsd,nde->nbse", x, p.qkv)
    x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=batch["mask"][:, None, :])
    logits = F.layer_norm(x, x.shape[-1:]) @ p.words.T + p.bias
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=-100)


class State(NamedTuple):
    h: Float[Tensor, "batch hidden"]
    c: Float[Tensor, "batch hidden"]


class Cell(ParamList):
    wx: Float[Tensor, "inputs 4*hidden"]
    wh: Float[Tensor, "hidden 4*hidden"]


def lstm_cell(p: Cell, state: State, x: Float[Tensor, "batch inputs"]) -> State:
    i, f, g, o = (x @ p.wx + state.h @ p.wh).chunk(4, dim=-1)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    return State(h=o.sigmoid() * c.tanh(), c=c)


@dataclass
class Graph:
    nodes: Float[Tensor, "nodes features"]
    edges: Float[Tensor, "edges width"]
    senders: Int[Tensor, " edges"]
    receivers: Int[Tensor, " edges"]


class GraphNet(ParamList):
    edge: Float[Tensor, "width+2*features width"]
    node: Float[Tensor, "features+width features"]


def graph_network(p: GraphNet, graph: Graph) -> Graph:
    sent, received = graph.nodes[graph.senders], graph.nodes[graph.receivers]
    edges = F.relu(torch.cat([graph.edges, sent, received], dim=-1) @ p.edge)
    pooled = torch.zeros(graph.nodes.shape[0], edges.shape[1]).index_add(0, graph.receivers, edges)
    nodes = F.relu(torch.cat([graph.nodes, pooled], dim=-1) @ p.node)
    return Graph(nodes, edges, graph.senders, graph.receivers)


class Losses(TypedDict):
    total: Float[Tensor, ""]
    each: Float[Tensor, " batch"]


def losses_as_a_dictionary(
    example: tuple[Float[Tensor, "batch features"], Int[Tensor, " batch"]], w: Float[Tensor, "features classes"]
) -> Losses:
    x, y = example
    each = F.cross_entropy(x @ w, y, reduction="none")
    return {"total": each.mean(), "each": each}


def siamese_loss(
    p: Linear,
    pair: tuple[Float[Tensor, "batch inputs"], Float[Tensor, "batch inputs"]],
    *,
    same: Bool[Tensor, " batch"],
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    left, right = (torch.tanh(x @ p.w + p.b) for x in pair)
    distance = F.pairwise_distance(left, right)
    return torch.where(same, distance.square(), F.relu(margin - distance).square()).mean()


class Residual(ParamList):
    up: Float[Tensor, "dim hidden"]
    down: Float[Tensor, "hidden dim"]


class Deep(ParamList):
    blocks: list[Residual] = 3  # type: ignore[assignment]
    head: Float[Tensor, "dim classes"]


def checkpointed_loss(p: Deep, x: Float[Tensor, "batch dim"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    def run(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return x + F.dropout(F.gelu(x @ up), 0.1) @ down

    for block in p.blocks:
        x = checkpoint(run, x, block.up, block.down, use_reentrant=False)
    return F.cross_entropy(x @ p.head, y)


class Ensemble(ParamList):
    w1: Float[Tensor, "members features hidden"]
    w2: Float[Tensor, "members hidden outputs"]


def ensemble_loss(
    p: Ensemble, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch outputs"]
) -> Float[Tensor, ""]:
    def member(w1: Tensor, w2: Tensor) -> Tensor:
        return F.relu(x @ w1) @ w2

    predictions = torch.vmap(member)(p.w1, p.w2)
    return (predictions - y).square().mean()


def adapted_gradient(
    w: Float[Tensor, "features classes"],
    support: Float[Tensor, "tasks shots features"],
    labels: Int[Tensor, "tasks shots"],
    rate: float = 0.1,
) -> Float[Tensor, "tasks features classes"]:
    def inner(x: Tensor, y: Tensor) -> Tensor:
        return w - rate * torch.func.grad(lambda w: F.cross_entropy(x @ w, y))(w)

    return torch.vmap(inner)(support, labels)


def autocast_loss(p: Deep, x: Float[Tensor, "batch dim"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for block in p.blocks:
            x = x + F.gelu(x @ block.up) @ block.down
        logits = x @ p.head
    return F.cross_entropy(logits.float(), y)


def mixed_precision(
    x: Float[Tensor, "batch features"], w: Float[Tensor, "features outputs"]
) -> BFloat16[Tensor, "batch outputs"]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ w


Pair = ParamList[Float[Tensor, "features hidden"], Float[Tensor, "hidden classes"]]  # type: ignore[type-arg]


def anonymous_loss(
    p: Pair,  # type: ignore[valid-type]
    x: Float[Tensor, "batch features"],
    y: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    w1, w2 = p  # type: ignore[misc]
    h = F.dropout(F.relu(x @ w1), p=0.5, training=True)
    return F.cross_entropy(h @ w2, y)


def multitask_loss(
    p: Linear,
    x: Float[Tensor, "batch inputs"],
    targets: Float[Tensor, "batch outputs"],
    observed: Bool[Tensor, "batch outputs"],
) -> Float[Tensor, ""]:
    losses = F.binary_cross_entropy_with_logits(x @ p.w + p.b, targets, reduction="none")
    losses = losses.masked_fill(~observed, 0.0)
    return (losses.sum(0) / observed.sum(0).clamp(min=1)).mean()
