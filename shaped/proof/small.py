"""Sizes of 1 (and 0), traced apart.

Tracers treat 1 in a special way, since it broadcasts, so a general trace stands for sizes of at least 2: not only of
the dimensions, but of every size that it meets, such as `seq - 1` or `height//2`. Each is traced again where it is
small.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from shaped.proof.arithmetic import holds
from shaped.proof.branches import equal_at
from shaped.proof.plans import sizes_of
from shaped.proof.rounded import whole
from shaped.proof.symbolic import Plan, World

_EXPRESSIONS = 24  # size expressions of one trace that are looked at
_WEAKER = 6  # facts that are tried instead of excluding a size
_SETS = 64  # sets of small sizes tried when all at once fails

# What the program needs under a plan beside given facts: None where it fails, EXCLUDED where those exclude the plan.
Needs = Callable[[Plan, Sequence[Any]], list[Any] | None]
EXCLUDED: list[Any] = []


@dataclass(frozen=True)
class Small:
    """A size that may be 1 or 0, and the plans under which it is, each of them."""

    size: Any
    plans: tuple[Plan, ...]


def small_dimensions(world: World, plan: Plan) -> list[Small]:
    """Each symbol at 1, and a quotient that leaves a rest at 0 too."""
    resting = {plan.quotient(name) for name in plan.multiples if plan.rests.get(name)}
    return [
        Small(
            symbol, tuple(replace(plan, constants={**plan.constants, name: n}) for n in (1, 0) if n or name in resting)
        )
        for symbol, name in world.symbols.items()
    ]


def small_expressions(world: World, plan: Plan, given: Sequence[Any]) -> list[Small]:
    """The size expressions of a trace that can be 1 or 0 where every dimension is at least 2."""
    factors: dict[Any, None] = {}
    for size in map(whole, sorted(world.mode.sizes, key=str)):
        for factor in sympy.Mul.make_args(sympy.factor(size)):
            base = factor.base if isinstance(factor, sympy.Pow) else factor
            if base.free_symbols and not base.is_Symbol and base not in factors and not base.has(sympy.Max, sympy.Min):
                factors[base] = None
    found = []
    for size in itertools.islice(factors, _EXPRESSIONS):
        if holds(sympy.Ge(size, 2), given):
            continue
        if not holds(sympy.Ge(size, 0), given):
            continue  # it may be negative too
        possible = [v for v in (1, 0) if not holds(sympy.Ne(size, v), given)]
        plans = [equal_at(size, value, world, plan) for value in possible]
        if all(some is not None for some in plans):
            found.append(Small(size, tuple(one for some in plans for one in some or [])))
    return found


def needed_of_small(plan: Plan, world: World, smalls: Sequence[Small], needs: Needs) -> list[Any]:
    """Trace each size where it is small, then all at once: facts that exclude what fails, one size of each set."""
    weaker = _true_of_large(world)
    needed: list[Any] = []
    good: list[Small] = []
    for small in smalls:
        found = {id(one): needs(one, needed) for one in small.plans}
        asking = [one for one in small.plans if found[id(one)] and not _vanishes(small, one, world)]
        bad = [one for one in small.plans if one not in asking and found[id(one)] != []]
        if not bad and not asking:
            good += [small] * bool(small.plans)
            continue
        fact = next((f for f in weaker if all(_passes(needs(one, [*needed, f])) for one in (*bad, *asking))), None)
        if fact is not None:
            needed.append(fact)
            continue
        needed += _excluding(world, plan, small, bad)
        for one in asking if len(bad) < len(small.plans) else ():
            elsewhere = [sympy.Not(sympy.And(*_at(world, plan, one)))]
            needed.append(sympy.Or(*elsewhere, sympy.And(*(found[id(one)] or []))))
    return needed + _needed_of_sets(plan, world, good, needs, needed)


def _vanishes(small: Small, one: Plan, world: World) -> bool:
    """Whether it is the quotient of a size below the divisor, which to sympy is never 0."""
    return small.size.is_Symbol and one.constants.get(world.symbols[small.size]) == 0


def _passes(found: list[Any] | None) -> bool:
    return found is not EXCLUDED and found == []


def _needed_of_sets(plan: Plan, world: World, good: Sequence[Small], needs: Needs, known: Sequence[Any]) -> list[Any]:
    """What sizes need that may each be small alone, where several are small at once."""
    needed: list[Any] = []
    failing: list[set[Any]] = []
    symbols, mixed = [small for small in good if small.size.is_Symbol], _compatible(plan, good)
    for members in [symbols, mixed] if len(good) > len(symbols) else [symbols]:
        if len(members) < 2 or all(_passes(needs(one, known)) for one in _all_at_once(plan, members)):
            continue
        sets = itertools.chain.from_iterable(itertools.combinations(members, n) for n in range(2, len(members) + 1))
        for some in itertools.islice(sets, _SETS):
            sizes = {small.size for small in some}
            if any(one <= sizes for one in failing):
                continue
            found = next(filter(lambda f: f != [], (needs(one, known) for one in _all_at_once(plan, some))), [])
            if found != []:
                failing.append(sizes)
                large = [_at_least_two(world, plan, small) for small in some]
                needed.append(sympy.Or(*large, sympy.And(*found)) if found else sympy.Or(*large))
    return needed


def _true_of_large(world: World) -> list[Any]:
    """What was asked and is so for all sizes of at least 2, but not for those of 1: `a*b >= 3`."""
    facts = [asked if answer else sympy.Not(asked) for asked, answer in world.env.decided.items()]
    orders = [fact for fact in facts if isinstance(fact, sympy.Ge | sympy.Gt | sympy.Le | sympy.Lt)]
    several = [fact for fact in orders if fact.free_symbols <= set(world.symbols) and len(fact.free_symbols) > 1]
    found = [fact for fact in several if holds(fact) and not holds(fact, least=dict.fromkeys(fact.free_symbols, 1))]
    return found[:_WEAKER]


def _at(world: World, plan: Plan, one: Plan) -> list[Any]:
    """The equations that a plan adds."""
    symbols = {name: symbol for symbol, name in world.symbols.items()}
    return [
        sympy.Eq(symbols[name], one.constants[name] if name in one.constants else world.expression(one.equal[name]))
        for name in sorted(_changed(plan, one))
    ]


def _compatible(plan: Plan, smalls: Sequence[Small]) -> list[Small]:
    """Expressions first, each at its first plan; then the dimensions that those leave free."""
    chosen: list[Small] = []
    taken: set[str] = set()
    fixed = plan
    for small in sorted(smalls, key=lambda s: s.size.is_Symbol):
        one = small.plans[0]
        names = _changed(plan, one)
        with_this = replace(plan, constants={**fixed.constants, **one.constants}, equal={**fixed.equal, **one.equal})
        if not names & taken and sizes_of(with_this.equal, with_this) is not None:
            chosen.append(small)
            taken |= names
            fixed = with_this
    return chosen


def _changed(plan: Plan, other: Plan) -> set[str]:
    return {n for n in other.constants if n not in plan.constants} | {n for n in other.equal if n not in plan.equal}


def _all_at_once(plan: Plan, smalls: Sequence[Small]) -> list[Plan]:
    """All of them at their first plans; where some have others, all at their last ones too."""
    found = []
    for which in (0, -1) if any(small.size.is_Symbol and len(small.plans) > 1 for small in smalls) else (0,):
        constants, equal = dict(plan.constants), dict(plan.equal)
        for small in smalls:
            chosen = small.plans[which if small.size.is_Symbol else 0]
            constants.update(chosen.constants)
            equal.update(chosen.equal)
        found.append(replace(plan, constants=constants, equal=equal))
    return [one for one in found if sizes_of(one.equal, one) is not None]  # or two sizes define each other


def _excluding(world: World, plan: Plan, small: Small, bad: Sequence[Plan]) -> list[Any]:
    """What excludes the plans that failed, as weak as it can be said."""
    if not bad:
        return []
    if len(bad) == len(small.plans):
        return [_at_least_two(world, plan, small)]
    symbols = {name: symbol for symbol, name in world.symbols.items()}
    return [  # unevaluated, since to sympy each symbol is above 0
        sympy.Ne(
            symbols[name],
            one.constants[name] if name in one.constants else world.expression(one.equal[name]),
            evaluate=False,
        )
        for one in bad
        for name in _changed(plan, one)
    ]


def _at_least_two(world: World, plan: Plan, small: Small) -> Any:
    """`seq >= 2`; `height >= 4` for height//2."""
    names = {name for one in small.plans for name in _changed(plan, one)}
    sizes = [one.constants[name] for one in small.plans for name in names if name in one.constants]
    if not small.size.is_Symbol and len(names) == 1 and len(sizes) == len(small.plans):
        symbols = {name: symbol for symbol, name in world.symbols.items()}
        return sympy.Ge(symbols[names.pop()], max(sizes) + 1)
    return sympy.Ge(small.size, 2)
