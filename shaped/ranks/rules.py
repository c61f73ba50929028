"""How operations on parts lie: element by element, products, and sums along axes."""

from collections.abc import Iterator
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from shaped.ranks.placements import PENDING, WHOLE, Held, Partial, Shard
from shaped.ranks.walk import PlacementWalk, Unplaced, args_of, operation, rule, sharing

_LINEAR = ("neg", "detach", "alias", "clone", "lift_fresh_copy")  # of one value


def tensors_in(node: Node) -> list[Node]:
    """The operands of a node that are tensors, each once."""
    found: list[Node] = []
    map_arg((args_of(node), node.kwargs), found.append)
    return [n for n in dict.fromkeys(found) if hasattr(n.meta.get("val"), "shape")]


@rule("pointwise", "detach", "alias", "clone", "lift_fresh_copy", "_to_copy")
def pointwise(walk: PlacementWalk, node: Node) -> Held:
    """Each entry by itself, broadcast: parts along one axis of the result."""
    operands = tensors_in(node)
    if all(isinstance(walk.of(n), Partial) for n in operands) and _is_sum(node, operands):
        return PENDING
    if _is_scaled(walk, node, operands):
        return PENDING
    walk.settle(node, *operands)
    return along(walk, node, operands)


@rule("masked_fill_", "add_", "sub_", "mul_", "div_")
def in_place(walk: PlacementWalk, node: Node) -> Held:
    """The same into what an operation has just made: the parts that a rank has of it."""
    target, operands = args_of(node)[0], tensors_in(node)
    walk.settle(node, *[n for n in operands if n is not target])
    held, before = walk.of(target), [n for n in sharing(target) if n in walk.held]
    if target.op != "call_function" or before != [target]:
        raise Unplaced(
            node,
            f"`{operation(node)}` to write into a value of its own, and it is a view or has views",
            "write it without the trailing underscore",
        )
    if along(walk, node, operands) != held or target in walk.task(node).cuts:
        walk.whole(node, *[n for n in operands if n is not target])
    return held


def _is_sum(node: Node, operands: list[Node]) -> bool:
    """Whether a node is linear in all of what it takes together: a constant would be added on every rank."""
    name = operation(node)
    if name in _LINEAR:
        return True
    return name in ("add", "sub") and all(isinstance(a, Node) and a in operands for a in args_of(node)[:2])


def _is_scaled(walk: PlacementWalk, node: Node, operands: list[Node]) -> bool:
    """Whether a node takes a pending sum times a number, or divides it by one."""
    if operation(node) not in ("mul", "div") or node.kwargs.get("rounding_mode") or len(args_of(node)) != 2:
        return False
    a, b = args_of(node)
    if operation(node) == "mul" and b in operands and isinstance(walk.of(b), Partial):
        a, b = b, a
    if a not in operands or not isinstance(walk.of(a), Partial):
        return False
    return b not in operands or (walk.of(b) == WHOLE and not walk.shape(b))


def along(walk: PlacementWalk, node: Node, operands: list[Node], like: Node | None = None) -> Held:
    """Parts along the axis of the result that some operand has in parts; whole operands are cut to them.

    Args:
        walk, node, operands: What is placed, and what it takes.
        like: A value of the axes of the result, where that is not the node's own.
    """
    shape = walk.shape(node if like is None else like)
    axes = len(shape)
    found = dict.fromkeys(_aligned(walk, operands, axes))
    if not found:
        return WHOLE
    if len(found) > 1:
        first, second = list(found)[:2]
        raise Unplaced(
            node,
            f"one axis in parts, and the result of {len(shape)} axes would have axis {first.axis} and {second.axis} in "
            "parts over one axis of the mesh",
            "leave one of the two names out of shard, or give them mesh axes of their own",
        )
    shard = next(iter(found))
    for n in operands:
        own = shard.axis - (axes - len(walk.shape(n)))
        if own >= 0 and walk.shape(n)[own] != 1:
            walk.cut(node, n, Shard(own, shard.before))
    return shard


def _aligned(walk: PlacementWalk, operands: list[Node], axes: int) -> Iterator[Shard]:
    for n in operands:
        held = walk.of(n)
        if isinstance(held, Shard):
            yield Shard(held.axis + axes - len(walk.shape(n)), held.before)


@rule("ones_like", "zeros_like", "full_like")
def alike(walk: PlacementWalk, node: Node) -> Held:
    """A constant of a value's shape."""
    held = walk.of(args_of(node)[0])
    return held if isinstance(held, Shard) else WHOLE


@rule("new_zeros", "new_ones", "new_full")
def anew(walk: PlacementWalk, node: Node) -> Held:
    """A constant of sizes that are given: whole."""
    return WHOLE


# -- products --------------------------------------------------------------------------------------------------------


@rule("mm", "bmm")
def product_of(walk: PlacementWalk, node: Node) -> Held:
    """Matrices, or batches of them."""
    return contracted(walk, node, args_of(node)[0], args_of(node)[1])


def contracted(walk: PlacementWalk, node: Node, a: Any, b: Any) -> Held:
    """a @ b: parts of the summed axis give a pending sum."""
    walk.settle(node, a, b)
    axes = len(walk.shape(a))
    rows, inner, columns = axes - 2, axes - 1, axes - 1
    held_a, held_b = walk.of(a), walk.of(b)
    summed = [h for h, axis in ((held_a, inner), (held_b, axes - 2)) if isinstance(h, Shard) and h.axis == axis]
    if summed:
        walk.cut(node, a, Shard(inner, summed[0].before))
        walk.cut(node, b, Shard(axes - 2, summed[0].before))
        return PENDING
    each = [h for h in (held_a, held_b) if isinstance(h, Shard) and h.axis < axes - 2]
    if each:
        walk.cut(node, a, each[0])
        walk.cut(node, b, each[0])
        return each[0]
    if isinstance(held_a, Shard) and isinstance(held_b, Shard):
        raise walk.clash(node, b, held_b)
    if isinstance(held_a, Shard):
        return Shard(rows, held_a.before)
    return Shard(columns, held_b.before) if isinstance(held_b, Shard) else WHOLE


@rule("addmm")
def added(walk: PlacementWalk, node: Node) -> Held:
    """bias + a @ b: a pending product is summed before the bias comes, which is added once."""
    bias, a, b = args_of(node)[:3]
    held = contracted(walk, node, a, b)
    walk.settle(node, bias)
    task = walk.task(node)
    if isinstance(held, Partial):
        walk.whole(node, bias)
        task.how = "summed and added"
        walk.count("sum", node, node.meta["val"])
        return WHOLE
    of_bias = walk.of(bias)
    axes = len(walk.shape(bias))
    if isinstance(held, Shard):
        own = held.axis - (2 - axes)
        if own >= 0 and walk.shape(bias)[own] != 1:
            walk.cut(node, bias, Shard(own, held.before))
        elif isinstance(of_bias, Shard):
            raise walk.clash(node, bias, of_bias)
        return held
    walk.whole(node, bias)
    return held


@rule("mv", "dot")
def with_vector(walk: PlacementWalk, node: Node) -> Held:
    """A matrix or a vector times a vector."""
    a, b = args_of(node)[:2]
    walk.settle(node, a, b)
    inner = len(walk.shape(a)) - 1
    held_a, held_b = walk.of(a), walk.of(b)
    summed = [h for h, axis in ((held_a, inner), (held_b, 0)) if isinstance(h, Shard) and h.axis == axis]
    if summed:
        walk.cut(node, a, Shard(inner, summed[0].before))
        walk.cut(node, b, Shard(0, summed[0].before))
        return PENDING
    return held_a


# -- along axes ------------------------------------------------------------------------------------------------------

# What reduces axes: the position of the axes and of keepdim, where they are not named.
_REDUCTIONS = {
    **dict.fromkeys(("sum", "mean", "amax", "amin", "logsumexp", "any", "all", "prod"), (1, 2)),
    **{"var": (1, 3), "std": (1, 3), "argmax": (1, 2), "argmin": (1, 2), "max": (1, 2), "min": (1, 2)},
    **{"linalg_vector_norm": (2, 3), "var_mean": (1, 3)},
}
_ALONG = {"cumsum": 1, "cumprod": 1, "sort": 1, "topk": 2, "logcumsumexp": 1, "flip": 1}


@rule(*_REDUCTIONS)
def reduced(walk: PlacementWalk, node: Node) -> Held | tuple[Held, ...]:
    """Axes that are gone, or 1: over parts, a sum that is pending, a mean likewise, the largest at once."""
    name, x = operation(node), args_of(node)[0]
    at, keeps = _REDUCTIONS[name]
    if name in ("max", "min", "maximum") and len(args_of(node)) > 1 and isinstance(args_of(node)[1], Node):
        return pointwise(walk, node)  # of two values
    shape = walk.shape(x)
    axes = _axes(_argument(node, at, "dim"), len(shape))
    keep = bool(_argument(node, keeps, "keepdim"))
    held = walk.of(x)
    if isinstance(held, Partial):
        if name == "sum" or (name == "mean" and node.kwargs.get("dtype") is None):
            return PENDING
        walk.settle(node, x)
        return walk._all(node, WHOLE)
    assert isinstance(held, Shard)
    if held.axis not in axes:
        left = held.axis if keep else held.axis - sum(axis < held.axis for axis in axes)
        return walk._all(node, Shard(left, held.before))
    if name == "sum":
        return PENDING
    if name == "mean":
        walk.task(node).how = "divided"
        return PENDING
    if name in ("amax", "amin"):
        walk.task(node).how = "largest" if name == "amax" else "smallest"
        value = node.meta["val"]
        walk.count("max" if name == "amax" else "min", node, value, times=1 + value.is_floating_point())  # and its NaN
        return WHOLE
    walk.whole(node, x)
    raise AssertionError("a part is not whole")


@rule(*_ALONG)
def along_one(walk: PlacementWalk, node: Node) -> Held | tuple[Held, ...]:
    """What goes along one axis, which must be whole."""
    x = args_of(node)[0]
    walk.settle(node, x)
    held = walk.of(x)
    axes = _axes(_argument(node, _ALONG[operation(node)], "dim", -1), len(walk.shape(x)))
    if isinstance(held, Shard) and held.axis in axes:
        walk.whole(node, x)
    return walk._all(node, held)


def _argument(node: Node, at: int, name: str, default: Any = None) -> Any:
    return args_of(node)[at] if len(args_of(node)) > at else node.kwargs.get(name, default)


def _axes(given: Any, count: int) -> list[int]:
    if given is None or given == []:
        return list(range(count))
    given = given if isinstance(given, list | tuple) else [given]
    return [int(axis) % count for axis in given]


# -- losses ----------------------------------------------------------------------------------------------------------


@rule("mse_loss", "huber_loss", "smooth_l1_loss")
def distance(walk: PlacementWalk, node: Node) -> Held:
    """A loss of two values, reduced: a part of a mean is divided by the number of ranks."""
    x, y = args_of(node)[:2]
    walk.settle(node, x, y)
    reduction = _argument(node, 2, "reduction", 1)
    if isinstance(walk.of(x), Shard) or isinstance(walk.of(y), Shard):
        both = [n for n in (x, y) if isinstance(n, Node)]
        shards = [held for n in both if isinstance(held := walk.of(n), Shard)]
        for n in both:
            walk.cut(node, n, shards[0])
        if reduction == 0:
            return shards[0]
        if reduction == 1:
            walk.task(node).how = "divided"
        return PENDING
    return WHOLE


@rule("mse_loss_backward", "huber_loss_backward", "smooth_l1_loss_backward")
def distance_backward(walk: PlacementWalk, node: Node) -> Held:
    """Its gradient."""
    grad, x, y, reduction = args_of(node)[:4]
    operands = [n for n in (grad, x, y) if isinstance(n, Node)]
    walk.settle(node, *operands)
    held = along(walk, node, operands)
    if isinstance(held, Shard) and reduction == 1:
        walk.task(node).how = "divided"
    return held
