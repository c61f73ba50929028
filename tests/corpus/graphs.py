"""Graphs, sets and point clouds: message passing by index, dense adjacency, neighbours, and embeddings of relations."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ParamList


class GCN(ParamList):
    w1: Float[Tensor, "features hidden"]
    w2: Float[Tensor, "hidden classes"]


def gcn_loss(
    p: GCN,
    x: Float[Tensor, "nodes features"],
    edges: Int[Tensor, "2 edges"],
    y: Int[Tensor, " nodes"],
    train: Bool[Tensor, " nodes"],
) -> Float[Tensor, ""]:
    source, target = edges
    n = x.shape[0]
    degree = torch.zeros(n).index_add(0, target, torch.ones(target.shape[0])).clamp(min=1)
    norm = (degree[source] * degree[target]).rsqrt()

    def propagate(h: Tensor) -> Tensor:
        return torch.zeros(n, h.shape[1]).index_add(0, target, h[source] * norm[:, None])

    h = F.relu(propagate(x @ p.w1))
    each = F.cross_entropy(propagate(h @ p.w2), y, reduction="none")
    return (each * train).sum() / train.sum().clamp(min=1)


class SAGE(ParamList):
    own: Float[Tensor, "features hidden"]
    neighbour: Float[Tensor, "features hidden"]


def sage_layer(
    p: SAGE, x: Float[Tensor, "nodes features"], source: Int[Tensor, " edges"], target: Int[Tensor, " edges"]
) -> Float[Tensor, "nodes hidden"]:
    index = target.unsqueeze(-1).expand(-1, x.size(1))
    total = torch.zeros_like(x).scatter_add(0, index, x[source])
    count = torch.zeros(x.size(0)).scatter_add(0, target, torch.ones_like(target, dtype=x.dtype))
    return F.normalize(x @ p.own + (total / count.clamp(min=1).unsqueeze(-1)) @ p.neighbour, dim=-1)


class GAT(ParamList):
    w: Float[Tensor, "features heads*depth"]
    left: Float[Tensor, "heads depth"]
    right: Float[Tensor, "heads depth"]


def graph_attention(
    p: GAT, x: Float[Tensor, "nodes features"], edges: Int[Tensor, "2 edges"]
) -> Float[Tensor, "nodes heads*depth"]:
    n, (heads, depth) = x.shape[0], p.left.shape
    source, target = edges[0], edges[1]
    h = (x @ p.w).view(n, heads, depth)
    score = F.leaky_relu((h * p.left).sum(-1)[source] + (h * p.right).sum(-1)[target], 0.2)
    index = target[:, None].expand(-1, heads)
    largest = torch.full((n, heads), -1e9).scatter_reduce(0, index, score, reduce="amax")
    weight = torch.exp(score - largest[target])
    total = torch.zeros(n, heads).index_add(0, target, weight)
    alpha = weight / total[target]
    return torch.zeros(n, heads, depth).index_add(0, target, alpha[..., None] * h[source]).flatten(1)


class DenseGAT(ParamList):
    w: Float[Tensor, "features hidden"]
    left: Float[Tensor, "hidden 1"]
    right: Float[Tensor, "hidden 1"]


def dense_graph_attention(
    p: DenseGAT, x: Float[Tensor, "nodes features"], adjacency: Bool[Tensor, "nodes nodes"]
) -> Float[Tensor, "nodes hidden"]:
    h = x @ p.w
    score = F.leaky_relu(h @ p.left + (h @ p.right).T, 0.2)
    return F.elu(score.masked_fill(~adjacency, -9e15).softmax(dim=1) @ h)


class Dense(ParamList):
    w: Float[Tensor, "features hidden"]
    readout: Float[Tensor, "hidden tasks"]


def dense_graph_loss(
    p: Dense,
    x: Float[Tensor, "batch nodes features"],
    adjacency: Float[Tensor, "batch nodes nodes"],
    keep: Bool[Tensor, "batch nodes"],
    y: Float[Tensor, "batch tasks"],
) -> Float[Tensor, ""]:
    a = adjacency + torch.eye(adjacency.shape[-1])
    scale = a.sum(-1).rsqrt()
    a = scale[:, :, None] * a * scale[:, None, :]
    h = F.relu(a @ x @ p.w).masked_fill(~keep[..., None], 0.0)
    return F.binary_cross_entropy_with_logits(h.sum(1) @ p.readout, y)


class Readout(ParamList):
    w: Float[Tensor, "hidden classes"]


def graph_readout(
    p: Readout, h: Float[Tensor, "nodes hidden"], graph: Int[Tensor, " nodes"], size: Float[Tensor, " graphs"]
) -> Float[Tensor, "graphs classes"]:
    pooled = torch.zeros(size.shape[0], h.shape[1]).index_add_(0, graph, h)
    return (pooled / size[:, None]) @ p.w


class PointNet(ParamList):
    w1: Float[Tensor, "3 hidden"]
    w2: Float[Tensor, "hidden features"]
    head: Float[Tensor, "features classes"]


def pointnet_loss(p: PointNet, cloud: Float[Tensor, "batch points 3"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.relu(F.relu(cloud @ p.w1) @ p.w2)
    return F.nll_loss(F.log_softmax(h.max(dim=1).values @ p.head, dim=1), y)


class EdgeConv(ParamList):
    w: Float[Tensor, "2*c cout"]


def edge_convolution(p: EdgeConv, x: Float[Tensor, "batch points c"], k: int = 4) -> Float[Tensor, "batch points cout"]:
    nearest = torch.cdist(x, x).topk(k, largest=False).indices
    batch = torch.arange(x.shape[0])[:, None, None]
    neighbours = x[batch, nearest]
    centre = x.unsqueeze(2).expand_as(neighbours)
    return F.leaky_relu(torch.cat([centre, neighbours - centre], dim=-1) @ p.w).amax(dim=2)


class Equivariant(ParamList):
    w1: Float[Tensor, "2*features+1 hidden"]
    w2: Float[Tensor, "hidden hidden"]
    shift: Float[Tensor, "hidden 1"]
    update: Float[Tensor, "features+hidden features"]


def equivariant_layer(
    p: Equivariant, h: Float[Tensor, "nodes features"], x: Float[Tensor, "nodes 3"], edges: Int[Tensor, "2 edges"]
) -> tuple[Float[Tensor, "nodes features"], Float[Tensor, "nodes 3"]]:
    row, col = edges
    difference = x[row] - x[col]
    radial = difference.square().sum(dim=1, keepdim=True)
    message = F.silu(F.silu(torch.cat([h[row], h[col], radial], dim=1) @ p.w1) @ p.w2)
    x = x + torch.zeros_like(x).index_add(0, row, difference * (message @ p.shift))
    gathered = h.new_zeros(h.shape[0], message.shape[1]).index_add(0, row, message)
    return h + torch.cat([h, gathered], dim=1) @ p.update, x


class Relations(ParamList):
    entities: Float[Tensor, "entities dim"]
    relations: Float[Tensor, "relations dim"]


def translation_loss(
    p: Relations, triple: Int[Tensor, "batch 3"], corrupted: Int[Tensor, "batch 3"], margin: float = 1.0
) -> Float[Tensor, ""]:
    def distance(t: Tensor) -> Tensor:
        head, relation, tail = p.entities[t[:, 0]], p.relations[t[:, 1]], p.entities[t[:, 2]]
        return (head + relation - tail).norm(p=1, dim=-1)

    return F.relu(margin + distance(triple) - distance(corrupted)).mean()


class DeepSet(ParamList):
    phi: Float[Tensor, "features hidden"]
    rho: Float[Tensor, "hidden outputs"]


def deep_set(
    p: DeepSet, x: Float[Tensor, "batch items features"], length: Int[Tensor, " batch"]
) -> Float[Tensor, "batch outputs"]:
    present = torch.arange(x.shape[1]) < length[:, None]
    h = torch.where(present.unsqueeze(-1), F.relu(x @ p.phi), 0.0)
    return h.sum(1) / length.unsqueeze(1) @ p.rho
