"""Facts about whole numbers: what holds for every size, decided without looking at a size hint.

A difference of two sizes is brought to a polynomial in variables that are at least 0; it is at least 0 if no
coefficient is negative. Floor divisions and remainders by numbers go first: s is written as period*j + rest, for each
rest. What cannot be decided so is not claimed.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sympy
from sympy.core.function import Application
from torch.utils._sympy.functions import (
    FloorDiv,
    Max,
    Min,
    PythonMod,
)

from shaped.proof.cycles import decided
from shaped.proof.expressions import term_of
from shaped.proof.rounded import ROUNDED, whole
from shaped.shapes import Term

_CASES = 128  # combinations of rests that are looked at
_LARGE = 2**31  # sizes and counts of elements are far below torch's own limits, which it asks about
_DIVISIONS = ("FloorDiv", "Mod", "PythonMod")
_FLOATS = ("FloatPow", "FloatTrueDiv", "IntTrueDiv")
ORDER = (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)

# The variables of every decision, so that sympy remembers what it made of them.
_COUNTERS = tuple(sympy.Symbol(f"j{i}", integer=True, nonnegative=True) for i in range(6))
_OPAQUE = tuple(sympy.Symbol(f"f{i}", integer=True, nonnegative=True) for i in range(12))
_PRODUCTS = tuple(sympy.Symbol(f"m{i}", integer=True, positive=True) for i in range(3))
_SUM = sympy.Symbol("t0", integer=True, positive=True)
_SPARE = tuple(sympy.Symbol(f"r{i}", integer=True, nonnegative=True) for i in range(12))

Least = Mapping[Any, int]  # the smallest value of each symbol


def holds(fact: Any, given: Sequence[Any] = (), least: Least | None = None) -> bool:
    """Whether a relation between sizes is shown to be true wherever the given ones are.

    Args:
        fact: A sympy relation, or a conjunction or disjunction of some.
        given: Relations to take as true.
        least: The smallest size of a symbol, where it is not 2.
    """
    if fact.has(*ROUNDED):
        fact = whole(fact)
    symbols = sorted(fact.free_symbols.union(*(g.free_symbols for g in given)), key=str)
    start = {symbol: (least or {}).get(symbol, 2) for symbol in symbols}
    either = next((g for g in given if isinstance(g, sympy.Or) and isinstance(fact, sympy.Or)), None)
    if either is not None:
        rest = [g for g in given if g is not either]
        return holds(fact, rest, least) or all(holds(fact, [*rest, part], least) for part in either.args)
    relevant = [g for g in given if isinstance(g, ORDER) and g.free_symbols & fact.free_symbols]
    (fact, *relevant), start = _with_products([fact, *relevant], start)
    for facts, least_of in ((fact, *relevant), start), *_with_sums((fact, *relevant), start):
        known, bounds = tuple(facts[1:]), tuple(least_of.items())
        try:
            if _holds(facts[0], known, bounds) or _holds_whichever(facts[0], known, bounds):
                return True
        except ZeroDivisionError:  # for some of these sizes it says nothing
            return False
    return False


def _with_sums(facts: Sequence[Any], least: dict[Any, int]) -> Iterator[tuple[Sequence[Any], dict[Any, int]]]:
    """A symbol for a sum of sizes that is divided by a number, in place of one of them: 2*((m + n)//2) <= m + n.

    What the one was at least is not used then.
    """
    for over in sorted({a.args[0] for fact in facts for a in divisions(fact) if a.args[1].is_Integer}, key=str):
        total = over - over.as_coeff_Add()[0]
        parts = [term.as_coeff_Mul() for term in sympy.Add.make_args(total)]
        if len(parts) < 2 or not all(n.is_Integer and n > 0 and size.is_Symbol for n, size in parts):
            continue
        one = next((size for n, size in parts if n == 1), None)
        if one is not None and all(size in least for _, size in parts):
            written = {one: _SUM - (total - one)}
            sums = [fact.func(*(side.xreplace(written) for side in fact.args)) for fact in facts]
            others = {size: number for size, number in least.items() if size != one}
            yield sums, others | {_SUM: sum(int(n) * least[size] for n, size in parts)}


def _with_products(facts: list[Any], least: dict[Any, int]) -> tuple[list[Any], dict[Any, int]]:
    """A symbol for a product of sizes that is divided, where these occur nowhere else: (a*b + 1)//2."""
    over = {atom.args[0] for fact in facts for atom in divisions(fact)}
    within = (size.atoms(sympy.Mul, sympy.Pow) for size in over)
    products = sorted({part for some in within for part in some if _is_product(part)}, key=_longest_first)
    for product, symbol in zip(products, _PRODUCTS, strict=False):
        factors = product.as_powers_dict()
        written = [fact.subs(product, symbol) for fact in facts]
        left = set().union(*(fact.free_symbols for fact in written))
        if symbol in left and left.isdisjoint(factors):
            facts = written
            least = {s: n for s, n in least.items() if s not in factors} | {
                symbol: math.prod(least[s] ** int(power) for s, power in factors.items())
            }
    return facts, least


def _longest_first(size: Any) -> tuple[int, str]:
    return -len(str(size)), str(size)


def _is_product(size: Any) -> bool:
    """Whether it is a*b or n**2: symbols alone, and more than one of them."""
    powers = size.as_powers_dict()
    plain = all(base.is_Symbol and power.is_Integer and power > 0 for base, power in powers.items())
    return plain and sum(powers.values()) > 1


def _holds_whichever(fact: Any, given: tuple[Any, ...], least: tuple[tuple[Any, int], ...], depth: int = 2) -> bool:
    """Whether it holds whichever of its operands a maximum or a minimum is."""
    atom = min(fact.atoms(Max, Min), key=lambda a: len(str(a)), default=None)
    if atom is None or not depth or not isinstance(fact, sympy.core.relational.Relational):
        return False
    largest = isinstance(atom, Max)
    for part in atom.args:
        others = [other for other in atom.args if other is not part]
        orders = [sympy.Ge(part, other) if largest else sympy.Le(part, other) for other in others]
        if sympy.false in orders:
            continue
        known = (*given, *(order for order in orders if order is not sympy.true))
        case = fact.xreplace({atom: part})
        if not _holds(case, known, least) and not _holds_whichever(case, known, least, depth - 1):
            return False
    return True


@lru_cache(maxsize=4096)
def _holds(fact: Any, given: tuple[Any, ...], least: tuple[tuple[Any, int], ...]) -> bool:
    if fact in (sympy.true, sympy.false):
        return fact is sympy.true
    if isinstance(fact, sympy.And | sympy.Or):
        return (all if isinstance(fact, sympy.And) else any)(_holds(part, given, least) for part in fact.args)
    if not isinstance(fact, sympy.core.relational.Relational):
        return False
    if any(abs(number) > _LARGE for number in fact.atoms(sympy.Integer)):
        return isinstance(fact, ORDER) and value_at(fact, {symbol: max(low, 2) for symbol, low in least}) == sympy.true
    around = _around(fact, given, dict(least)) if divisions(fact) else None
    if around is not None:
        return around
    cases = rest_by_rest((fact, *given), dict(least))
    return cases is not None and all(holds_in_case(fact, given, written, bounds) for written, bounds in cases)


def _around(fact: Any, given: Sequence[Any], least: Mapping[Any, int]) -> bool | None:
    """Whether a relation over one size holds, seen size by size: (n + (-n % 9)) % 9 == 0; None if that is not seen."""
    if len(fact.free_symbols) != 1:
        return None
    (symbol,) = fact.free_symbols
    if least.get(symbol, 2) < 1:
        return None
    known = [term_of(other) for other in given if other.free_symbols == {symbol}]
    known += [Term.of(">=", Term.name(symbol.name), Term.number(least.get(symbol, 2)))]
    answer = decided(Term.of("or", term_of(fact), *(Term.of("not", one) for one in known)))
    return answer if answer or len(known) > len(given) else None


def rest_by_rest(
    expressions: Sequence[Any], least: dict[Any, int]
) -> list[tuple[dict[Any, Any], dict[Any, int]]] | None:
    """Each combination of rests: what to write for the symbols, and the smallest values of the new ones."""
    periods = periods_of(expressions)
    if math.prod(periods.values()) > _CASES or len(periods) > len(_COUNTERS):
        return None
    found = []
    for rests in itertools.product(*(range(period) for period in periods.values())):
        bounds, written = dict(least), {}
        for (symbol, period), rest, counter in zip(periods.items(), rests, _COUNTERS, strict=False):
            bounds[counter] = max(0, -((rest - bounds.pop(symbol)) // period))
            written[symbol] = period * counter + rest
        found.append((written, bounds))
    return found


def periods_of(facts: Sequence[Any]) -> dict[Any, int]:
    """For each symbol that is divided by numbers, alone, their least common multiple."""
    periods: dict[Any, int] = {}
    for atom in set().union(*(divisions(fact) for fact in facts)):
        over, under = atom.args
        if len(over.free_symbols) == 1 and under.is_Integer and under > 0:
            symbol = next(iter(over.free_symbols))
            periods[symbol] = math.lcm(periods.get(symbol, 1), int(under))
    return dict(sorted(periods.items(), key=lambda item: str(item[0])))


def holds_in_case(fact: Any, given: Sequence[Any], written: dict[Any, Any], least: dict[Any, int]) -> bool:
    """With the least sizes that are given; or with the largest ones, where that is not enough."""
    if _holds_written(fact, *_with(given, written, least)):
        return True
    return bool(given) and _holds_written(fact, *_with(given, written, least, largest=True))


def _holds_written(fact: Any, written: dict[Any, Any], bounds: dict[Any, int]) -> bool:
    """Relations are taken apart before anything is put into them: sympy would try to decide each, at length."""
    left, right = (_plain(side.xreplace(written), bounds) for side in fact.args)
    if isinstance(fact, sympy.Eq):
        return bool(sympy.expand(left - right) == 0)
    if isinstance(fact, sympy.Ne):
        return nonnegative(left - right - 1, bounds) or nonnegative(right - left - 1, bounds)
    return nonnegative(slack_of(fact, left, right), bounds)


def slack_of(fact: Any, left: Any, right: Any) -> Any:
    """What an inequality says is at least 0."""
    over, under = (left, right) if isinstance(fact, sympy.Ge | sympy.Gt) else (right, left)
    return sympy.expand(over - under - int(isinstance(fact, sympy.Gt | sympy.Lt)))


def _with(
    given: Sequence[Any], written: dict[Any, Any], least: dict[Any, int], largest: bool = False
) -> tuple[dict[Any, Any], dict[Any, int]]:
    """Use what is given: a larger smallest value, or a variable put as the others' sum and a rest of at least 0.

    Or a variable put as its largest value less a rest, of which then no least value is known.
    """
    least, spare = dict(least), iter(_SPARE)
    for fact in given:
        slack = slack_of(fact, *(_plain(side.xreplace(written), least) for side in fact.args))
        symbols = slack.free_symbols
        if not symbols or slack.atoms(Application) or not slack.is_polynomial(*symbols):
            continue
        if len(symbols) == 1:
            (symbol,) = symbols
            slope, offset = slack.coeff(symbol, 1), slack.coeff(symbol, 0)
            if slope * symbol + offset == slack and slope > 0:
                least[symbol] = max(least[symbol], int(sympy.ceiling(-offset / slope)))
            elif slope * symbol + offset == slack and largest and (rest := next(spare, None)) is not None:
                value = sympy.floor(offset / -slope) - rest
                written = {old: new.xreplace({symbol: value}) for old, new in written.items()} | {symbol: value}
                least[rest] = 0
            continue
        unit = [s for s in sorted(symbols, key=str) if slack.coeff(s, 1) == 1 and s not in (slack - s).free_symbols]
        rest = next(spare, None) if unit else None
        if rest is not None:
            value = rest - (slack - unit[0])
            written = {old: new.xreplace({unit[0]: value}) for old, new in written.items()} | {unit[0]: value}
            least[rest] = 0
    return written, least


def nonnegative(expression: Any, least: Least) -> bool:
    """Whether a size expression is shown to be at least 0."""
    return _nonnegative(expression, frozenset(least.items()))


@lru_cache(maxsize=8192)  # sizes within sizes ask the same again and again, which adds up to powers of their depth
def _nonnegative(expression: Any, least: frozenset[tuple[Any, Any]]) -> bool:
    bounds: dict[Any, Any] = dict(least)
    shifted = sympy.expand(_plain(expression, bounds))
    opaque = dict(zip(sorted(shifted.atoms(Application), key=str), _OPAQUE, strict=False))
    for atom, name in opaque.items():
        bounds[name] = _lowest(atom, bounds)
    if any(bounds[name] is None for name in opaque.values()):
        return False
    shifted = shifted.xreplace(opaque)
    shifted = sympy.expand(shifted.xreplace({s: s + bounds.get(s, 2) for s in shifted.free_symbols}))
    if shifted.is_number:
        return bool(shifted >= 0)
    if not shifted.is_polynomial(*shifted.free_symbols):
        return False
    return all(bool(coefficient >= 0) for coefficient in sympy.Poly(shifted).coeffs())


def _lowest(atom: Any, least: dict[Any, Any]) -> int | None:
    """A number that the value of a function of sizes is never below."""
    name = type(atom).__name__
    if name in ("FloorDiv", "Mod", "PythonMod", "ToFloat", "OpaqueUnaryFn_sqrt", *_FLOATS):
        if not all(nonnegative(part, least) for part in atom.args if not part.is_Float):
            return None
        return 1 if name == "FloorDiv" and nonnegative(atom.args[0] - atom.args[1], least) else 0
    lows = [next((low for low in (2, 1, 0) if nonnegative(part - low, least)), None) for part in atom.args]
    known = [low for low in lows if low is not None]
    if name == "Max":
        return max(known, default=None)
    return min(known) if name == "Min" and len(known) == len(lows) else None


def _plain(expression: Any, least: Least) -> Any:
    """Without what is decided by size: max(1, seq) is seq; x % y is x and x//y is 0 where 0 <= x < y."""
    for atom in sorted(expression.atoms(Application), key=lambda a: len(str(a))):
        name = type(atom).__name__
        if name in ("Max", "Min"):
            best = next((a for a in atom.args if all(_above(a, b, least, name) for b in atom.args if b is not a)), None)
            expression = expression.xreplace({atom: best}) if best is not None else expression
        elif name in ("FloorDiv", "Mod", "PythonMod"):
            expression = expression.xreplace({atom: _divided(name, atom.args[0], atom.args[1], least)})
    return expression


def _above(a: Any, b: Any, least: Least, name: str) -> bool:
    return nonnegative(a - b if name == "Max" else b - a, least)


def _divided(name: str, over: Any, under: Any, least: Least) -> Any:
    """x//y or x % y, without the parts of x that y divides and without a rest that is smaller than y."""
    over = sympy.expand(over)
    quotients = [(term, term / under) for term in sympy.Add.make_args(over)]
    whole = sympy.Add(*(quotient for _, quotient in quotients if quotient.as_numer_denom()[1] == 1))
    if isinstance(under, sympy.Add) and len(under.free_symbols) == 1:  # (4*j + 1)//(j + 1)
        (symbol,) = under.free_symbols
        steep = over.coeff(symbol, 1) / under.coeff(symbol, 1) if under.coeff(symbol, 1) != 0 else sympy.Integer(0)
        whole = sympy.floor(steep) if steep.is_number else whole
    rest = sympy.expand(over - whole * under)
    if nonnegative(-1 - rest, least) and nonnegative(rest + under, least):
        whole, rest = whole - 1, sympy.expand(rest + under)
    small = rest == 0 or (nonnegative(rest, least) and nonnegative(under - 1 - rest, least))
    if name == "FloorDiv":
        return whole if small else whole + FloorDiv(rest, under)
    return rest if small else PythonMod(rest, under)


def constant(size: Any) -> Any:
    """The number that a size expression is for all sizes of at least 2; None if it is none, or not shown to be one."""
    some = ({symbol: start + 3 * i for i, symbol in enumerate(size.free_symbols)} for start in (2, 5, 99))
    if len({value_at(size, sizes) for sizes in some}) > 1:
        return None
    (size,), least = _with_products([size], dict.fromkeys(size.free_symbols, 2))
    number: Any = None
    for written, bounds in rest_by_rest((size,), least) or ():
        value = sympy.expand(_plain(size.xreplace(written), bounds))
        if not value.is_Integer or number not in (None, value):
            return None
        number = value
    return number


def most(size: Any, hints: Mapping[Any, Any]) -> Any:
    """The number that a quotient of sizes is at its hints, if it is no larger at any: 4 for (5*n + 1)//(n + 1)."""
    if type(size) is not FloorDiv or size.args[1].is_Integer:
        return None
    number = value_at(size, hints)
    return number if number.is_Integer and holds(sympy.Lt(size.args[0], (number + 1) * size.args[1])) else None


def in_halves(size: Any) -> Any:
    """A size with (n + 1)//2 as n - n//2, so that what a `chunk` leaves is n//2."""
    for atom in divisions(size):
        over, under = atom.args
        if type(atom) is FloorDiv and under == 2 and over.as_coeff_Add()[0] % 2 == 1:
            size = size.xreplace({atom: over - 1 - FloorDiv(over - 1, 2)})
    return size


def flat(size: Any) -> Any:
    """A size with (n//2 + 1)//2 as (n + 2)//4, and d*n % (2*d) as d*(n % 2)."""
    for atom in sorted(divisions(size), key=lambda a: len(str(a))):
        over, under = atom.args
        shared = set(sympy.Mul.make_args(sympy.factor_terms(over))).intersection(sympy.Mul.make_args(under))
        common = sympy.Mul(*(factor for factor in shared if factor.is_Symbol))
        if common != 1:
            rest = atom.func(sympy.expand(over / common), under / common)
            size = size.xreplace({atom: rest if type(atom) is FloorDiv else common * rest})
            continue
        inner = [part for part in divisions(over) if type(part) is FloorDiv and (over - part).is_Integer]
        if type(atom) is FloorDiv and under.is_Integer and inner and inner[0].args[1].is_Integer:
            numerator, by = inner[0].args
            size = size.xreplace({atom: FloorDiv(numerator + by * (over - inner[0]), by * under)})
    return size


def clauses(question: sympy.Basic) -> tuple[int, int]:
    """How many clauses a question and its negation have in conjunctive normal form, at most."""
    if isinstance(question, sympy.Not):
        return clauses(question.args[0])[::-1]
    if not isinstance(question, sympy.And | sympy.Or):
        return 1, 1
    parts = [*zip(*map(clauses, question.args), strict=True)]
    one, other = parts if isinstance(question, sympy.And) else parts[::-1]
    both = sum(one), math.prod(other)
    return both if isinstance(question, sympy.And) else both[::-1]


def value_at(fact: Any, sizes: Mapping[Any, int]) -> Any:
    """A relation at some sizes: sympy's true or false; None where it has no value there."""
    try:
        return fact.subs(sizes)
    except (ZeroDivisionError, AssertionError):  # torch's remainder takes no size below 0
        return None


def divided_exactly(size: Any, facts: Sequence[Any]) -> Any:
    """A size with x//n as the fraction x/n wherever a fact says that n divides x."""
    if not divisions(size):
        return size
    parts = [divided_exactly(part, facts) for part in size.args]
    if type(size).__name__ not in _DIVISIONS:
        return size.func(*parts)
    ratio = sympy.cancel(parts[0] / parts[1])
    if not ratio.is_Integer and size.args not in [divides(fact) for fact in facts]:
        return size
    return ratio if type(size) is FloorDiv else sympy.Integer(0)


def holds_exactly(fact: Any, divisible: Sequence[Any]) -> bool:
    """Whether a relation holds, given what divides what."""
    if not isinstance(fact, sympy.core.relational.Relational) or not divisible:
        return False
    left, right = (divided_exactly(side, divisible) for side in fact.args)
    return (left, right) != fact.args and holds(fact.func(left, right))


def divides(fact: Any) -> tuple[Any, Any]:
    """(x, n) where a fact says that n divides x: x % n == 0, or x == n*(x//n); else (None, None)."""
    if isinstance(fact, sympy.Eq):
        for atom in divisions(fact):
            over, under = atom.args
            difference = sympy.expand(fact.args[0] - fact.args[1])
            rest = atom if type(atom) is not FloorDiv else sympy.expand(over - under * atom)
            if difference in (rest, -rest):
                return over, under
    return None, None


def divisions(fact: Any) -> set[Any]:
    """The floor divisions and remainders in a relation."""
    return {atom for atom in fact.atoms(sympy.Function) if type(atom).__name__ in _DIVISIONS}
