"""The axes of parameters as they move through a program: split and merged by views, cut, repeated, contracted.

A dimension of a tensor is a row of factors, the outermost first; one of size 1 has none. A factor knows which parts of
parameters' axes lie along it. Sizes are compared by their size hints (each name has one of its own) and kept as
expressions, so that they can be told at the parameters' real sizes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

NONE: "frozenset[AxisPart]" = frozenset()


@dataclass(eq=False)
class AxisPart:
    """An axis of a parameter, a factor of one, or a stretch of one."""

    parameter: int
    size: int  # at the size hints
    expr: Any
    factors: "list[AxisPart] | None" = None
    stretches: "dict[tuple[int, int], AxisPart]" = field(default_factory=dict)
    ends: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)
    cuts: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)  # of what it makes, apart
    picked: set[int] = field(default_factory=set)  # entries that are taken out one by one

    def stretch(self, start: tuple[int, Any], stop: tuple[int, Any]) -> "AxisPart":
        """A stretch of it."""
        key = (start[0], stop[0])
        if key not in self.stretches:
            self.stretches[key] = AxisPart(self.parameter, key[1] - key[0], stop[1] - start[1])
            self.ends[key] = (start[1], stop[1])
        return self.stretches[key]

    def leaves(self) -> "list[AxisPart]":
        """Its factors' factors."""
        return [self] if self.factors is None else [leaf for part in self.factors for leaf in part.leaves()]

    def everything(self) -> "Iterator[AxisPart]":
        """Itself, its factors and its stretches, and theirs."""
        yield self
        for part in (*(self.factors or ()), *self.stretches.values()):
            yield from part.everything()


@dataclass(eq=False)
class Application:
    """One use of weights on activations: what each part of their axes is there."""

    node: Any
    roles: dict[AxisPart, str] = field(default_factory=dict)
    entrywise: bool = False  # multiplied entry by entry, not contracted

    def note(self, parts: Iterable[AxisPart], role: str) -> None:
        """Say what parts are here."""
        for part in parts:
            self.roles[part] = role


@dataclass(frozen=True)
class Factor:
    """A factor of a dimension.

    Attributes:
        parts: Parts of parameters' axes that lie along it.
        wide: All entries along it are the same: it was expanded.
        uses: The applications that it comes from, with nothing but views and biases since.
    """

    size: int
    expr: Any
    parts: frozenset[AxisPart] = NONE
    wide: bool = False
    uses: frozenset[Application] = frozenset()


Dim = tuple[Factor, ...]


def plain(size: int, expr: Any) -> Dim:
    """A dimension along which no parameter lies."""
    return () if size == 1 else (Factor(size, expr),)


def bare(dim: Dim) -> Dim:
    """The dimension without what it knew of parameters."""
    return tuple(replace(factor, parts=NONE, uses=frozenset()) for factor in dim)


def size_of(dim: Dim) -> int:
    """How long a dimension is, at the size hints."""
    total = 1
    for factor in dim:
        total *= factor.size
    return total


def split(factor: Factor, size: int, expr: Any) -> tuple[Factor, Factor] | None:
    """A factor as two, the outer one of this size; None where its parts are split otherwise."""
    rest, quotient = factor.size // size, sympy.cancel(factor.expr / expr)
    outer: set[AxisPart] = set()
    inner: set[AxisPart] = set()
    for part in factor.parts:
        found = _two(part, (size, expr), (rest, quotient)) if part.size == factor.size else None
        if found is None:
            return None
        outer.add(found[0])
        inner.add(found[1])
    a = replace(factor, size=size, expr=expr, parts=frozenset(outer))
    return a, replace(factor, size=rest, expr=quotient, parts=frozenset(inner))


def _two(part: AxisPart, outer: tuple[int, Any], inner: tuple[int, Any]) -> tuple[AxisPart, AxisPart] | None:
    """A part's two factors; None where it was split otherwise."""
    if part.factors is None:
        part.factors = [AxisPart(part.parameter, *outer), AxisPart(part.parameter, *inner)]
    first, second = part.factors
    if first.size == outer[0]:
        return first, second
    if first.size > outer[0] and first.size % outer[0] == 0 and first.factors is None:
        within = AxisPart(part.parameter, *inner)  # [3, heads*dh] of what was [3*heads, dh]
        within.factors = [AxisPart(part.parameter, first.size // outer[0], sympy.cancel(first.expr / outer[1])), second]
        part.factors = [AxisPart(part.parameter, *outer), within]
        return part.factors[0], within
    return None


def same_factors(dims: Sequence[Dim]) -> "list[Dim] | None":
    """Dimensions of one size, each split as finely as all need; those of size 1 stay; None where that cannot be."""
    rows = [list(dim) for dim in dims]
    done: list[list[Factor]] = [[] for _ in dims]
    while any(rows):
        heads = [row[0] for row in rows if row]
        least = min(head.size for head in heads)
        expr = next(head.expr for head in heads if head.size == least)
        for row, out in zip(rows, done, strict=True):
            if not row:
                continue
            head = row.pop(0)
            if head.size != least:
                both = split(head, least, expr) if head.size % least == 0 else None
                if both is None:
                    return None
                head, rest = both
                row.insert(0, rest)
            out.append(head)
    return [tuple(out) for out in done] if len({len(out) for out in done if out}) <= 1 else None


def reshaped(dims: Sequence[Dim], sizes: Sequence[tuple[int, Any]]) -> "list[Dim] | None":
    """What a view of other sizes has for dimensions; None where the boundaries do not fit."""
    waiting = [factor for dim in dims for factor in dim]
    made: list[Dim] = []
    for size, expr in sizes:
        dim: list[Factor] = []
        left, over = size, expr
        while left > 1:
            if not waiting:
                return None
            head = waiting.pop(0)
            if left % head.size == 0:
                dim.append(head)
                left, over = left // head.size, sympy.cancel(over / head.expr)
                continue
            both = split(head, left, over) if head.size % left == 0 else None
            if both is None:
                return None
            dim.append(both[0])
            waiting.insert(0, both[1])
            left = 1
        made.append(tuple(dim))
    return None if waiting else made


def joined(dims: Sequence[Dim], fresh: bool) -> "Dim | None":
    """What an operation entry by entry makes of dimensions that are broadcast against each other."""
    aligned = same_factors(dims)
    if aligned is None:
        return None
    rows = [row for row in aligned if row]
    made = []
    for factors in zip(*rows, strict=True):
        parts = frozenset().union(*(factor.parts for factor in factors))
        uses = frozenset().union(*(factor.uses for factor in factors)) if fresh else frozenset()
        wide = all(factor.wide for factor in factors)
        made.append(Factor(factors[0].size, factors[0].expr, parts, wide, uses))
    return tuple(made)
