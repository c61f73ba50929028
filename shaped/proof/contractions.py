"""The rules of operations that sum or contract axes: for `flows.Walk`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy
from torch import Tensor
from torch.fx import Node

from shaped.proof.axes import Application, Dim, Factor, bare, plain, reshaped, size_of, split
from shaped.proof.flows import BATCH, IN, OUT, Flow, Walk, handles, sizes_of
from shaped.proof.motions import Size, argument, dims_of, length_of, sized
from shaped.proof.recurrent import GATES


@handles("sum", "mean", "amax", "amin", "prod", "any", "all", "logsumexp", "linalg_vector_norm", "var", "std")
def _reduce(walk: Walk, node: Node, name: str) -> Flow | None:
    flow = walk.flow(node.args[0])
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return None
    at = 2 if name == "linalg_vector_norm" else 1
    given: Any = argument(node, at, "dim")
    rank = len(flow.dims)
    axes = range(rank) if given is None or given == [] else [int(given)] if isinstance(given, int) else list(given)
    gone = {axis % rank for axis in axes} if rank else set()
    if name in ("sum", "mean"):
        for axis in gone:
            _contract(flow.dims[axis])
    kept = value.dim() == rank
    dims = [() if i in gone else dim for i, dim in enumerate(flow.dims) if kept or i not in gone]
    linear = name in ("sum", "mean") or flow.source == "weight"
    return replace(flow, dims=tuple(dims if linear else map(bare, dims)))


def _contract(dim: Dim) -> None:
    """A sum over what weights and activations share is a contraction."""
    for factor in dim:
        for use in factor.uses:
            for part in factor.parts:
                if use.roles.get(part) == BATCH:
                    use.roles[part] = IN


@handles("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "vdot", "linear")
def _matmul(walk: Walk, node: Node, name: str) -> Flow | None:
    if name == "linear":
        return None
    added = name.startswith(("addm", "baddb"))
    a, b = (walk.flow(one) for one in node.args[added : added + 2])
    left = {"mm": 2, "bmm": 3}.get(name.replace("badd", "").replace("add", "") or name, 0)
    if name in ("dot", "vdot"):
        batch: list[tuple[Dim, Dim]] = []
        inner: tuple[Dim, Dim] = (a.dims[0], b.dims[0])
        free: tuple[Dim, Dim] = ((), ())
    elif name in ("mv", "addmv"):
        batch, inner, free = [], (a.dims[1], b.dims[0]), (a.dims[0], ())
    else:
        batch = [(a.dims[0], b.dims[0])] if left == 3 else []
        inner, free = (a.dims[-1], b.dims[-2]), (a.dims[-2], b.dims[-1])
    outs, rows, columns, source, weights = walk.product(node, a, b, batch, inner, free)
    ends = [rows, columns] if name not in ("mv", "addmv", "dot", "vdot") else [rows] if "mv" in name else []
    flow = Flow((*outs, *ends), source, weights)
    if not added:
        return flow
    bias = walk.flow(node.args[0])
    return walk.entrywise(node, "add", node.meta["val"], [flow, bias])


@handles("convolution", "_convolution")
def _convolution(walk: Walk, node: Node, name: str) -> Flow | None:
    source, weight = walk.flow(node.args[0]), walk.flow(node.args[1])
    walk.notes.added.update(walk.flow(node.args[2]).weights)
    if weight.source != "weight":
        return None
    if source.source in ("weight",):
        walk.lose([weight, source], node)
        return None
    stride, dilation, transposed, groups = (node.args[i] for i in (3, 5, 6, 8))
    first, second, *kernel = weight.dims
    count = sized(groups)
    made = _grouped(walk, node, weight, first, count)
    use = Application(node)
    if made is None:
        return None
    group, rest = made
    for dim, role in ((group, BATCH), (rest, IN if transposed else OUT), (second, OUT if transposed else IN)):
        for factor in dim:
            use.note(factor.parts, role)
    for i, dim in enumerate(kernel):
        step, apart = (sized(some[i % len(some)])[0] for some in (stride, dilation))  # type: ignore[arg-type,index,union-attr]
        for factor in dim:
            if not transposed or step == 1:
                use.note(factor.parts, IN)
            else:
                _phases(use, factor, step if apart == 1 else 0)
    walk.notes.applications.append(use)
    if source.source == "constant":
        walk.notes.applications.pop()
        walk.notes.first_guess.append(use)
    value = node.meta["val"]
    free = second if transposed else rest
    channels = (*group, *free)
    lies = tuple(replace(f, uses=frozenset({use})) for f in channels)
    sizes = sizes_of(value)
    batch = dims_of(node)
    at = len(sizes) - len(kernel) - 1
    batch[at] = lies if size_of(lies) == sizes[at][0] else plain(*sizes[at])
    return Flow(tuple(batch), "activation")


def _grouped(walk: Walk, node: Node, weight: Flow, dim: Dim, count: Size) -> tuple[Dim, Dim] | None:
    """An axis as groups, and what each has."""
    if count[0] == 1:
        return (), dim
    made = reshaped([dim], [count, (size_of(dim) // count[0], sympy.cancel(length_of(dim) / count[1]))])
    if made is None:
        walk.lose([weight], node)
        return None
    return made[0], made[1]


def _phases(use: Application, factor: Factor, step: int) -> None:
    """A kernel's axis where the convolution is transposed: entry tap*step + phase gives output `phase` of a stride.

    With as many entries as the stride, each makes an output of its own; where the stride does not divide the kernel,
    outputs have unequal numbers of taps, and each entry counts as an output, as in the convolution it transposes.
    """
    if step and factor.size > step and factor.size % step == 0:
        both = split(factor, factor.size // step, sympy.Integer(factor.size // step))
        if both is not None:
            use.note(both[0].parts, IN)
            use.note(both[1].parts, OUT)
            return
    use.note(factor.parts, OUT)


@handles("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
         "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
         "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math")  # fmt: skip
def _attention(walk: Walk, node: Node, name: str) -> None:
    query, key, value = (walk.flow(one) for one in node.args[:3])
    for flow, inner in ((query, -1), (key, -1), (value, -2)):
        if flow.source == "weight" and any(other.source == "activation" for other in (query, key, value)):
            use = Application(node)
            for i, dim in enumerate(flow.dims):
                role = IN if i - len(flow.dims) == inner else OUT if i >= len(flow.dims) - 2 else BATCH
                for factor in dim:
                    if not factor.wide:
                        use.note(factor.parts, role)
            walk.notes.applications.append(use)


@handles("_weight_norm_interface")
def _weight_norm(walk: Walk, node: Node, name: str) -> list[Flow] | None:
    """A weight as a direction and lengths: it is where the direction is."""
    direction, length = walk.flow(node.args[0]), walk.flow(node.args[1])
    if direction.source != "weight":
        return None
    norms = tuple(plain(*size) for size in sizes_of(node.meta["val"][1]))
    return [replace(direction, weights=direction.weights | length.weights), Flow(norms, "weight", direction.weights)]


@handles("mkldnn_rnn_layer")
def _lstm(walk: Walk, node: Node, name: str) -> list[Flow] | None:
    """A layer of an LSTM as a CPU runs it: four gates of the input and of the state, each `[4*hidden, in]`."""
    return _gated(walk, node, node.args[1:5], 4)


@handles("shaped.recurrent")
def _recurrent(walk: Walk, node: Node, name: str) -> list[Flow] | None:
    """Layers over a time that is free, whose weights are `[gates*hidden, in]` likewise."""
    kind: Any = node.args[0]
    weights: Any = node.args[3]
    return _gated(walk, node, weights, GATES[kind])


@handles("shaped.aligned")
def _aligned(walk: Walk, node: Node, name: str) -> list[Flow] | None:
    """A loss for each entry of the batch."""
    (size,) = sizes_of(node.meta["val"])
    return [Flow((plain(*size),), "activation")]


def _gated(walk: Walk, node: Node, given: Sequence[Any], count: int) -> list[Flow] | None:
    use = Application(node)
    flows = list(map(walk.flow, given))
    for weight in (flow for flow in flows if len(flow.dims) == 2):
        if weight.source != "weight" or any(len(dim) != 1 for dim in weight.dims):
            return None
        gates, inner = weight.dims[0][0], weight.dims[1][0]
        use.note(gates.parts, OUT)
        use.note(inner.parts, IN)
        size, expr = gates.size // count, gates.expr / count
        for part in gates.parts:
            part.cuts.update({(i * size, (i + 1) * size): (i * expr, (i + 1) * expr) for i in range(count)})
    walk.notes.applications.append(use)
    walk.notes.added.update(*(flow.weights for flow in flows if len(flow.dims) == 1))
    values = [value for value in node.meta["val"] if isinstance(value, Tensor)]
    return [Flow(tuple(plain(*size) for size in sizes_of(value)), "activation") for value in values]
