"""How layers on parts lie: softmax, norms, attention, and tables that are looked up."""

from typing import Any

from torch.fx import Node

from shaped.ranks.placements import PENDING, WHOLE, Held, Shard
from shaped.ranks.rules import along
from shaped.ranks.walk import PlacementWalk, Unplaced, args_of, operation, rule


@rule("_softmax", "_log_softmax")
def softmax(walk: PlacementWalk, node: Node) -> Held:
    """Along an axis that is whole; or in parts, with its largest entry and its sum from all ranks."""
    x = args_of(node)[0]
    walk.settle(node, x)
    held = walk.of(x)
    if isinstance(held, Shard) and held.axis == int(args_of(node)[1]) % len(walk.shape(node)):
        walk.task(node).how = operation(node).lstrip("_") + " of parts"
        walk.count("max", node, node.meta["val"], divided=held.axis)
        walk.count("sum", node, node.meta["val"], divided=held.axis)
    return held


@rule("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(walk: PlacementWalk, node: Node) -> Held:
    """Its gradient, with one more sum."""
    grad, out, dim = args_of(node)[:3]
    walk.settle(node, grad, out)
    held = along(walk, node, [grad, out])
    if isinstance(held, Shard) and held.axis == int(dim) % len(walk.shape(node)):
        walk.task(node).how = operation(node).lstrip("_").removesuffix("_backward_data") + " backward of parts"
        walk.count("sum", node, node.meta["val"], divided=held.axis)
    return held


@rule("native_layer_norm", "_fused_rms_norm")
def normed(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """Over the last axes, which must be whole, and so must the weights."""
    x, over, *weights = args_of(node)
    held = _leading(walk, node, x, over)
    walk.whole(node, *weights[:2])
    return tuple(held for _ in node.meta["val"])


@rule("native_layer_norm_backward")
def layer_norm_backward(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """The gradients of weights are sums over all rows: pending where ranks have some of them."""
    grad, x, over, mean, rstd, *weights = args_of(node)[:7]
    walk.whole(node, *weights)
    walk.settle(node, grad, x, mean, rstd)
    held = along(walk, node, [grad, x, mean, rstd], like=x)
    _hold_leading(walk, node, held, over)
    others: Held = PENDING if isinstance(held, Shard) else WHOLE
    return held, others, others


@rule("_fused_rms_norm_backward")
def rms_norm_backward(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """The same without a mean."""
    grad, x, over, rstd, weight = args_of(node)[:5]
    walk.whole(node, weight)
    walk.settle(node, grad, x, rstd)
    held = along(walk, node, [grad, x, rstd], like=x)
    _hold_leading(walk, node, held, over)
    return held, PENDING if isinstance(held, Shard) else WHOLE


def _leading(walk: PlacementWalk, node: Node, x: Any, over: Any) -> Held:
    walk.settle(node, x)
    held = walk.of(x)
    if isinstance(held, Shard) and held.axis >= len(walk.shape(x)) - len(over):
        walk.whole(node, x)
    return held


def _hold_leading(walk: PlacementWalk, node: Node, held: Held, over: Any) -> None:
    if isinstance(held, Shard) and held.axis >= len(walk.shape(args_of(node)[1])) - len(over):
        walk.whole(node, *[n for n in args_of(node)[:2] if isinstance(walk.of(n), Shard)])


_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


@rule(_ATTENTION)
def attention(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """Each row of a batch and each head by itself."""
    held = _of_heads(walk, node, list(args_of(node)[:3]), args_of(node)[3] if len(args_of(node)) > 3 else 0.0)
    return held, held


@rule(f"{_ATTENTION}_backward")
def attention_backward(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """Likewise."""
    held = _of_heads(walk, node, list(args_of(node)[:6]), args_of(node)[6])
    return held, held, held


def _of_heads(walk: PlacementWalk, node: Node, operands: list[Any], dropout: Any) -> Held:
    walk.settle(node, *operands)
    shards = {held for n in operands if isinstance(held := walk.of(n), Shard)}
    mask: Any = node.kwargs.get("attn_mask")
    if not shards:
        walk.whole(node, mask)
        return WHOLE
    shard = next(iter(shards))
    if shard.axis > 1:
        walk.whole(node, *[n for n in operands if isinstance(walk.of(n), Shard)])
    if dropout:
        raise Unplaced(
            node, "no random numbers on parts, and attention draws some of each head", "leave its dropout out"
        )
    for n in operands:
        walk.cut(node, n, shard)
    if isinstance(mask, Node):
        walk.settle(node, mask)
        sizes = walk.shape(mask)
        if len(sizes) == 4 and sizes[shard.axis] != 1:
            walk.cut(node, mask, shard)
        else:
            walk.whole(node, mask)
    return shard


# -- tables ----------------------------------------------------------------------------------------------------------


@rule("embedding")
def looked_up(walk: PlacementWalk, node: Node) -> Held:
    """Rows of a table: of a table whose columns are in parts, or whose rows are, where each rank finds its own."""
    table, ids = args_of(node)[:2]
    walk.settle(node, table, ids)
    held, of_ids = walk.of(table), walk.of(ids)
    axes = len(walk.shape(ids))
    if isinstance(of_ids, Shard):
        walk.whole(node, table)
        return of_ids
    if isinstance(held, Shard) and held.axis == 0:
        return _own_rows(walk, node, table, held)
    return Shard(axes, held.before) if isinstance(held, Shard) else WHOLE


def _own_rows(walk: PlacementWalk, node: Node, table: Any, held: Shard) -> Held:
    if held.before != 1:
        walk.whole(node, table)
    walk.task(node).how = "own rows"
    return PENDING


@rule("embedding_dense_backward")
def embedding_backward(walk: PlacementWalk, node: Node) -> Held:
    """Gradients of rows that were looked up, summed into the table's."""
    grad, ids = args_of(node)[:2]
    walk.settle(node, grad, ids)
    held, axes = walk.of(grad), len(walk.shape(ids))
    if not isinstance(held, Shard) and isinstance(walk.of(ids), Shard):
        held = walk.of(ids)
    if not isinstance(held, Shard):
        return WHOLE
    if held.axis == axes:
        walk.whole(node, ids)
        return Shard(1, held.before)
    if args_of(node)[4] is not False:  # gradients by how often a row was looked up on all ranks
        walk.whole(node, grad, ids)
    walk.cut(node, grad, held)
    walk.cut(node, ids, held)
    return PENDING


@rule("index")
def indexed(walk: PlacementWalk, node: Node) -> Held:
    """Entries by whole indices of the first axes; of the first alone, each rank finds its own."""
    table, indices = args_of(node)[0], _first_axes(walk, node, args_of(node)[1])
    walk.settle(node, table, *indices)
    walk.whole(node, *indices)
    held = walk.of(table)
    if not isinstance(held, Shard):
        return WHOLE
    if held.axis >= len(indices):
        axes = max(len(walk.shape(n)) for n in indices)
        return Shard(held.axis - len(indices) + axes, held.before)
    if len(indices) > 1 or "int" not in str(indices[0].meta["val"].dtype):
        walk.whole(node, table)
    return _own_rows(walk, node, table, held)


@rule("index_put")
def put(walk: PlacementWalk, node: Node) -> Held:
    """Values at whole indices of the first axes."""
    table, indices, values = args_of(node)[0], _first_axes(walk, node, args_of(node)[1]), args_of(node)[2]
    walk.settle(node, table, *indices, values)
    walk.whole(node, *indices)
    held, of_values = walk.of(table), walk.of(values)
    axes = max(len(walk.shape(n)) for n in indices)
    count = len(walk.shape(table))
    lead = axes + count - len(indices) - len(walk.shape(values))
    if isinstance(held, Shard):
        axis = held.axis
    elif isinstance(of_values, Shard):
        axis = of_values.axis + lead - axes + len(indices)
        held = Shard(axis, of_values.before)
    else:
        return WHOLE
    own = axis - len(indices) + axes - lead
    if axis < len(indices):
        walk.whole(node, table, values)
        return walk.of(table)
    walk.cut(node, table, held)
    if own >= 0 and walk.shape(values)[own] != 1:
        walk.cut(node, values, Shard(own, held.before))
    else:
        walk.whole(node, values)
    return held


def _first_axes(walk: PlacementWalk, node: Node, given: Any) -> list[Node]:
    """The indices, where they are of the first axes and no mask; otherwise all must be whole."""
    indices = [n for n in given if n is not None]
    plain = all(n is not None for n in given) and "bool" not in str({n.meta["val"].dtype for n in indices})
    if not plain:
        walk.whole(node, *[n for n in (args_of(node)[0], *indices, *args_of(node)[2:3]) if isinstance(n, Node)])
    return indices


@rule("gather", "scatter", "scatter_add")
def gathered(walk: PlacementWalk, node: Node) -> Held:
    """By indices along an axis that is whole, of which each entry stands for itself along the others."""
    operands = [
        n for n in (args_of(node)[0], *args_of(node)[2:]) if isinstance(n, Node) and hasattr(n.meta["val"], "shape")
    ]
    walk.settle(node, *operands)
    shards = [(n, held) for n in operands if isinstance(held := walk.of(n), Shard)]
    if not shards:
        return WHOLE
    n, shard = shards[0]
    along_axis = int(args_of(node)[1]) % len(walk.shape(n))
    if shard.axis == along_axis or len({walk.shape(m)[shard.axis] for m in operands}) > 1:
        walk.whole(node, *[m for m, _ in shards])
    for m in operands:
        walk.cut(node, m, shard)
    return shard


# -- cross-entropy ---------------------------------------------------------------------------------------------------


@rule("nll_loss_forward", "nll_loss2d_forward")
def picked(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """The log-probabilities of classes: of classes in parts each rank picks its own."""
    scores, target, weight = args_of(node)[:3]
    walk.settle(node, scores, target)
    walk.whole(node, target, weight)
    held = walk.of(scores)
    if not isinstance(held, Shard):
        return WHOLE, WHOLE
    if not _of_classes(walk, node, scores, held) or weight is not None:
        walk.whole(node, scores)
    walk.task(node).how = "own classes"
    return PENDING, WHOLE


@rule("nll_loss_backward", "nll_loss2d_backward")
def picked_backward(walk: PlacementWalk, node: Node) -> Held:
    """Their gradients."""
    grad, scores, target, weight, _, _, total = args_of(node)
    walk.settle(node, grad, scores, target, total)
    walk.whole(node, grad, target, weight, total)
    held = walk.of(scores)
    if not isinstance(held, Shard):
        return WHOLE
    if not _of_classes(walk, node, scores, held) or weight is not None:
        walk.whole(node, scores)
    walk.task(node).how = "own classes backward"
    return held


def _of_classes(walk: PlacementWalk, node: Node, scores: Any, held: Shard) -> bool:
    return held.axis == min(1, len(walk.shape(scores)) - 1) and held.before == 1


# -- random numbers --------------------------------------------------------------------------------------------------


@rule("native_dropout")
def dropped(walk: PlacementWalk, node: Node) -> tuple[Held, ...]:
    """Drawn whole on each rank, alike, and cut: as one process draws it."""
    x = args_of(node)[0]
    walk.settle(node, x)
    held = walk.of(x)
    if isinstance(held, Shard):
        walk.task(node).how = "drawn whole"
    return held, held


@rule("rand_like", "randn_like", "bernoulli")
def drawn(walk: PlacementWalk, node: Node) -> Held:
    """Random numbers of a value's shape, whatever its entries."""
    x = args_of(node)[0]
    if operation(node) == "bernoulli" and len(args_of(node)) < 2:  # its entries are the probabilities
        walk.whole(node, x)
        return WHOLE
    held = walk.of(x)
    if isinstance(held, Shard):
        walk.task(node).how = "drawn whole"
    return held if isinstance(held, Shard) else WHOLE
