"""A view that gives one axis the place of another, and moves no data.

`x.view(seq, batch)` of `[batch, seq]` is well-shaped and mixes the sequences; so is `view(batch, heads, seq, head)` of
`[batch, seq, heads*head]`, where a transpose is forgotten. A view keeps the order of elements: axes may be split and
merged, but none can pass another. So both shapes are read in order, as products of names; where the next axis of one is
not a part of the next axis of the other, and comes later there as it is, it has been given a place that is not its own.

It is a fault where something asks which axis is which: another tensor, a result, a sum over one of them. Where all that
comes of it are numbers element by element and a sum over all of them, nothing does.

Numbers alone blame nothing, nor do sizes that are sums: `view(k + 1, q)` of `[q, k + 1]` shifts rows on purpose, and so
may what is viewed later in that function.
"""

import ast
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import sympy
from torch import Tensor

from shaped.proof.source import Operand

VIEWS = {"view", "reshape", "view_as", "reshape_as"}

Order = Literal["kept", "moved", "mixed"]
Factors = Mapping[Any, int]  # of a size, with their powers
# From a call's arguments: what is viewed, as which sizes, and the result.
Correction = Callable[..., tuple[Tensor, Sequence[Any], Tensor]]


def order(before: Sequence[Any], after: Sequence[Any], names: Any) -> Order:
    """What a view from one shape to the other does to the order of its axes.

    Args:
        before: Sizes as expressions.
        after: Sizes as expressions.
        names: The symbols that stand for dimensions.
    """
    first = [factors for size in before if (factors := _factors(size))]
    second = [factors for size in after if (factors := _factors(size))]
    left: list[dict[Any, int]] = [dict(factors) for factors in first]
    right: list[dict[Any, int]] = [dict(factors) for factors in second]
    i = j = 0
    while i < len(left) and j < len(right):
        common = {f: min(n, right[j][f]) for f, n in left[i].items() if f in right[j]}
        if not common:
            plain = all(f.is_Integer or f in names for factors in (*first, *second) for f in factors)
            passed = _whole(i, left, first) in second[j + 1 :] or _whole(j, right, second) in first[i + 1 :]
            return "moved" if plain and passed else "mixed"
        for one in (left[i], right[j]):
            for factor, power in common.items():
                one[factor] -= power
                if not one[factor]:
                    del one[factor]
        i, j = i + (not left[i]), j + (not right[j])
    return "kept"


@dataclass
class _Mark:
    """A tensor of a view that misplaces an axis, or what came of it element by element."""

    tensor: Tensor
    before: Sequence[Any]  # the sizes in the order that the elements have
    error: Exception
    used: bool = False


class Marks:
    """Tensors with an axis in the place of another, until something asks which axis is which."""

    def __init__(self) -> None:
        self._known: dict[int, _Mark] = {}

    def add(self, tensor: Tensor, before: Sequence[Any], error: Exception) -> None:
        """Remember a view."""
        self._known[id(tensor)] = _Mark(tensor, before, error)

    def follow(self, name: str, operands: Sequence[Tensor], results: Sequence[Tensor], sizes: Any, names: Any) -> None:
        """Look at an operation.

        Args:
            sizes: Gives a tensor's sizes as expressions.
            names: The symbols that stand for dimensions.

        Raises:
            Exception: What was remembered of a view, where the operation asks which axis is which.
        """
        marks = [self._known[id(t)] for t in operands if id(t) in self._known]
        if not marks:
            return
        for mark in marks:
            mark.used = True
        alone = len(marks) == sum(t.dim() > 0 for t in operands) and len(results) == 1
        if alone and results[0].dim() == 0:
            return
        after = sizes(results[0]) if alone else None
        if (
            after is not None
            and name in (*VIEWS, "flatten", "ravel")
            and order(marks[0].before, after, names) == "kept"
        ):
            return
        if after is None or name in VIEWS or after != sizes(marks[0].tensor):
            raise marks[0].error
        self._known[id(results[0])] = _Mark(results[0], marks[0].before, marks[0].error)

    def end(self) -> None:
        """Raise what was remembered of a view that is returned with an axis in the place of another."""
        for mark in self._known.values():
            if not mark.used:
                raise mark.error


def _whole(at: int, rest: Sequence[Factors], given: Sequence[Any]) -> Any:
    """An axis of which nothing was taken yet and that has a name; a mark that is no axis otherwise."""
    named = any(not factor.is_Integer for factor in given[at])
    return given[at] if named and dict(rest[at]) == dict(given[at]) else object()


def _factors(size: Any) -> dict[Any, int]:
    """A size as a product of names, primes and whatever else."""
    found: dict[Any, int] = {}
    for factor, power in sympy.sympify(size).as_powers_dict().items():
        if factor.is_Integer and factor > 0 and power == 1:
            for prime, times in sympy.factorint(int(factor)).items():
                found[sympy.Integer(prime)] = found.get(sympy.Integer(prime), 0) + times
        elif power.is_Integer and power > 0:
            found[factor] = found.get(factor, 0) + int(power)
        else:
            found[factor**power] = 1
    return found


def corrections(operand: Operand, text: str) -> Iterator[tuple[str, Correction]]:
    """How a view may have been meant: as it is written, and what computes it from the call's arguments.

    Args:
        operand: What is viewed.
        text: The call.
    """
    tree = ast.parse(f"({text})", mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Attribute) or tree.keywords:
        return
    owner, way = ast.get_source_segment(f"({text})", tree.func.value), tree.func.attr
    nodes = tree.args
    if len(nodes) == 1 and isinstance(nodes[0], ast.Tuple | ast.List):
        nodes = nodes[0].elts
    written = [ast.unparse(node) for node in nodes]
    if way not in ("view", "reshape") or any(text.startswith("*") for text in written):
        return
    for a, b in itertools.combinations(range(operand.tensor.dim()), 2):
        shown = f"{owner}.transpose({a}, {b}).reshape({', '.join(written)})"
        yield shown, partial(_transposed_first, a, b)
    for a, b in itertools.combinations(range(len(written)), 2):
        shown = f"{owner}.{way}({', '.join(_exchanged(written, a, b))}).transpose({a}, {b})"
        yield shown, partial(_transposed_last, a, b)


def _exchanged(items: Sequence[Any], a: int, b: int) -> list[Any]:
    found = list(items)
    found[a], found[b] = found[b], found[a]
    return found


def _transposed_first(a: int, b: int, x: Tensor, *shape: Any) -> tuple[Tensor, Sequence[Any], Tensor]:
    turned, sizes = x.transpose(a, b), x.reshape(*shape).shape
    return turned, sizes, turned.reshape(sizes)


def _transposed_last(a: int, b: int, x: Tensor, *shape: Any) -> tuple[Tensor, Sequence[Any], Tensor]:
    order = _exchanged(x.reshape(*shape).shape, a, b)
    return x, order, x.reshape(order).transpose(a, b)
