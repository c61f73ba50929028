"""From what a trace asked to another plan: divisible size hints, or others in order, dim = heads*(dim//heads)."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import ne
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv

from shaped.proof.arithmetic import divisions, flat, value_at
from shaped.proof.relations import without_maximum
from shaped.proof.symbolic import Plan, World
from shaped.shapes import Dim

# Sizes to try where a question must come out the other way; torch's own thresholds are small powers of two.
# Far apart and without small relations first, so that no two sizes meet by accident.
_MORE = (6, 9, 10, 12, 14, 16, 22, 26, 34)
_DRAWS = 400
_QUOTIENT, _MOST = 4, 10**6  # what a large divisor is to leave, and the largest that is looked at
_ORDER = sympy.Le | sympy.Lt | sympy.Ge | sympy.Gt
_FINEST = 12  # a multiple of a multiple
_RESTS = 4  # divisors up to this one are tried at every rest
_TRIED = (53, 211, 1009, 4001, 15, 8, 7, 5, 4, 3, 2)


def with_multiple(plan: Plan, multiple: tuple[str, Dim]) -> Plan:
    name, divisor = multiple
    return replace(plan, multiples={**plan.multiples, name: divisor})


def divided(plan: Plan, multiple: tuple[str, Dim], sizes: Mapping[str, int]) -> Plan | None:
    """n = 4*(n//4) + rest as it is at these sizes; n = 5 where a quotient is below 2; None where it cannot be said."""
    name, divisor = multiple
    by = divisor.evaluate(sizes)
    quotient, rest = divmod(sizes[name], by) if by > 0 else (0, 1)
    if rest and divisor.constant is None:
        return None
    others = {n: dim for n, dim in plan.multiples.items() if n != name}
    rests = {n: number for n, number in plan.rests.items() if n != name}
    if quotient < 2:
        plan = replace(plan, multiples=others, rests=rests)
        if divisor.constant is not None:
            return replace(plan, constants={**plan.constants, name: sizes[name]})
        return replace(plan, equal={**plan.equal, name: divisor})
    rests |= {name: rest} if rest else {}
    return replace(
        plan, multiples={**others, name: divisor}, rests=rests, size_hints={**plan.size_hints, name: quotient}
    )


def without_small_quotients(plan: Plan) -> Plan:
    """n = 4*(n//4) + 1 where n//4 is 2, as n = 9."""
    for name, divisor in plan.multiples.items():
        quotient = plan.constants.get(plan.quotient(name))
        if quotient is not None and divisor.constant is not None:
            size = divisor.constant * quotient + plan.rests.get(name, 0)
            constants = {n: number for n, number in plan.constants.items() if n != plan.quotient(name)}
            multiples = {n: dim for n, dim in plan.multiples.items() if n != name}
            rests = {n: rest for n, rest in plan.rests.items() if n != name}
            plan = replace(plan, constants={**constants, name: size}, multiples=multiples, rests=rests)
    return plan


def sizes_of(names: Iterable[str], plan: Plan) -> dict[str, int] | None:
    """The sizes that a plan traces with; None where two of them define each other."""
    sizes: dict[str, int] = {}

    def size(name: str, before: tuple[str, ...]) -> int:
        if name in before:
            raise RecursionError
        if name in plan.constants:
            sizes[name] = plan.constants[name]
        elif name in plan.equal:
            dim = plan.equal[name]
            sizes[name] = dim.evaluate({n: size(n, (*before, name)) for n in dim.names})
        elif name in plan.multiples:
            dim = plan.multiples[name]
            by = dim.evaluate({n: size(n, (*before, name)) for n in dim.names})
            sizes[name] = by * plan.constants.get(plan.quotient(name), plan.size_hints[name]) + plan.rests.get(name, 0)
        else:
            sizes[name] = plan.size_hints[name]
        return sizes[name]

    try:
        return {name: size(name, ()) for name in names}
    except (RecursionError, ZeroDivisionError):
        return None


def splits(world: World, plan: Plan, sizes: Mapping[str, int]) -> list[Plan]:
    """Plans of the same sizes, each with one of those divided that the last questions divided."""
    plans: list[Plan | None] = []
    for asked, _ in reversed(world.env.answers):
        for atom in _in_order(divisions(flat(asked)), world):
            over, under = atom.args
            divisor = world.dim(under)
            for name in (world.symbols.get(s, "") for s in over.free_symbols):
                if divisor is not None and plan.is_free(name) and name not in _names(under, world):
                    plans.append(divided(plan, (name, divisor), sizes))
            for name, coarse in plan.multiples.items() if under.is_Integer else ():
                quotient = any(world.symbols.get(s) == plan.quotient(name) for s in over.free_symbols)
                if quotient and coarse.constant is not None and coarse.constant * under <= _FINEST:
                    plans.append(divided(plan, (name, Dim(str(coarse.constant * under))), sizes))
    return [by for by in plans if by is not None]


def repairs(world: World, plan: Plan) -> list[Plan]:
    """Other plans under which the last questions would be answered the other way."""
    rests_only: list[Plan] = [
        replace(plan, rests={**plan.rests, name: rest})
        for name, divisor in plan.multiples.items()
        for rest in range(1, divisor.constant if divisor.constant and divisor.constant <= _RESTS else 1)
        if name not in plan.rests
    ]
    plans: list[Plan] = []
    for asked, _ in reversed(world.env.answers):
        for atom in _in_order(divisions(flat(asked)), world):
            over, under = atom.args
            name = world.symbols.get(over)
            base = name or next((world.symbols[s] for s in over.free_symbols if s in world.symbols), None)
            if base in plan.size_hints and base not in plan.multiples and base not in _names(under, world):
                divisor = world.dim(under)
                if divisor is None:
                    continue
                by = with_multiple(plan, (str(base), divisor))
                number = int(under) if under.is_Integer else 1
                own = plan.size_hints[str(base)] % number  # as where a run went through
                rests = sorted(range(1, number if number <= _RESTS else 1), key=partial(ne, own))
                others = [replace(by, rests={**by.rests, str(base): rest}) for rest in rests]
                whole = [by] * (name is not None or under.is_Integer)
                plans += [*others, *whole] if own else [*whole, *others]
            elif under.is_Integer and (finer := _finer(over, int(under), world, plan)):
                plans += finer
            elif under.is_Integer and 1 < int(under) < 10**6:
                factor = int(under)
                if any(hint % factor for hint in plan.size_hints.values()):
                    divisible = {n: h * factor // math.gcd(h, factor) for n, h in plan.size_hints.items()}
                    plans.append(replace(plan, size_hints=divisible))
    for question in reversed(world.env.asked):
        size_hints = size_hints_where(question.fact, world, plan, sympy.false)
        if size_hints is not None and not isinstance(question.fact, sympy.Eq | sympy.Ne):
            plans.append(replace(plan, size_hints=size_hints))
    return plans + rests_only


def larger(world: World, plan: Plan) -> list[Plan]:
    """Larger hints for what was divided by a large number, so that the quotient is 4 at least: n = 1008 for n//200.

    A quotient of 0 or 1 is a size apart, and what a trace says of it holds for few sizes.
    """
    hints = dict(plan.size_hints)
    for asked, _ in world.env.answers:
        for atom in divisions(asked):
            over, under = atom.args
            for name in (world.symbols.get(s, "") for s in over.free_symbols if under.is_Integer and under < _MOST):
                if plan.is_free(name) and hints[name] < _QUOTIENT * int(under):
                    hints[name] *= -(-_QUOTIENT * int(under) // hints[name])
    return [replace(plan, size_hints=hints)] if hints != plan.size_hints else []


def _finer(over: Any, under: int, world: World, plan: Plan) -> list[Plan]:
    """Where the quotient of a multiple is divided again: n = 4*(n//4) + rest for n = 2*(n//2)."""
    for name, divisor in plan.multiples.items():
        quotient = next((s for s in over.free_symbols if world.symbols.get(s) == plan.quotient(name)), None)
        coarse = divisor.constant
        if quotient is None or coarse is None or not 1 < coarse * under <= _FINEST:
            continue
        rests = (plan.rests.get(name, 0) + coarse * rest for rest in range(under))
        by = replace(plan, multiples={**plan.multiples, name: Dim(str(coarse * under))})
        return [replace(by, rests={**by.rests, name: rest}) for rest in rests]
    return []


def size_hints_where(
    fact: Any, world: World, plan: Plan, wanted: Any, given: Sequence[Any] = ()
) -> Mapping[str, int] | None:
    """Hints that make a relation over sizes true or false and keep what is given; None if none are found.

    The sizes that the relation speaks of are changed, and only where that is not enough those of the given ones too.
    """
    symbols = [symbol for symbol in fact.free_symbols if symbol in world.symbols]
    if not symbols or len(symbols) != len(fact.free_symbols) or len(symbols) > len(_TRIED):
        return None
    beyond = [int(n) for n in fact.atoms(sympy.Integer) if _TRIED[3] < n < 2**31]  # a threshold of torch's
    near = [size for n in beyond for size in (n - n % _FINEST + 2 * _FINEST, n + 11)]  # a divisible one first
    grid = itertools.product((*_TRIED, *near), repeat=len(symbols)) if len(symbols) <= 2 else _staircases(len(symbols))
    more = sorted({s for g in given for s in g.free_symbols if s in world.symbols}.union(symbols), key=str)
    generator = random.Random(0)
    count = _DRAWS if len(symbols) > 2 or len(more) > len(symbols) else 0
    draws = ([generator.choice((*_TRIED, *_MORE)) for _ in more] for _ in range(count))
    alike = [(symbols, (2,) * len(symbols))] if len(symbols) > 2 else []  # where no different ones are small enough
    edge: Mapping[str, int] | None = None  # where both sides of an inequality are equal: it is that by accident
    for names, sizes in itertools.chain(((symbols, s) for s in grid), ((more, s) for s in draws), alike):
        chosen = {**world.size_hints, **dict(zip(names, sizes, strict=True))}
        kept = all(value_at(g, chosen) == sympy.true for g in given if g.free_symbols <= set(chosen))
        apart = len(set(sizes)) == len(sizes) or (names, sizes) in alike
        if kept and apart and value_at(fact, chosen) == wanted:
            base = {plan.quotient(name): name for name in plan.multiples}
            changed = {world.symbols[s]: size for s, size in zip(names, sizes, strict=True)}
            found = {**plan.size_hints, **{base.get(name, name): size for name, size in changed.items()}}
            if not isinstance(fact, _ORDER) or value_at(sympy.Eq(*fact.args), chosen) != sympy.true:
                return found
            edge = edge or found
    return edge


def needed_multiple(fact: Any, number: bool, world: World) -> tuple[str, Dim] | None:
    """A name that a true equality needs to be divisible, since it occurs there floor-divided or as a remainder.

    Likewise for a size that is read as a plain number, which it may be for the multiples: the parts of a chunk.
    """
    plan = world.plan
    if not number and (not isinstance(fact, sympy.Eq) or _is_of_range(fact)):
        return None
    for atom in _in_order(divisions(fact), world):
        over, under = atom.args
        alone = next((s for s in over.free_symbols if (over - s).is_Integer), None) if number else None
        over = over if alone is None else alone
        name = world.symbols.get(over)
        if name is None or name not in plan.size_hints or name in plan.multiples or name in plan.constants:
            continue
        if name in _names(under, world) or world.env.replace(over) != over:
            continue
        divisor = world.dim(under)
        if divisor is not None and all(n in plan.size_hints or n in plan.constants for n in _names(under, world)):
            return name, divisor
    return None


def _is_of_range(fact: Any) -> bool:
    """Whether it is so for a range of sizes, whatever the rests: n//9 == 1, m*(n//200) == 0, max(1, n//2) == n//2."""
    if not isinstance(without_maximum(fact), sympy.Eq):
        return True
    size, number = fact.args
    factors = sympy.Mul.make_args(size) if number == 0 else (size,)
    return bool(number.is_Integer and any(type(factor) is FloorDiv and factor.args[1].is_Integer for factor in factors))


def _staircases(count: int) -> Iterator[tuple[int, ...]]:
    """For many names, neighbours of the list only: all large, ..., all small."""
    return (_TRIED[i : i + count] for i in range(len(_TRIED) - count + 1))


def _in_order(atoms: Iterable[Any], world: World) -> list[Any]:
    """In the order of the names that they speak of, so that a statement is the same in each process."""
    order = {symbol: i for i, symbol in enumerate(world.symbols)}
    return sorted(atoms, key=lambda atom: (min((order.get(s, 99) for s in atom.free_symbols), default=99), str(atom)))


def _names(expression: Any, world: World) -> set[str]:
    return {world.symbols[symbol] for symbol in expression.free_symbols if symbol in world.symbols}
