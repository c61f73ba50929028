"""Relations between sizes, as a statement lists them: each once, none that follows from the others, written plainly."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import sympy
from sympy.core.function import Application
from torch.utils._sympy.functions import PythonMod

from shaped.errors import Source
from shaped.proof.arithmetic import (
    ORDER,
    divisions,
    holds,
    holds_in_case,
    periods_of,
    rest_by_rest,
    slack_of,
    value_at,
)
from shaped.proof.rounded import ROUNDED, whole
from shaped.proof.symbolic import Plan
from shaped.shapes import Term

_RESTS = 12  # divisors up to this one are looked at rest by rest
_TRIED = 64  # sizes up to which the bound of a relation is looked for


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


def tidy(fact: Any) -> Any:
    """A relation as people write it: no size twice, nothing subtracted, `n >= 4` for n - 2 >= 2, `n % 2 == 0`."""
    if isinstance(fact, sympy.Or):
        return sympy.Or(*map(tidy, fact.args))
    fact = _by_rest(whole(fact) if fact.has(*ROUNDED) else fact)
    if isinstance(fact, ORDER) and len(fact.free_symbols) == 1 and divisions(fact):
        (symbol,) = fact.free_symbols
        false = list(itertools.takewhile(lambda n: value_at(fact, {symbol: n}) == sympy.false, range(1, _TRIED)))
        bound = sympy.Ge(symbol, len(false) + 1)
        return bound if false and holds(fact, [bound], {symbol: 1}) else fact
    if not isinstance(fact, ORDER) or fact.atoms(Application):
        return fact
    if all(side.is_Symbol or side.is_Integer for side in fact.args):
        return fact
    slack = slack_of(fact, *fact.args)
    terms = sympy.Add.make_args(slack)
    over = sympy.Add(*(term for term in terms if term.as_coeff_Mul()[0] > 0 and not term.is_Integer))
    content = sympy.gcd_terms(over).as_coeff_Mul()[0] if len(sympy.Add.make_args(over)) == 1 else sympy.Integer(1)
    under = over - slack
    if content > 1 and under.is_Integer:
        over, under = over / content, sympy.ceiling(under / content)
    if over == 0 and slack != 0:  # m + n <= 64 for 64 - m - n >= 0
        number = slack.as_coeff_Add()[0]
        over, content = (number - slack).as_content_primitive()[::-1]
        return sympy.Le(over, sympy.floor(number / content), evaluate=False)
    return sympy.Ge(over, under, evaluate=False) if over != 0 else fact


def _by_rest(fact: Any) -> Any:
    """A relation that hangs on the rest of one size alone, as that: `d % 2 == 0` for d - (d + 1)//2 == (d + 1)//2."""
    if not isinstance(fact, sympy.core.relational.Relational) or len(fact.free_symbols) != 1 or not divisions(fact):
        return fact
    (symbol,) = fact.free_symbols
    period = periods_of([fact]).get(symbol, 1)
    cases = rest_by_rest([fact], {symbol: 1}) if 1 < period <= _RESTS else None
    true: list[bool] = []
    for written, bounds in cases or []:
        answers = [holds_in_case(side, (), written, bounds) for side in (fact, sympy.Not(fact))]
        if True not in answers:
            return fact
        true.append(answers[0])
    if not true or len(set(true)) == 1:
        return fact
    period = next(p for p in range(2, period + 1) if period % p == 0 and true == true[:p] * (period // p))
    rests = [rest for rest in range(period) if true[rest]]
    if len(rests) == period - 1 and period > 2:
        return sympy.Ne(PythonMod(symbol, period), next(r for r in range(period) if not true[r]))
    return sympy.Or(*(sympy.Eq(PythonMod(symbol, period), rest) for rest in rests))


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


def effort(fact: Any) -> tuple[bool, int, str]:
    """`size >= 0` before all else, then short relations before long ones."""
    return (not (isinstance(fact, sympy.Ge) and fact.args[1] == 0), int(fact.count_ops()), str(fact))
