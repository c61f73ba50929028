"""The branch that a trace did not take: is the program well-shaped there too?

A trace answers each question by its size hints and so takes one branch. If a fact is true for every size, or the other
branch goes through as well, the fact is no condition.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from shaped.proof.arithmetic import divides, divisions, holds, value_at
from shaped.proof.limits import hold_limits
from shaped.proof.plans import size_hints_where, sizes_of
from shaped.proof.symbolic import Plan, World

Run = Callable[[Plan], World | None]  # the forward pass under a plan; None where it fails

_SEARCHED, _WITNESSES = 64, 16
_DEPTH = 2


@dataclass
class Settled:
    """A fact that is no condition: the other branches went through, if these other facts are conditions instead."""

    plans: list[Plan] = field(default_factory=list)
    instead: list[Any] = field(default_factory=list)


@dataclass
class Branches:
    """The branch that one run took, and what is taken as true of its sizes."""

    world: World
    plan: Plan
    run: Run
    given: Sequence[Any] = ()
    before: tuple["Branches", ...] = ()  # those from which this one was come to; what they asked is settled there
    implied: Sequence[Any] = ()  # but for these, which nothing but the sizes of that run decided

    def settle(self, fact: Any, depth: int = _DEPTH) -> Settled | None:
        """Run the program where `fact` is false; None if it fails there, or if that cannot be told.

        What such a run asks and the first did not is settled in the same way; where that goes too deep, it does not
        count. A question of the other branch that cannot be settled there is a condition in the fact's place if the
        fact implies it: `points > 25` gives way to `points >= 4`.
        """
        hold_limits()
        plans = opposite_plans(fact, self.world, self.plan, self.given)
        if plans is None:
            return None
        settled = Settled(plans)
        for plan in plans:
            world = self.run(plan)
            if world is None:
                return None
            inner = Branches(world, plan, self.run, self.translated(self.given, world), (*self.before, self))
            for new in self.questions_of(world, fact):
                deeper = inner.settle(new, depth - 1) if depth > 0 else None
                for needed in [new] if deeper is None else deeper.instead:
                    same = world.translate(needed, self.world)
                    if same is None or plan.constants != self.plan.constants or not holds(same, [fact]):
                        return None
                    settled.instead.append(same)
        return settled

    def questions_of(self, world: World, fact: Any = sympy.true) -> list[Any]:
        """What another run asked that this one did not, neither as such nor the other way round, and that is open."""
        known = [
            b.world.translate(asked.fact, world)
            for b in (*self.before, self)
            for asked in b.world.env.asked
            if asked.fact not in b.implied
        ]
        known.append(self.world.translate(fact, world))
        terms = {world.term(form) for k in known if k is not None for form in (k, sympy.Not(k))}
        given = self.translated(self.given, world)
        given += [sympy.Ge(world.expression(dim), 1) for dim in world.plan.equal.values()]  # as every size is
        return [q.fact for q in world.env.asked if world.term(q.fact) not in terms and not holds(q.fact, given)]

    def translated(self, facts: Sequence[Any], world: World) -> list[Any]:
        """Facts in the symbols of another world, where that can be and they are not just what is otherwise there."""
        same = (self.world.translate(fact, world) for fact in facts)
        return [fact for fact in same if fact not in (None, sympy.true, sympy.false)]


def opposite_plans(fact: Any, world: World, plan: Plan, given: Sequence[Any] = ()) -> list[Plan] | None:
    """Plans under which a fact is false: other size hints for an inequality; for `a != b` the few sizes, or a := b."""
    if isinstance(fact, sympy.Ne):
        plans = _equal_plans(fact, world, plan)
        if plans is not None:
            return plans
    few = list(itertools.islice(_solutions(fact, world), _WITNESSES + 1)) if len(fact.free_symbols) < 3 else []
    if 0 < len(few) <= _WITNESSES and (isinstance(fact, sympy.Ne) or len(fact.free_symbols) == 2):
        return [replace(plan, constants={**plan.constants, **sizes}) for sizes in few]
    if isinstance(fact, sympy.Ne) and (len(fact.free_symbols) > 1 or not divisions(fact)):
        return None
    size_hints = size_hints_where(fact, world, plan, sympy.false, given)
    return None if size_hints is None else [replace(plan, size_hints=size_hints)]


def with_its_bound(fact: Any, world: World, plan: Plan, passes: Callable[[Plan], bool]) -> Any:
    """`a >= b` for a condition `a > b` between sizes where the program is well-shaped at a = b too."""
    if not isinstance(fact, sympy.Gt | sympy.Lt) or len(fact.free_symbols) < 2:
        return fact
    plans = equal_at(fact.args[0] - fact.args[1], 0, world, plan)
    if not plans or not all(map(passes, plans)):
        return fact
    return (sympy.Ge if isinstance(fact, sympy.Gt) else sympy.Le)(*fact.args)


def _equal_plans(fact: Any, world: World, plan: Plan) -> list[Plan] | None:
    """Substitutions that make both sides of `a != b` equal."""
    for left, right in (fact.args, fact.args[::-1]):
        if type(left).__name__ in ("Min", "Max", "Abs"):  # one of what it may be equals the other side
            may_be = left.args if type(left).__name__ != "Abs" else (left.args[0], -left.args[0])
            unequal = [sympy.Ne(part, right) for part in may_be]
            parts = [_equal_plans(one, world, plan) for one in unequal if isinstance(one, sympy.Ne)]
            return None if None in parts or sympy.false in unequal else [one for some in parts for one in some or []]
    return equal_at(fact.args[0] - fact.args[1], 0, world, plan)


def equal_at(size: Any, value: int, world: World, plan: Plan) -> list[Plan] | None:
    """Plans under which a size expression has a value, all of them together; None where they are too many or unknown.

    Sizes of 1 are traced apart, so a single dimension is looked for from 2 on.
    """
    symbols = size.free_symbols
    if not symbols <= set(world.symbols):
        return None
    over, under = divides(sympy.Eq(size, 0, evaluate=False)) if value == 0 else (None, None)
    if under is not None:
        multiples = _multiples(over, under, world, plan)
        if multiples is not None:
            return multiples
    if len(symbols) == 1:
        (symbol,) = symbols
        name, found = world.symbols[symbol], _whole_roots(size - value, symbol)
        if found is not None:
            plans = [replace(plan, constants={**plan.constants, name: n}) for n in found]
            return plans if len(plans) <= _WITNESSES else None
    # A number that is no fraction (1/d**0.5 - 0.25) comes out of each factor anew.
    factors = sympy.Mul.make_args(sympy.factor(size)) if value == 0 and not size.has(sympy.Float) else ()
    if len(factors) > 1:
        parts = [
            equal_at(part, 0, world, plan) for part in factors if part.free_symbols and not holds(sympy.Ne(part, 0))
        ]
        return None if None in parts else [one for some in parts for one in some or []]
    linear = sympy.expand(size - value)
    for sign in (1, -1):
        for symbol in sorted(symbols, key=lambda s: world.symbols[s]):
            name, rest = world.symbols[symbol], linear - sign * symbol
            if linear.coeff(symbol, 1) == sign and symbol not in rest.free_symbols and plan.is_free(name):
                other = sympy.expand(-sign * rest)
                dim = world.dim(other)
                if dim is None:
                    return None
                hints: Mapping[str, int] | None = plan.size_hints
                if value_at(sympy.Ge(other, 2), world.size_hints) != sympy.true:  # 200 - n, and n is 240 so far
                    hints = size_hints_where(sympy.Ge(other, 2), world, plan, sympy.true)
                return None if hints is None else [replace(plan, size_hints=hints, equal={**plan.equal, name: dim})]
    quotients = [atom for atom in size.atoms(sympy.Function) if type(atom).__name__ == "FloorDiv"]
    if len(quotients) == 1 and quotients[0].args[1].is_Integer and (size - quotients[0]).is_Integer:
        over, under = quotients[0].args
        first = int(under) * (value - int(size - quotients[0]))
        parts = [equal_at(over, first + rest, world, plan) for rest in range(min(int(under), _WITNESSES))]
        return None if None in parts or under > _WITNESSES else [one for some in parts for one in some or []]
    return None


def _whole_roots(size: Any, symbol: sympy.Symbol) -> list[int] | None:
    """The numbers from 2 on at which a size expression in one symbol is 0; None where they are not all known."""
    polynomial = size.as_poly(symbol)
    if polynomial is not None and polynomial.domain.is_ZZ:
        return sorted(int(root) for root in polynomial.ground_roots() if root.is_Integer and root >= 2)
    if not holds(sympy.Ne(size, 0), [sympy.Ge(symbol, _SEARCHED)]):
        return None
    return [n for n in range(2, _SEARCHED) if value_at(sympy.Eq(size, 0), {symbol: n}) == sympy.true]


def _multiples(over: Any, under: Any, world: World, plan: Plan) -> list[Plan] | None:
    """Plans under which one size is a multiple of another: of any size of at least 2, and itself."""
    name, divisor = world.symbols.get(over, ""), world.dim(under)
    if divisor is None or not plan.is_free(name) or name in divisor.names:
        return None
    if not all(n in plan.size_hints or n in plan.constants for n in divisor.names):
        return None
    some = replace(plan, multiples={**plan.multiples, name: divisor})
    return [some, replace(some, constants={**some.constants, some.quotient(name): 1})]


def together(base: Plan, a: Plan, b: Plan) -> Plan | None:
    """Two changes of one plan at once; None where they concern the same name, or define two names by each other."""
    changes = [
        {
            name
            for kind in ("size_hints", "constants", "equal")
            for name in _changed(getattr(base, kind), getattr(p, kind))
        }
        for p in (a, b)
    ]
    if changes[0] & changes[1]:
        return None
    size_hints = {
        **base.size_hints,
        **_changed(base.size_hints, a.size_hints),
        **_changed(base.size_hints, b.size_hints),
    }
    constants, equal = {**a.constants, **b.constants}, {**a.equal, **b.equal}
    both = replace(base, size_hints=size_hints, constants=constants, equal=equal)
    return both if sizes_of(equal, both) is not None else None


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
