"""What a loss divides by, read off its proved graph.

    (losses*keep).sum() / keep.sum()     a mean over what a mask keeps
    nll_loss(scores, target)             a mean over the targets that are not `ignore_index`, weighted by their class

Such a batch has as many samples as the divisor says, whatever its dimensions are. Only divisors by which the loss, or a
term of its sum, is divided as a whole count, and only those that no trained parameter moves.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from shaped.proof.setting import PLAIN

aten = torch.ops.aten
# Read a tensor's shape and dtype, not its values.
_OF_KIND = ("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like")
_OF_SHAPE = ("sym_size", "sym_numel", "sym_stride", "sym_storage_offset")
# The same values in another shape or dtype.
_SAME = (
    *("detach", "alias", "_to_copy", "clone", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "permute"),
    *("transpose", "t", "contiguous", "lift_fresh_copy", "lift_fresh"),
)
_LINEAR = (*_SAME, "neg", "sum", "mean", "expand", "slice", "select", "where", "masked_fill")
_SUMS = ("sum", "mean", "count_nonzero")
_MEAN = 1  # torch's number of the reduction


@dataclass(frozen=True)
class Divisor:
    """One count that a loss divides by.

    Attributes:
        key: Equal for divisors that are computed alike.
        kind: "sum", "mean", "count_nonzero" (of `over`), or "classes" (of targets).
        over: What is summed; for "classes" the targets.
        weight: For "classes": the weight of each class, where there is one.
        ignored: For "classes": the target that does not count.
    """

    key: Any
    kind: str
    over: Node
    weight: Node | None = None
    ignored: int = 0


@dataclass
class Divisors:
    """The divisors of a loss.

    Attributes:
        divisors: By key.
        plain: Some term depends on the batch and is divided by none of them.
        unknown: Some term is divided by a number of the batch that is no sum.
    """

    divisors: dict[Any, Divisor] = field(default_factory=dict)
    plain: bool = False
    unknown: bool = False

    @property
    def one(self) -> Divisor | None:
        """The divisor, where the loss has one and no other way to count."""
        return next(iter(self.divisors.values())) if len(self.divisors) == 1 and not self.mixed else None

    @property
    def mixed(self) -> bool:
        """Whether no count makes the mean over batches that of their union."""
        return self.unknown or (bool(self.divisors) and len(self.divisors) + self.plain > 1)


def divisors(graph: GraphModule, trained: Sequence[int], inputs: int) -> Divisors:
    """Read what a loss divides by.

    Args:
        graph: Over flat params ++ inputs; the loss is its first output.
        trained: Positions of the parameters that are trained.
        inputs: Position of the first input.
    """
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    reader = _Reader(graph, {places[i] for i in trained}, {*places[inputs:]})
    loss = outputs[graph.meta.get(PLAIN, 0)]
    if isinstance(loss, Node):
        reader.walk(loss)
    return reader.found


def counting_graph(graph: GraphModule, divisor: Divisor) -> GraphModule:
    """A graph over the same placeholders that gives what the divisor counts, and of how many."""
    needed = {divisor.over, *([divisor.weight] if divisor.weight is not None else [])}
    needed |= {node for root in tuple(needed) for node in _ancestors(root)}
    copy, at = Graph(), dict[Node, Node]()
    for node in graph.graph.nodes:
        if node in needed or node.op == "placeholder":
            at[node] = copy.node_copy(node, at.__getitem__)
    over = at[divisor.over]
    size = copy.call_function(aten.sym_numel.default, (over,))
    if divisor.kind == "classes":
        counted = copy.call_function(aten.ne.Scalar, (over, divisor.ignored))
        if divisor.weight is not None:
            index = copy.call_function(aten.mul.Tensor, (over, counted))
            flat = [copy.call_function(aten.view.default, (node, [-1])) for node in (index, counted)]
            weight = copy.call_function(aten.index_select.default, (at[divisor.weight], 0, flat[0]))
            counted = copy.call_function(aten.mul.Tensor, (weight, flat[1]))
    else:
        counted = copy.call_function(aten.ne.Scalar, (over, 0)) if divisor.kind == "count_nonzero" else over
    copy.output((copy.call_function(aten.sum.default, (counted,), {"dtype": torch.float64}), size))
    return GraphModule(graph, copy)


class _Reader:
    """Walks from a loss to what its terms are divided by."""

    def __init__(self, graph: GraphModule, trained: set[Node], inputs: set[Node]) -> None:
        self.found = Divisors()
        self._trained = _influenced(graph, trained)
        self._data = _influenced(graph, inputs)
        self._drawn = _influenced(graph, {n for n in graph.graph.nodes if _draws(n)})
        self._seen: set[Node] = set()
        self._keys: dict[Node, Any] = {}

    def walk(self, node: Node) -> None:
        """Go down the terms of a sum; `node` is one of them, or what it is computed from linearly."""
        if node not in self._trained or node in self._seen:
            return
        self._seen.add(node)
        name = _name(node)
        below = [n for n in node.all_input_nodes if n in self._trained]
        if name in ("add", "sub") or (name in _LINEAR and len(below) == 1):
            for each in below:
                self.walk(each)
        elif name == "div" and len(below) == 2 and self._chosen(node.args[1]):
            self.found.unknown = True
        elif name in ("mul", "div") and len(below) == 1 and below[0] is node.args[0]:
            self._scaled(below[0], node.args[1], name)
        elif name == "mul" and len(below) == 1:
            self._scaled(below[0], node.args[0], name)
        elif (classes := self._classes(node)) is not None:
            self._add(classes)
        else:
            self._leaf(node)

    def _scaled(self, node: Node, by: Any, name: str) -> None:
        if not isinstance(by, Node) or by not in self._data:
            self.walk(node)
        elif name == "div" and (divisor := self._divisor(by)) is not None:
            self._add(divisor)
        elif name == "div" and _is_scalar(by):
            self.found.unknown = True
        elif inside := [*self._inside(by, floating=True)]:
            for divisor in inside:
                self._add(divisor)
        elif _is_scalar(by) and _name(by) == "reciprocal":
            self.found.unknown = True
        else:
            self.walk(node)

    def _leaf(self, node: Node) -> None:
        inside = [*self._inside(node, floating=False)]
        for divisor in inside:
            self._add(divisor)
        self.found.plain |= not inside and node in self._data

    def _inside(self, node: Node, floating: bool) -> Iterator[Divisor]:
        """Divisors within something that is not linear; sums of numbers are hardly counts there, sums of masks are."""
        for each in (node, *_ancestors(node)):
            name = _name(each)
            by = each.args[1] if name == "div" else each.args[0] if name == "reciprocal" else None
            divisor = self._divisor(by) if isinstance(by, Node) else self._classes(each)
            if divisor is not None and (floating or divisor.kind == "classes" or not _floating(divisor.over)):
                yield divisor

    def _add(self, divisor: Divisor) -> None:
        if divisor.over in self._drawn:
            self.found.unknown = True
        else:
            self.found.divisors.setdefault(divisor.key, divisor)

    def _divisor(self, node: Node) -> Divisor | None:
        """A number as a sum over the batch, without what keeps it from being 0."""
        if node in self._trained or node not in self._data or not _is_scalar(node):
            return None
        while _name(node) not in _SUMS:
            parts = [n for n in node.all_input_nodes if n in self._data]
            inner = {*parts[-1:]} if _name(node) == "where" else {*parts}
            if _name(node) not in (*_SAME, "clamp", "clamp_min", "maximum", "add", "where") or len(inner) != 1:
                return None
            node = inner.pop()
        kind, over = _name(node), node.args[0]
        assert isinstance(over, Node)
        while _name(over) in _SAME or (_name(over) == "sum" and kind == "sum"):
            over = over.all_input_nodes[0]
        return Divisor((kind == "mean", self._key(over)), kind, over)

    def _chosen(self, node: Any) -> bool:
        """Whether a number counts what the parameters choose: what is not NaN, or lies beyond a margin."""
        while isinstance(node, Node) and _name(node) not in _SUMS:
            below = [n for n in node.all_input_nodes if n in self._trained]
            if _name(node) not in (*_SAME, "clamp", "clamp_min", "maximum", "add") or len(below) != 1:
                return False
            node = below[0]
        over = node.args[0] if isinstance(node, Node) else None
        while isinstance(over, Node) and _name(over) in _SAME:
            over = over.all_input_nodes[0]
        return isinstance(over, Node) and over in self._data and not _floating(over)

    def _classes(self, node: Node) -> Divisor | None:
        """The targets of a mean over classes."""
        source = node.args[0] if _name(node) == "getitem" else node
        if not isinstance(source, Node) or _name(source) not in ("nll_loss_forward", "nll_loss2d_forward"):
            return None
        _, target, weight, reduction, ignored = cast(tuple[Any, ...], source.args)
        if reduction != _MEAN or not isinstance(target, Node) or target in self._trained or weight in self._trained:
            return None
        while _name(target) in _SAME:
            target = target.all_input_nodes[0]
        same = ("ne", self._key(target), str(ignored))  # as a mask of these targets would be
        key = (False, same) if weight is None else ("classes", same, self._key(weight))
        return Divisor(key, "classes", target, weight, ignored)

    def _key(self, node: Any) -> Any:
        """Equal for what is computed alike."""
        if not isinstance(node, Node):
            return str(node)
        if node not in self._keys:
            name = _name(node)
            parts = [self._key(part) for part in node.args]
            if node.op == "placeholder" or not parts:
                self._keys[node] = node.name
            elif name in _SAME:
                self._keys[node] = parts[0]
            elif name in ("bitwise_not", "logical_not") and parts[0][0] in ("eq", "ne"):
                self._keys[node] = ("ne" if parts[0][0] == "eq" else "eq", *parts[0][1:])
            else:
                self._keys[node] = (name, *parts)
        return self._keys[node]


def _influenced(graph: GraphModule, roots: set[Node]) -> set[Node]:
    """Nodes whose values depend on those of the roots."""
    found = set(roots)
    for node in graph.graph.nodes:
        if _name(node) not in (*_OF_KIND, *_OF_SHAPE) and any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _ancestors(node: Node) -> Iterator[Node]:
    seen, waiting = {node}, [node]
    while waiting:
        for each in waiting.pop().all_input_nodes:
            if each not in seen:
                seen.add(each)
                waiting.append(each)
                yield each


def _draws(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _name(node: Node) -> str:
    target: str | Callable[..., Any] = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return str(getattr(target, "__name__", target))


def _is_scalar(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0


def _floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
