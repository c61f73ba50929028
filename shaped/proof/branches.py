"""The branch that a trace did not take: is the question trivial, and is the program well-shaped there too?

A trace answers each question by its hints and so takes one branch. If a fact is true for every size, or the other
branch goes through as well, the fact is no condition.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import sympy

from shaped.proof.plans import hints_where, value_at
from shaped.proof.symbolic import Plan, World
from shaped.shapes import Dim

Run = Callable[[Plan], World | None]  # the forward pass under a plan; None where it fails

_SEARCHED, _WITNESSES = 64, 16
_DEPTH = 2


def always(fact: Any) -> bool:
    """Whether a relation over one size holds for all sizes of at least 2.

    Decided where both sides are linear in the size and in floor divisions or remainders of it by numbers: for each
    residue of their common period the difference of the sides is then a line, d(2 + r + period*j) = start + rise*j.
    """
    symbols = list(fact.free_symbols)
    if len(symbols) != 1 or not isinstance(fact, sympy.Le | sympy.Lt | sympy.Ge | sympy.Gt | sympy.Ne):
        return False
    difference = fact.lhs - fact.rhs
    if isinstance(fact, sympy.Ge | sympy.Gt):
        difference = -difference
    period = _period(difference, symbols[0])
    if period is None:
        return False
    for size in range(2, 2 + period):
        start = difference.subs(symbols[0], size)
        rise = difference.subs(symbols[0], size + period) - start
        if isinstance(fact, sympy.Ne):
            meets = start == 0 if rise == 0 else (-start / rise).is_Integer and -start / rise >= 0
            if meets:
                return False
        elif rise > 0 or start > 0 or (start == 0 and isinstance(fact, sympy.Lt | sympy.Gt)):
            return False
    return True


def _period(difference: Any, symbol: Any) -> int | None:
    """The common period of the floor divisions and remainders, if all is linear but for them."""
    parts = [atom for atom in difference.atoms(sympy.Function) if atom.has(symbol)]
    plain = all(
        type(part).__name__ in ("FloorDiv", "Mod", "PythonMod")
        and part.args[1].is_Integer
        and int(part.args[1]) > 0
        and not part.args[0].atoms(sympy.Function)
        and sympy.Poly(part.args[0], symbol).degree() <= 1
        for part in parts
    )
    period = math.lcm(*(int(part.args[1]) for part in parts)) if plain else 0
    if not 0 < period <= 512:
        return None
    stand_ins = {part: sympy.Dummy(integer=True) for part in parts}
    flat = sympy.expand(difference.xreplace(stand_ins))
    linear = flat.is_polynomial() and sympy.Poly(flat, symbol, *stand_ins.values()).total_degree() <= 1
    return period if linear else None


def other_branches(fact: Any, world: World, plan: Plan, run: Run, depth: int = _DEPTH) -> list[Plan] | None:
    """Plans under which `fact`, true at the hints, is false, if the program is well-shaped under each; else None.

    What such a run asks and the first did not is settled in the same way; where that goes too deep, it does not count.
    """
    plans = _opposite_plans(fact, world, plan)
    for other in plans or []:
        found = run(other)
        if found is None or not all(
            depth > 0 and other_branches(extra, found, other, run, depth - 1) is not None
            for extra in _more(found, world, fact)
        ):
            return None
    return plans


def _more(found: World, world: World, fact: Any) -> list[Any]:
    """What a run asked that the first one did not, neither as such nor the other way round."""
    known = [question.fact for question in world.env.asked] + [fact]
    texts = {world.show(other) for other in known}
    texts |= {found.show(sympy.Not(_translated(other, world, found))) for other in known}
    return [q.fact for q in found.env.asked if found.show(q.fact) not in texts and not always(q.fact)]


def _opposite_plans(fact: Any, world: World, plan: Plan) -> list[Plan] | None:
    """One plan with other hints for an inequality; for `a != b` the substitution, or each of the few sizes."""
    if not isinstance(fact, sympy.Ne):
        few = list(itertools.islice(_solutions(fact, world), _WITNESSES + 1)) if len(fact.free_symbols) == 2 else []
        if 0 < len(few) <= _WITNESSES:
            return [replace(plan, constants={**plan.constants, **sizes}) for sizes in few]
        hints = hints_where(fact, world, plan, sympy.false)
        return None if hints is None else [replace(plan, hints=hints)]
    for left, right in (fact.args, fact.args[::-1]):
        name = world.symbols.get(left)
        if name is None or left in right.free_symbols:
            continue
        if right.is_Integer:  # a size is at least 1
            return [replace(plan, constants={**plan.constants, name: int(right)})] if int(right) > 0 else []
        if name not in plan.multiples and name in plan.hints:
            return [replace(plan, equal={**plan.equal, name: Dim.parse(world.show(right))})]
    found = list(itertools.islice(_solutions(fact, world), _WITNESSES + 1))
    if not 0 < len(found) <= _WITNESSES:
        return None
    return [replace(plan, constants={**plan.constants, **sizes}) for sizes in found]


def together(base: Plan, a: Plan, b: Plan) -> Plan | None:
    """Two changes of one plan at once; None where they concern the same name."""
    changes = [
        {name for kind in ("hints", "constants", "equal") for name in _changed(getattr(base, kind), getattr(p, kind))}
        for p in (a, b)
    ]
    if changes[0] & changes[1]:
        return None
    hints = {**base.hints, **_changed(base.hints, a.hints), **_changed(base.hints, b.hints)}
    return replace(base, hints=hints, constants={**a.constants, **b.constants}, equal={**a.equal, **b.equal})


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if before.get(name) != value}


def _solutions(fact: Any, world: World) -> Iterator[dict[str, int]]:
    """Sizes up to a bound at which the fact is false and one-sided bounds (`height >= 3`) hold; 1 is traced apart."""
    symbols = [symbol for symbol in fact.free_symbols if symbol in world.symbols]
    if not 1 <= len(symbols) <= 2 or len(symbols) != len(fact.free_symbols):
        return
    asked = [question.fact for question in world.env.asked if question.fact != fact]
    bounds = [f for f in asked if len(f.free_symbols) == 1 and isinstance(f, sympy.Le | sympy.Lt | sympy.Ge | sympy.Gt)]
    for sizes in itertools.product(range(2, _SEARCHED), repeat=len(symbols)):
        chosen = dict(zip(symbols, sizes, strict=True))
        within = all(value_at(bound, chosen) != sympy.false for bound in bounds)
        if within and value_at(fact, chosen) == sympy.false:
            yield {world.symbols[symbol]: size for symbol, size in zip(symbols, sizes, strict=True)}


def _translated(fact: Any, world: World, other: World) -> Any:
    """A fact of one world in the symbols of another."""
    symbols = {name: symbol for symbol, name in other.symbols.items()}
    return fact.xreplace({s: symbols[name] for s, name in world.symbols.items() if name in symbols})
