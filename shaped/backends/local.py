"""Runs a proved graph on one rank's parts of its values, as a walk has placed them: op by op, or while it is traced.

Sizes in the graph are those of whole values everywhere; where an operation takes the size of an axis that is in parts,
it is given its share. Sums over the ranks are taken where the walk says, in the order of the graph, which is the same
on all ranks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from shaped.backends.values import Check, Checked, IndexArgument
from shaped.ranks.extents import extent, number_of
from shaped.ranks.placements import Held, Shard, part_of, whole_of
from shaped.ranks.walk import PlacementWalk, Task, operation

aten = torch.ops.aten


class Across(Protocol):
    """The ranks that have parts of one value."""

    rank: int
    size: int

    def total(self, t: Tensor) -> Tensor:
        """The sum over them, on all of them."""

    def extreme(self, t: Tensor, kind: str) -> Tensor:
        """The largest ("max") or smallest ("min") of each entry, on all of them."""

    def gather(self, part: Tensor) -> Tensor:
        """All parts, flat, one after another, on all of them."""


class LocalRun(Checked):
    """One run of a graph on this rank's parts.

    Args:
        walk: Of the graph.
        starts: How what it is called on lies: parameters in parts as they are, inputs whole.
        ends: How each result is to lie; None for what is no tensor.
        across: The ranks.
    """

    def __init__(
        self,
        walk: PlacementWalk,
        starts: Mapping[Node, Held],
        ends: Sequence[Held | None],
        across: Across,
        cuts: set[Node],
    ) -> None:
        super().__init__(walk.graph)
        self._walk, self._ends, self._across, self._cuts = walk, ends, across, cuts
        self._starts = starts
        self._sizes: dict[Any, Any] = {}  # of symbols
        self._checked = 0

    def run_node(self, n: Node) -> Any:
        """Run one node on parts."""
        if n.op == "placeholder":
            return self._placed(n, super().run_node(n))
        task = self._walk.tasks.get(n)
        if task is not None:
            self._sum(task.sums)
            self._make_whole(task.gathers)
        if n.op == "output":
            return self._ended(n)
        if n.op != "call_function":
            return super().run_node(n)
        if operation(n) in ("sym_size", "sym_numel"):
            return self._whole_size(n)
        return super().run_node(n) if task is None else self._run_task(n, task)

    def _sum(self, operands: Iterable[Node]) -> None:
        """Take sums that are due."""
        for operand in operands:
            self.env[operand] = self._across.total(self.env[operand])

    def _make_whole(self, operands: Mapping[Node, Shard]) -> None:
        """Gather what lies in parts."""
        for operand, shard in operands.items():
            part = self.env[operand]
            parts = self._across.gather(part.reshape(-1))
            before = number_of(shard.before, self._sizes)
            self.env[operand] = whole_of(parts, part.shape, shard.axis, before, self._across.size)

    def _of(self, node: Node, by: Node) -> Any:
        """A value that a node reads."""
        return self.env[node]

    def _placed(self, n: Node, value: Any) -> Any:
        held = self._starts.get(n)
        whole = n in self._cuts or not isinstance(held, Shard)
        if isinstance(value, Tensor):
            shape = list(value.shape)
            if not whole and isinstance(held, Shard):
                shape[held.axis] = shape[held.axis] * self._across.size
            self._learn(n, shape)
        return self._part(value, held) if n in self._cuts and isinstance(held, Shard) else value

    def _learn(self, n: Node, shape: Sequence[Any]) -> None:
        """Take sizes from the whole shape of an argument."""
        for size, length in zip(n.meta["val"].shape, shape, strict=True):
            number, symbol = extent(size).as_coeff_Mul()
            if symbol.is_Symbol:
                self._sizes.setdefault(symbol, length // int(number))

    def _part(self, value: Tensor, shard: Shard) -> Tensor:
        return part_of(value, shard.axis, number_of(shard.before, self._sizes), self._across.rank, self._across.size)

    def _whole_size(self, n: Node) -> Any:
        x: Any = n.args[0]
        value, held = self._of(x, n), self._walk.of(x)
        size = self._across.size if isinstance(held, Shard) else 1
        if operation(n) == "sym_numel":
            return value.numel() * size
        axis = int(n.args[1]) % value.dim()  # type: ignore[arg-type]
        return value.shape[axis] * (size if isinstance(held, Shard) and held.axis == axis else 1)

    def _run_task(self, n: Node, task: Task) -> Any:
        cuts = {operand: self._part(self._of(operand, n), shard) for operand, shard in task.cuts.items()}
        given: Any = map_arg((n.args, n.kwargs), lambda each: cuts[each] if each in cuts else self._of(each, n))
        args, kwargs = [*given[0]], given[1]
        for at, index in task.sizes:
            if index is None:
                args[at] = args[at] // self._across.size
            elif not (isinstance(args[at][index], int) and args[at][index] == -1):
                sizes = list(args[at])
                sizes[index] = sizes[index] // self._across.size
                args[at] = sizes
        if task.how:
            return HOW[task.how](self, n, args, kwargs)
        if operation(n) in ("view", "_unsafe_view"):
            return args[0].reshape(args[1])
        return self.call_function(n.target, tuple(args), kwargs)

    def _ended(self, n: Node) -> list[Any]:
        results: Any = n.args[0]
        return [
            self._at_end(result, end, self._of(result, n)) if isinstance(result, Node) else result
            for result, end in zip(results, self._ends, strict=True)
        ]

    def _at_end(self, result: Node, end: Held | None, value: Any) -> Any:
        """A result as it is to lie."""
        cut = isinstance(value, Tensor) and isinstance(end, Shard) and not isinstance(self._walk.of(result), Shard)
        return self._part(value, end) if cut and isinstance(end, Shard) else value

    def note(self, index: Tensor, operation_: str, size: Any, ignored: int | None = None) -> Tensor:
        """An index held to a whole size, and mended."""
        return self._in_range(operation_, index, IndexArgument(1, size, ignored=ignored))

    def whole_shape(self, n: Node, value: Tensor) -> list[Any]:
        """The shape of the whole of which a value is a part."""
        shape, held = list(value.shape), self._walk.of(n)
        if isinstance(held, Shard):
            shape[held.axis] = shape[held.axis] * self._across.size
        return shape

    @property
    def across(self) -> Across:
        """The ranks."""
        return self._across


How = Callable[[LocalRun, Node, list[Any], dict[str, Any]], Any]
HOW: dict[str, How] = {}


def how(name: str) -> Callable[[How], How]:
    """Register what is run in an operation's place."""

    def registered(function: How) -> How:
        HOW[name] = function
        return function

    return registered


@how("all of it")
def _all_of_it(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return args[0].view_as(args[0])


@how("divided")
def _divided(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return run.call_function(n.target, tuple(args), kwargs) / run.across.size


@how("largest")
def _largest(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _extreme(run, run.call_function(n.target, tuple(args), kwargs), "max")


@how("smallest")
def _smallest(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _extreme(run, run.call_function(n.target, tuple(args), kwargs), "min")


def _extreme(run: LocalRun, t: Tensor, kind: str) -> Tensor:
    """The largest or smallest over the ranks; NaN where some rank has one, which travels beside it.

    gloo compares a NaN away where it is not the first rank's.
    """
    if not t.is_floating_point():
        return run.across.extreme(t, kind)
    sign, lost = 1 if kind == "max" else -1, t.isnan()
    sent = torch.stack([torch.where(lost, -torch.inf, sign * t), lost.to(t.dtype)])
    value, some = run.across.extreme(sent, "max").unbind()
    return torch.where(some > 0, torch.nan, sign * value)


@how("summed and added")
def _summed_and_added(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    bias, a, b = args
    product = run.across.total(aten.mm.default(a, b)) * kwargs.get("alpha", 1)
    return product + bias * kwargs.get("beta", 1)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


@how("softmax of parts")
def _softmax(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x, dim, half_to_float = args
    wide = _wide(x)
    e = (wide - run.across.extreme(wide.amax(dim, keepdim=True), "max")).exp()
    out = e / run.across.total(e.sum(dim, keepdim=True))
    return out if half_to_float else out.to(x.dtype)


@how("log_softmax of parts")
def _log_softmax(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    x, dim, half_to_float = args
    wide = _wide(x)
    shifted = wide - run.across.extreme(wide.amax(dim, keepdim=True), "max")
    out = shifted - run.across.total(shifted.exp().sum(dim, keepdim=True)).log()
    return out if half_to_float else out.to(x.dtype)


@how("softmax backward of parts")
def _softmax_backward(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    grad, out, dim, dtype = _wide(args[0]), _wide(args[1]), args[2], args[3]
    product = grad * out
    return (product - out * run.across.total(product.sum(dim, keepdim=True))).to(dtype)


@how("log_softmax backward of parts")
def _log_softmax_backward(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    grad, out, dim, dtype = _wide(args[0]), _wide(args[1]), args[2], args[3]
    return (grad - out.exp() * run.across.total(grad.sum(dim, keepdim=True))).to(dtype)


def _own(run: LocalRun, index: Tensor, count: Any) -> tuple[Tensor, Tensor]:
    """Indices within this rank's part, and which were in it."""
    shifted = index - run.across.rank * count
    mine = (shifted >= 0) & (shifted < count)
    return torch.where(mine, shifted, 0), mine


@how("own rows")
def _own_rows(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    table, given = args[:2]
    index, size = (given[0], True) if isinstance(given, list | tuple) else (given, False)
    whole = table.shape[0] * run.across.size
    if size and index.dtype != torch.uint8:  # `index` counts from the end too
        right = (index >= -whole) & (index < whole)
        run.checks.append(Check("index", index, right, f"indices {-whole} to {whole - 1}"))
        index = torch.where(right, torch.where(index < 0, index + whole, index), 0)
    else:
        index = run.note(index, "embedding", whole)
    own, mine = _own(run, index, table.shape[0])
    rows = aten.index.Tensor(table, [own])
    mask = mine.reshape(*mine.shape, *[1] * (rows.dim() - mine.dim()))
    return torch.where(mask, rows, torch.zeros_like(rows))


@how("own classes")
def _own_classes(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    scores, target, _, reduction, ignored = args
    axis = min(1, scores.dim() - 1)
    count = scores.shape[axis]
    target = run.note(target, "nll_loss", count * run.across.size, ignored)
    counted = target != ignored
    own, mine = _own(run, target, count)
    picked = -scores.gather(axis, own.unsqueeze(axis)).squeeze(axis)
    each = torch.where(mine & counted, picked, torch.zeros_like(picked))
    total = counted.sum().to(scores.dtype)
    if reduction == 0:
        return each, scores.new_zeros(()) if scores.dim() > 1 else total
    summed = each.sum()
    return (summed / total if reduction == 1 else summed), total


@how("own classes backward")
def _own_classes_backward(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    grad, scores, target, _, reduction, ignored, total = args
    axis = min(1, scores.dim() - 1)
    count = scores.shape[axis]
    target = run.note(target, "nll_loss", count * run.across.size, ignored)
    own, mine = _own(run, target, count)
    share = -(grad / total if reduction == 1 else grad)
    each = torch.where(mine & (target != ignored), share, torch.zeros_like(share))
    return torch.zeros_like(scores).scatter(axis, own.unsqueeze(axis), each.unsqueeze(axis))


@how("drawn whole")
def _drawn_whole(run: LocalRun, n: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The numbers that one process would draw, of which this rank takes its part; so ranks draw alike."""
    x = args[0]
    held = run._walk.held[n]
    shard = held[0] if isinstance(held, tuple) else held
    assert isinstance(shard, Shard)
    shape = list(x.shape)
    shape[shard.axis] = shape[shard.axis] * run.across.size
    drawn = run.call_function(n.target, (x.new_ones(shape), *args[1:]), kwargs)
    if not isinstance(drawn, tuple | list):
        return run._part(drawn, shard)
    scale, mask = (run._part(one, shard) for one in drawn)
    return x * scale, mask
