"""The rules of operations that move axes, or look rows up: for `flows.Walk`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch.fx import Node

from shaped.proof.axes import Application, Dim, Factor, bare, plain, reshaped, size_of
from shaped.proof.flows import (
    Flow,
    Walk,
    handles,
    joint,
    sizes_of,
)
from shaped.proof.symbolic import size_hint

Size = tuple[int, Any]


def dims_of(node: Node) -> list[Dim]:
    """Dimensions along which no parameter lies."""
    value = node.meta["val"]
    return [plain(*size) for size in sizes_of(value)]


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def sized(argument: Any) -> Size:
    """A size that is given as a number, as a symbolic size, or as a node for one."""
    value: Any = argument.meta.get("val") if isinstance(argument, Node) else argument
    if isinstance(value, SymInt):
        return size_hint(value), value.node.expr
    return int(value), sympy.Integer(int(value))


@handles("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten",
         "view_as")  # fmt: skip
def _view(walk: Walk, node: Node, name: str) -> Flow:
    flow = walk.flow(node.args[0])
    dims = reshaped(flow.dims, sizes_of(node.meta["val"]))
    if dims is None:
        walk.lose([flow], node)
        return replace(flow, dims=tuple(dims_of(node)))
    return replace(flow, dims=tuple(dims))


@handles("permute", "transpose", "t", "numpy_T", "movedim")
def _permute(walk: Walk, node: Node, name: str) -> Flow | None:
    flow = walk.flow(node.args[0])
    rank = len(flow.dims)
    order = list(range(rank))
    if name == "permute":
        given: Any = node.args[1]
        order = [i % rank for i in given]
    elif name == "transpose":
        pair: Any = node.args[1:3]
        a, b = (int(i) % rank for i in pair)
        order[a], order[b] = order[b], order[a]
    elif name in ("t", "numpy_T"):
        order = order[::-1]
    else:
        return None
    return replace(flow, dims=tuple(flow.dims[i] for i in order))


@handles("expand", "expand_as", "broadcast_to")
def _expand(walk: Walk, node: Node, name: str) -> Flow:
    flow = walk.flow(node.args[0])
    sizes = sizes_of(node.meta["val"])
    ahead = len(sizes) - len(flow.dims)
    dims: list[Dim] = []
    for i, (size, expr) in enumerate(sizes):
        mine = flow.dims[i - ahead] if i >= ahead else ()
        dims.append(mine if mine or size == 1 else (Factor(size, expr, wide=True),))
    return replace(flow, dims=tuple(dims))


@handles("repeat")
def _repeat(walk: Walk, node: Node, name: str) -> Flow:
    flow = walk.flow(node.args[0])
    sizes = sizes_of(node.meta["val"])
    ahead = len(sizes) - len(flow.dims)
    dims: list[Dim] = []
    for i, (size, expr) in enumerate(sizes):
        mine = flow.dims[i - ahead] if i >= ahead else ()
        times = size // size_of(mine)
        again = (Factor(times, sympy.cancel(expr / length_of(mine)), wide=True),) if times > 1 else ()
        dims.append((*again, *mine))
    return replace(flow, dims=tuple(dims))


def length_of(dim: Dim) -> Any:
    total: Any = sympy.Integer(1)
    for factor in dim:
        total = total * factor.expr
    return total


@handles("cat", "stack")
def _cat(walk: Walk, node: Node, name: str) -> Flow | None:
    parts = [walk.flow(part) for part in node.args[0]]  # type: ignore[union-attr]
    sizes = sizes_of(node.meta["val"])
    axis = int(argument(node, 1, "dim", 0)) % len(sizes)
    parts = [part for part in parts if part.dims] or parts
    if name == "stack":
        parts = [replace(part, dims=(*part.dims[:axis], (), *part.dims[axis:])) for part in parts]
    source, weights = joint(parts)
    if source != "weight" or any(len(part.dims) != len(sizes) for part in parts):
        walk.notes.added.update(*(part.weights for part in parts if part.source == "weight"))
        return Flow(tuple(dims_of(node)), source, weights) if source != "weight" else None
    dims: list[Dim] = []
    for i, (size, expr) in enumerate(sizes):
        factors = [factor for part in parts for factor in part.dims[i]]
        lies = frozenset().union(*(factor.parts for factor in factors)) if factors else frozenset()
        whole = all(len(part.dims[i]) < 2 for part in parts)
        if not whole:
            walk.lose(parts, node)
        dims.append((Factor(size, expr, lies if whole else frozenset()),) if size > 1 else ())
    return Flow(tuple(dims), source, weights)


@handles("constant_pad_nd", "roll", "flip")
def _pad(walk: Walk, node: Node, name: str) -> Flow:
    flow = walk.flow(node.args[0])
    dims: list[Dim] = []
    for dim, (size, expr) in zip(flow.dims, sizes_of(node.meta["val"]), strict=True):
        same = size_of(dim) == size
        image = tuple(replace(f, size=size, expr=expr, wide=False) for f in dim) if len(dim) == 1 else ()
        if not same and dim and not image:
            walk.lose([flow], node)
        dims.append(dim if same else image or plain(size, expr))
    return replace(flow, dims=tuple(dims))


# -- parts of an axis ----------------------------------------------------------------------------------------------


def _stretch(walk: Walk, node: Node, flow: Flow, dim: Dim, start: Size, stop: Size) -> Dim:
    """A dimension from `start` to `stop`."""
    size, expr = stop[0] - start[0], stop[1] - start[1]
    if size == size_of(dim):
        return dim
    if flow.source != "weight":
        for factor in dim if len(dim) == 1 else ():
            for part in (p for p in factor.parts if p.size == factor.size):
                if any(part in use.roles for use in factor.uses):
                    part.cuts[start[0], stop[0]] = (start[1], stop[1])
        return plain(size, expr)
    if len(dim) != 1 or any(part.size != dim[0].size for part in dim[0].parts):
        if dim:
            walk.lose([flow], node)
        return plain(size, expr)
    parts = frozenset(part.stretch(start, stop) for part in dim[0].parts)
    return (Factor(size, expr, parts, dim[0].wide),) if size > 1 else ()


@handles("slice")
def _slice(walk: Walk, node: Node, name: str) -> Flow:
    flow = walk.flow(node.args[0])
    axis = int(argument(node, 1, "dim", 0)) % len(flow.dims)
    length = size_of(flow.dims[axis])
    size, expr = sizes_of(node.meta["val"])[axis]
    start = sized(argument(node, 2, "start") or 0)
    if start[0] < 0:
        start = (start[0] + length, start[1] + length_of(flow.dims[axis]))
    if argument(node, 4, "step", 1) != 1:
        made: Dim = tuple(replace(f, size=size, expr=expr) for f in flow.dims[axis]) if size > 1 else ()
        made = made if len(flow.dims[axis]) == 1 else plain(size, expr)
    else:
        made = _stretch(walk, node, flow, flow.dims[axis], start, (start[0] + size, start[1] + expr))
    return replace(flow, dims=(*flow.dims[:axis], made, *flow.dims[axis + 1 :]))


@handles("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes",
         "tensor_split")  # fmt: skip
def _split(walk: Walk, node: Node, name: str) -> list[Flow]:
    flow = walk.flow(node.args[0])
    axis = int(argument(node, 2, "dim", 0)) % len(flow.dims)
    found: list[Flow] = []
    start: Size = (0, sympy.Integer(0))
    for value in node.meta["val"]:
        size, expr = sizes_of(value)[axis]
        stop = (start[0] + size, start[1] + expr)
        made = _stretch(walk, node, flow, flow.dims[axis], start, stop)
        found.append(replace(flow, dims=(*flow.dims[:axis], made, *flow.dims[axis + 1 :])))
        start = stop
    return found


def _pick(flow: Flow, axis: int, entries: Sequence[int]) -> Flow:
    """Single entries of an axis."""
    dim = flow.dims[axis]
    for factor in dim:
        known = flow.source == "weight" or any(part in use.roles or _within(part, use) for use in factor.uses
                                               for part in factor.parts)  # fmt: skip
        for part in factor.parts if known else ():
            part.picked |= {entry % part.size for entry in entries}
    return replace(flow, dims=(*flow.dims[:axis], *flow.dims[axis + 1 :]))


def _within(part: Any, use: Application) -> bool:
    """Whether a part is a factor of one that has a role."""
    return any(part in whole.leaves() or part in whole.everything() for whole in use.roles)


@handles("select")
def _select(walk: Walk, node: Node, name: str) -> Flow:
    flow = walk.flow(node.args[0])
    index = argument(node, 2, "index")
    entry = sized(index)[0] if not isinstance(index, Node) or index.meta.get("val") is not None else 0
    return _pick(flow, int(argument(node, 1, "dim", 0)) % len(flow.dims), [entry])


@handles("unbind")
def _unbind(walk: Walk, node: Node, name: str) -> list[Flow]:
    flow = walk.flow(node.args[0])
    count = len(node.meta["val"])
    return [_pick(flow, int(argument(node, 1, "dim", 0)) % len(flow.dims), range(count))] * count


# -- rows that are looked up ---------------------------------------------------------------------------------------


def _look_up(walk: Walk, node: Node, table: Flow, axes: Sequence[int], by: Sequence[Flow]) -> Flow | None:
    """Entries of some axes by number."""
    if table.source != "weight":
        return None
    source, _ = joint(by)
    known = source == "constant"  # always the same entries: a permutation, a triangle
    if not known:
        for axis in axes:
            walk.notes.looked_up.update(part for factor in table.dims[axis] for part in factor.parts)
    rest = [dim for i, dim in enumerate(table.dims) if i not in axes]
    sizes = sizes_of(node.meta["val"])
    fresh = [plain(*size) for size in sizes]
    if known and len(axes) == 1 and len(by[0].dims) == 1:
        i = axes[0]
        image = tuple(replace(f, size=sizes[i][0], expr=sizes[i][1]) for f in table.dims[i])
        return replace(table, dims=(*table.dims[:i], image if len(image) == 1 else fresh[i], *table.dims[i + 1 :]))
    ahead = axes[0] if list(axes) == list(range(axes[0], axes[0] + len(axes))) else 0
    count = len(sizes) - len(rest)
    if count < 0:
        return None
    dims = (*rest[:ahead], *fresh[ahead : ahead + count], *rest[ahead:])
    return Flow(tuple(dims), "weight" if known else "looked up", table.weights)


@handles("embedding")
def _embedding(walk: Walk, node: Node, name: str) -> Flow | None:
    return _look_up(walk, node, walk.flow(node.args[0]), [0], [walk.flow(node.args[1])])


@handles("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(walk: Walk, node: Node, name: str) -> list[Flow] | None:
    table = walk.flow(node.args[0])
    if table.source != "weight":
        return None
    walk.notes.looked_up.update(part for factor in table.dims[0] for part in factor.parts)
    shapes = [tuple(plain(*s) for s in sizes_of(v)) if isinstance(v, Tensor) else () for v in node.meta["val"]]
    return [Flow(dims, "activation") for dims in shapes]


@handles("index", "_unsafe_index")
def _index(walk: Walk, node: Node, name: str) -> Flow | None:
    given: Any = node.args[1]
    axes = [i for i, entry in enumerate(given) if entry is not None]
    return _look_up(walk, node, walk.flow(node.args[0]), axes, [walk.flow(given[i]) for i in axes])


@handles("index_select")
def _index_select(walk: Walk, node: Node, name: str) -> Flow | None:
    table = walk.flow(node.args[0])
    axis = int(argument(node, 1, "dim")) % max(1, len(table.dims))
    return _look_up(walk, node, table, [axis], [walk.flow(node.args[2])])


@handles("gather", "take")
def _gather(walk: Walk, node: Node, name: str) -> Flow | None:
    table = walk.flow(node.args[0])
    if table.source != "weight":
        return None
    axes = range(len(table.dims)) if name == "take" else [int(argument(node, 1, "dim")) % max(1, len(table.dims))]
    for axis in axes:
        walk.notes.looked_up.update(part for factor in table.dims[axis] for part in factor.parts)
    return Flow(tuple(dims_of(node)), "activation")


_VIEWS = {"view", "select", "slice", "transpose", "permute", "t", "unsqueeze", "squeeze", "expand", "alias", "detach"}


def write(walk: Walk, node: Node, name: str) -> None:
    """What is written into a tensor through a view of it comes from there afterwards."""
    target = node.args[0]
    if not isinstance(target, Node) or not isinstance(walk.flows.get(node), Flow):
        return
    incoming = [walk.flow(one) for one in node.all_input_nodes]
    source, weights = joint(incoming)
    if source == "constant":
        return
    while isinstance(target, Node):
        old = walk.flow(target)
        walk.flows[target] = Flow(tuple(map(bare, old.dims)), source, weights)
        packet = str(getattr(target.target, "overloadpacket", "")).removeprefix("aten.")
        target = target.args[0] if packet in _VIEWS else None
