"""The branch that a trace did not take: is the question trivial, and is the program well-shaped there too?

A trace answers each question by its hints and so takes one branch. If a fact is true for every size, or the other
branch goes through as well, the fact is no condition.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import sympy

from shaped.proof.plans import hints_where
from shaped.proof.symbolic import Plan, World
from shaped.shapes import Dim

Run = Callable[[Plan], World | None]  # the forward pass under a plan; None where it fails

_FIRST, _FAR, _PERIOD = 2, 10**9, 720720  # 720720 is divisible by every number up to 16
_SEARCHED, _WITNESSES = 64, 16


def always(fact: Any) -> bool:
    """Whether a relation over one size holds for all sizes of at least 2.

    Both sides are polynomials, floor divisions and remainders by constants, so their difference is a polynomial for
    each residue: it is enough that the relation holds over the first sizes and around a far one.
    """
    symbols = list(fact.free_symbols)
    if len(symbols) != 1:
        return False
    near = range(_FIRST, 600)
    far = range(_FAR, _FAR + _PERIOD, 1009)
    return all(fact.subs(symbols[0], size) == sympy.true for size in itertools.chain(near, far))


def both_ways(fact: Any, world: World, plan: Plan, run: Run) -> bool:
    """Whether the program is well-shaped where `fact`, which held at the hints, is false."""
    if isinstance(fact, sympy.Ne):
        return _when_equal(fact, world, plan, run)
    hints = hints_where(fact, world, plan, sympy.false)
    if hints is None:
        return False
    other = run(replace(plan, hints=hints))
    if other is None:
        return False
    known = {world.show(question.fact) for question in world.env.asked}
    new = [q.fact for q in other.env.asked if other.show(q.fact) not in known and not always(q.fact)]
    opposite = other.show(sympy.Not(_translated(fact, world, other)))
    return all(other.show(extra) == opposite for extra in new)


def _when_equal(fact: Any, world: World, plan: Plan, run: Run) -> bool:
    """Put a = b where `a != b` was found: by substitution, or at each of the few sizes that make it so."""
    for left, right in (fact.args, fact.args[::-1]):
        name = world.symbols.get(left)
        if name is None or left in right.free_symbols:
            continue
        if right.is_Integer:
            constant = {**plan.constants, name: int(right)}
            return int(right) < 1 or run(replace(plan, constants=constant)) is not None  # sizes are at least 1
        if name not in plan.multiples and name in plan.hints:
            return run(replace(plan, equal={**plan.equal, name: Dim.parse(world.show(right))})) is not None
    found = list(itertools.islice(_solutions(fact, world), _WITNESSES + 1))
    return 0 < len(found) <= _WITNESSES and all(
        run(replace(plan, constants={**plan.constants, **sizes})) is not None for sizes in found
    )


def _solutions(fact: Any, world: World) -> Iterator[dict[str, int]]:
    """Sizes up to a bound at which the fact is false; size 1 is traced apart."""
    symbols = [symbol for symbol in fact.free_symbols if symbol in world.symbols]
    if not 1 <= len(symbols) <= 2 or len(symbols) != len(fact.free_symbols):
        return
    for sizes in itertools.product(range(2, _SEARCHED), repeat=len(symbols)):
        if fact.subs(dict(zip(symbols, sizes, strict=True))) == sympy.false:
            yield {world.symbols[symbol]: size for symbol, size in zip(symbols, sizes, strict=True)}


def _translated(fact: Any, world: World, other: World) -> Any:
    """A fact of one world in the symbols of another."""
    symbols = {name: symbol for symbol, name in other.symbols.items()}
    return fact.xreplace({s: symbols[name] for s, name in world.symbols.items() if name in symbols})
