"""How views of parts lie: the same blocks of memory under other axes."""

from typing import Any

import sympy
from torch.fx import Node

from shaped.ranks.extents import extent, product, quotient
from shaped.ranks.placements import PENDING, WHOLE, Held, Partial, Shard
from shaped.ranks.rules import tensors_in
from shaped.ranks.walk import PlacementWalk, Unplaced, args_of, operation, rule


@rule("view", "_unsafe_view", "reshape")
def viewed(walk: PlacementWalk, node: Node) -> Held:
    """The same entries in the same order as other axes.

    A value in parts is `outer` blocks of entries, each cut evenly. The axis of the result in which `outer` ends has the
    parts, where what is left of it is divided by the number of ranks.
    """
    x = args_of(node)[0]
    if x.meta["val"].dtype != node.meta["val"].dtype:  # `view(dtype)` reads the bits otherwise
        walk.whole(node, x, hint="there are no parts of such a view: leave the name of that axis out of shard")
    held = walk.of(x)
    if not isinstance(held, Shard):
        return held
    before, after = walk.shape(x), walk.shape(node)
    for exact in (True, False):  # known sizes as numbers where symbols say too little
        shapes = (before, after) if exact else ([*map(walk.sizes.at, before)], [*map(walk.sizes.at, after)])
        found = _carried(walk, held, *shapes)
        if found is not None:
            axis, blocks = found
            walk.task(node).sizes.append((1, axis))
            return walk.parts(axis, blocks)
    name = walk.sizes.show(before[held.axis])
    raise Unplaced(
        node,
        f"the parts of {name} to be parts of an axis of {walk.sizes.shape(after)}",
        f"a view may flatten an axis in parts, and split it where {walk.size} divides the first of its new axes that "
        "is cut: split it otherwise, or leave the name out of shard",
    )


def _carried(
    walk: PlacementWalk, held: Shard, before: list[sympy.Expr], after: list[sympy.Expr]
) -> tuple[int, sympy.Expr] | None:
    """The axis that has the parts in another view, and the blocks before the cut in it."""
    outer = product([*before[: held.axis], held.before])
    passed = sympy.Integer(1)
    for axis, size in enumerate(after):
        through = passed * size
        blocks, rest = quotient(outer, passed), quotient(through, outer)
        if blocks is None:
            return None
        if rest is not None and rest != 1:
            return (axis, blocks) if walk.sizes.even(rest) else None
        passed = through
    return None


@rule("t", "transpose", "permute")
def turned(walk: PlacementWalk, node: Node) -> Held:
    """Axes in another order."""
    held = walk.of(args_of(node)[0])
    if not isinstance(held, Shard):
        return held
    count = len(walk.shape(node))
    order = list(range(count))
    if operation(node) == "t":
        order.reverse()
    elif operation(node) == "transpose":
        a, b = (int(axis) % count for axis in args_of(node)[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [int(axis) % count for axis in args_of(node)[1]]
    return Shard(order.index(held.axis), held.before)


@rule("unsqueeze")
def widened(walk: PlacementWalk, node: Node) -> Held:
    """One more axis of 1."""
    held = walk.of(args_of(node)[0])
    if not isinstance(held, Shard):
        return held
    at = int(args_of(node)[1]) % len(walk.shape(node))
    return Shard(held.axis + (held.axis >= at), held.before)


@rule("squeeze")
def narrowed(walk: PlacementWalk, node: Node) -> Held:
    """Without axes of 1; one in parts is not of 1."""
    x = args_of(node)[0]
    held = walk.of(x)
    if not isinstance(held, Shard):
        return held
    shape = walk.shape(x)
    given: Any = args_of(node)[1] if len(args_of(node)) > 1 else list(range(len(shape)))
    axes = [int(a) % len(shape) for a in (given if isinstance(given, list | tuple) else [given])]
    gone = sum(axis < held.axis and shape[axis] == 1 for axis in axes)
    return Shard(held.axis - gone, held.before)


@rule("expand")
def expanded(walk: PlacementWalk, node: Node) -> Held:
    """Axes of 1 repeated without a copy."""
    held = walk.of(args_of(node)[0])
    if not isinstance(held, Shard):
        return held
    at = held.axis + len(walk.shape(node)) - len(walk.shape(args_of(node)[0]))
    walk.task(node).sizes.append((1, at))
    return Shard(at, held.before)


@rule("repeat")
def repeated(walk: PlacementWalk, node: Node) -> Held:
    """Axes repeated with a copy; the one in parts once."""
    held = walk.of(args_of(node)[0])
    if not isinstance(held, Shard):
        return held
    times: Any = args_of(node)[1]
    at = held.axis + len(times) - len(walk.shape(args_of(node)[0]))
    if times[at] != 1:
        walk.whole(node, args_of(node)[0])
    return Shard(at, held.before)


@rule("select")
def selected(walk: PlacementWalk, node: Node) -> Held:
    """One entry of an axis, which must be whole."""
    x = args_of(node)[0]
    held, at = walk.of(x), int(args_of(node)[1]) % len(walk.shape(x))
    if not isinstance(held, Shard):
        return held
    if held.axis == at:
        walk.whole(node, x)
    return Shard(held.axis - (held.axis > at), held.before)


@rule("slice")
def sliced(walk: PlacementWalk, node: Node) -> Held:
    """A run of an axis, which must be whole, or the run all of it."""
    x = args_of(node)[0]
    held = walk.of(x)
    at = int(args_of(node)[1] if len(args_of(node)) > 1 else _named(node, "dim", 0)) % len(walk.shape(x))
    if isinstance(held, Shard) and held.axis == at:
        if walk.shape(x)[at] != walk.shape(node)[at]:
            walk.whole(node, x)
        step = args_of(node)[4] if len(args_of(node)) > 4 else _named(node, "step", 1)
        if step != 1:
            walk.whole(node, x)
        walk.task(node).how = "all of it"
    return held


@rule("split", "split_with_sizes", "unbind")
def divided(walk: PlacementWalk, node: Node) -> Held | tuple[Held, ...]:
    """An axis in pieces. One in parts may be split into the blocks that were cut alike: q, k, v of `3*dim`."""
    x, name = args_of(node)[0], operation(node)
    held = walk.of(x)
    if not isinstance(held, Shard):
        return walk._all(node, held)
    shape = walk.shape(x)
    place = 1 if name == "unbind" else 2
    at = int(args_of(node)[place] if len(args_of(node)) > place else _named(node, "dim", 0)) % len(shape)
    if at != held.axis:
        return walk._all(node, Shard(held.axis - (name == "unbind" and held.axis > at), held.before))
    block = quotient(walk.sizes.at(shape[at]), walk.sizes.at(sympy.sympify(held.before)))
    if name != "split" or block is None or walk.sizes.at(_size(args_of(node)[1])) != block:
        walk.whole(node, x)
    walk.task(node).sizes.append((1, None))
    return walk._all(node, walk.parts(at))


def _named(node: Node, name: str, default: Any) -> Any:
    return node.kwargs.get(name, default)


def _size(given: Any) -> sympy.Expr:
    return extent(given.meta["val"] if isinstance(given, Node) else given)


@rule("cat", "stack")
def joined(walk: PlacementWalk, node: Node) -> Held:
    """Pieces along an axis, which must be whole; or equal parts, which are then blocks that are cut alike."""
    operands = tensors_in(node)
    count = len(walk.shape(node))
    at = int(args_of(node)[1] if len(args_of(node)) > 1 else _named(node, "dim", 0)) % count
    if all(isinstance(walk.of(n), Partial) for n in operands):
        return PENDING
    walk.settle(node, *operands)
    shards = [held for n in operands if isinstance(held := walk.of(n), Shard)]
    if not shards:
        return WHOLE
    shard, stacks = shards[0], operation(node) == "stack"
    if not stacks and shard.axis == at:
        pieces: Any = args_of(node)[0]
        sizes = {walk.sizes.at(walk.shape(n)[at]) for n in pieces}
        if len(sizes) > 1 or shard.before != 1:
            walk.whole(node, next(n for n in operands if isinstance(walk.of(n), Shard)))
        for n in operands:
            walk.cut(node, n, shard)
        return walk.parts(at, len(pieces))
    for n in operands:
        walk.cut(node, n, shard)
    return Shard(shard.axis + (stacks and shard.axis >= at), shard.before)


@rule("slice_backward", "select_backward")
def put_into_zeros(walk: PlacementWalk, node: Node) -> Held:
    """The gradient of a run or an entry of an axis, with zeros around it."""
    grad, count = args_of(node)[0], len(walk.shape(node))
    held, at = walk.of(grad), int(args_of(node)[2]) % count
    if not isinstance(held, Shard):
        return held
    axis = held.axis + (operation(node) == "select_backward" and held.axis >= at)
    if axis == at:
        walk.whole(node, grad)
    walk.task(node).sizes.append((1, axis))
    return Shard(axis, held.before)


@rule("constant_pad_nd")
def padded(walk: PlacementWalk, node: Node) -> Held:
    """Entries around some of the last axes."""
    x, pad = args_of(node)[:2]
    walk.settle(node, x)
    held = walk.of(x)
    count = len(walk.shape(node))
    if isinstance(held, Shard) and held.axis >= count - len(pad) // 2:
        at = 2 * (count - 1 - held.axis)
        if any(side != 0 for side in pad[at : at + 2]):
            walk.whole(node, x)
    return held


@rule("tril", "triu")
def triangular(walk: PlacementWalk, node: Node) -> Held:
    """A triangle of the last two axes."""
    x = args_of(node)[0]
    held = walk.of(x)
    if isinstance(held, Shard) and held.axis >= len(walk.shape(node)) - 2:
        walk.whole(node, x)
    return held
