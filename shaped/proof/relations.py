"""Relations between sizes, as a statement lists them: each once, none that follows from the others, written plainly."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import sympy
from sympy.core.function import Application

from shaped.errors import Source
from shaped.proof.arithmetic import holds, tidy
from shaped.proof.conditions import Condition
from shaped.proof.symbolic import Plan
from shaped.shapes import Term


def without_maximum(fact: Any) -> Any:
    """max(1, n) == n says that n is at least 1; also where both sides are multiples: 2*max(1, n) == 2*n."""
    if isinstance(fact, sympy.Eq):
        sides = (
            _divided(*fact.args)
            if any(type(a).__name__ in ("Max", "Min") for a in fact.atoms(Application))
            else fact.args
        )
        for most, other in (sides, sides[::-1]):
            if type(most).__name__ in ("Max", "Min") and other in most.args and len(most.args) == 2:
                least = next(part for part in most.args if part != other)
                return sympy.Ge(other, least) if type(most).__name__ == "Max" else sympy.Le(other, least)
    return fact


def _divided(left: Any, right: Any) -> tuple[Any, Any]:
    """Both sides of an equation without the sizes that they are both multiples of."""
    shared = set(sympy.Mul.make_args(sympy.factor_terms(left))) & set(sympy.Mul.make_args(sympy.factor_terms(right)))
    by = sympy.Mul(*(factor for factor in shared if factor.is_positive))
    return sympy.expand(left / by), sympy.expand(right / by)


def weakest(
    facts: Sequence[tuple[Any, Source | None]], resting: Collection[Any] = ()
) -> list[tuple[Any, Source | None]]:
    """Without those that follow from others; `resting` are symbols that may be 0."""
    left = _joined(list(dict(reversed([(tidy(fact), source) for fact, source in facts])).items())[::-1])
    for fact, source in list(left):
        others = [other for other, _ in left if other != fact]
        least = {s: int(s not in resting) for one in (fact, *others) for s in one.free_symbols}
        if (isinstance(fact, sympy.Or) and not set(fact.args).isdisjoint(others)) or holds(fact, others, least):
            left.remove((fact, source))
    return left


def _joined(facts: list[tuple[Any, Source | None]]) -> list[tuple[Any, Source | None]]:
    """n >= 2 and n != 2 as n >= 3."""
    for fact in [fact for fact, _ in facts if isinstance(fact, sympy.Ne)]:
        difference = sympy.expand(fact.args[0] - fact.args[1])
        for i, other in enumerate(f for f, _ in facts):
            if isinstance(other, sympy.Ge) and sympy.expand(other.args[0] - other.args[1]) in (difference, -difference):
                larger = tidy(sympy.Ge(other.args[0], other.args[1] + 1))
                rest = [(larger if j == i else f, s) for j, (f, s) in enumerate(facts) if f != fact]
                return _joined(list(dict(rest).items()))
    return facts


def plainly(term: Term, plan: Plan) -> Term:
    """n >= 7 for (n - 1)//3 >= 2 where n % 3 is 1, and n >= 2 for n != 1."""
    for name, divisor in plan.multiples.items():
        size, rest = Term.name(name), plan.rests.get(name, 0)
        quotient = Term.of("//", Term.of("-", size, Term.number(rest)) if rest else size, divisor.term)
        match term:
            case Term(">=" | "!=" as op, (over, Term("number", (int(least),)))) if (
                over == quotient and divisor.constant
            ):
                term = Term.of(op, size, Term.number(divisor.constant * least + rest))
    match term:
        case Term("!=", (Term("name") as size, Term("number", (1,)))):
            return Term.of(">=", size, Term.number(2))
    return term


def in_one(conditions: Sequence[Condition]) -> list[Condition]:
    """n % 2 == 1 and ((n - 1)//2) % 3 == 0 as n % 6 == 1."""
    for coarse, finer in itertools.permutations(conditions, 2):
        match coarse.term, finer.term:
            case (
                Term("==", (Term("%", (Term("name") as size, Term("number", (by,)))), Term("number", (rest,)))),
                Term("==", (Term("%", (quotient, Term("number", (period,)))), Term("number", (more,)))),
            ):
                multiple = Term.of("-", size, Term.number(rest)) if rest else size
                if quotient == Term.of("//", multiple, Term.number(by)):
                    left = Term.of("%", size, Term.number(by * period))
                    one = Condition(Term.of("==", left, Term.number(rest + by * more)), finer.source)
                    return in_one([one, *(c for c in conditions if c is not coarse and c is not finer)])
    return list(conditions)


def effort(fact: Any) -> tuple[bool, int, str]:
    """`size >= 0` before all else, then short relations before long ones."""
    return (not (isinstance(fact, sympy.Ge) and fact.args[1] == 0), int(fact.count_ops()), str(fact))
