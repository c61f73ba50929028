"""Facts about whole numbers: what holds for every size, decided without looking at a hint.

A difference of two sizes is brought to a polynomial in variables that are at least 0; it is at least 0 if no coefficient
is negative. Floor divisions and remainders by numbers go first: s is written as period*j + rest, for each rest. What
cannot be decided so is not claimed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv, PythonMod

_CASES = 128  # combinations of rests that are looked at
_LARGE = 2**31  # sizes and counts of elements are far below torch's own limits, which it asks about
_ORDER = (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)

Least = Mapping[Any, int]  # the smallest value of each symbol


def holds(fact: Any, given: Sequence[Any] = (), least: Least | None = None) -> bool:
    """Whether a relation between sizes is shown to be true wherever the given ones are.

    Args:
        fact: A sympy relation, or a conjunction or disjunction of some.
        given: Relations to take as true.
        least: The smallest size of a symbol, where it is not 2.
    """
    symbols = sorted(fact.free_symbols.union(*(g.free_symbols for g in given)), key=str)
    start = {symbol: (least or {}).get(symbol, 2) for symbol in symbols}
    relevant = tuple(g for g in given if isinstance(g, _ORDER) and g.free_symbols & fact.free_symbols)
    return _holds(fact, relevant, tuple(start.items()))


@lru_cache(maxsize=4096)
def _holds(fact: Any, given: tuple[Any, ...], least: tuple[tuple[Any, int], ...]) -> bool:
    cases = _cases((fact, *given), dict(least))
    return cases is not None and all(_holds_in_case(new[0], new[1:], bounds) for new, bounds in cases)


def _cases(facts: Sequence[Any], least: dict[Any, int]) -> list[tuple[tuple[Any, ...], dict[Any, int]]] | None:
    """Each combination of rests: the facts in the new variables, and their smallest values."""
    periods = _periods(facts)
    if math.prod(periods.values()) > _CASES:
        return None
    found = []
    for rests in itertools.product(*(range(period) for period in periods.values())):
        bounds, written = dict(least), {}
        for (symbol, period), rest in zip(periods.items(), rests, strict=True):
            counter = sympy.Dummy("j", integer=True, nonnegative=True)
            bounds[counter] = max(0, -((rest - bounds.pop(symbol)) // period))
            written[symbol] = period * counter + rest
        found.append((tuple(fact.xreplace(written) if written else fact for fact in facts), bounds))
    return found


def _periods(facts: Sequence[Any]) -> dict[Any, int]:
    """For each symbol that is divided by numbers, alone, their least common multiple."""
    periods: dict[Any, int] = {}
    for atom in set().union(*(divisions(fact) for fact in facts)):
        over, under = atom.args
        if len(over.free_symbols) == 1 and under.is_Integer and under > 0:
            symbol = next(iter(over.free_symbols))
            periods[symbol] = math.lcm(periods.get(symbol, 1), int(under))
    return dict(sorted(periods.items(), key=lambda item: str(item[0])))


def _holds_in_case(fact: Any, given: Sequence[Any], least: dict[Any, int]) -> bool:
    if fact in (sympy.true, sympy.false):
        return fact is sympy.true
    written, least = _with(given, least)
    if least is None:
        return True  # the case cannot occur
    fact = fact.xreplace(written)
    if fact in (sympy.true, sympy.false):
        return fact is sympy.true
    if isinstance(fact, sympy.And):
        return all(_holds_in_case(part, (), least) for part in fact.args)
    if isinstance(fact, sympy.Or):
        return any(_holds_in_case(part, (), least) for part in fact.args)
    if not isinstance(fact, sympy.core.relational.Relational):
        return False
    if any(abs(number) > _LARGE for number in fact.atoms(sympy.Integer)):
        return isinstance(fact, _ORDER) and fact.subs({symbol: max(low, 2) for symbol, low in least.items()}) == True  # noqa: E712
    left, right = (_plain(side, least) for side in fact.args)
    if isinstance(fact, sympy.Eq):
        return bool(sympy.expand(left - right) == 0)
    if isinstance(fact, sympy.Ne):
        return nonnegative(left - right - 1, least) or nonnegative(right - left - 1, least)
    over, under = (left, right) if isinstance(fact, sympy.Ge | sympy.Gt) else (right, left)
    strict = int(isinstance(fact, sympy.Gt | sympy.Lt))
    return nonnegative(over - under - strict, least)


def _with(given: Sequence[Any], least: dict[Any, int]) -> tuple[dict[Any, Any], Any]:
    """Use what is given: a larger smallest value, or a variable put as the others' sum and a rest of at least 0."""
    written: dict[Any, Any] = {}
    least = dict(least)
    for fact in given:
        if not isinstance(fact, _ORDER):
            if fact is sympy.false:
                return written, None
            continue
        left, right = (_plain(side.xreplace(written), least) for side in fact.args)
        over, under = (left, right) if isinstance(fact, sympy.Ge | sympy.Gt) else (right, left)
        slack = sympy.expand(over - under - int(isinstance(fact, sympy.Gt | sympy.Lt)))  # at least 0
        symbols = slack.free_symbols
        if not slack.is_polynomial(*symbols) or slack.atoms(sympy.Function) or not symbols:
            continue
        if len(symbols) == 1:
            (symbol,) = symbols
            slope, offset = slack.coeff(symbol, 1), slack.coeff(symbol, 0)
            if sympy.expand(slope * symbol + offset - slack) == 0 and slope > 0:
                least[symbol] = max(least[symbol], int(sympy.ceiling(-offset / slope)))
            continue
        for symbol in sorted(symbols, key=str):
            if slack.coeff(symbol, 1) == 1 and symbol not in (slack - symbol).free_symbols:
                rest = sympy.Dummy("s", integer=True, nonnegative=True)
                value = rest - (slack - symbol)
                written = {old: new.xreplace({symbol: value}) for old, new in written.items()} | {symbol: value}
                least[rest] = 0
                break
    return written, least


def nonnegative(expression: Any, least: Least) -> bool:
    """Whether a size expression is shown to be at least 0."""
    bounds = dict(least)
    shifted = sympy.expand(_plain(expression, bounds))
    opaque = {atom: sympy.Dummy(integer=True, nonnegative=True) for atom in shifted.atoms(sympy.Function)}
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
    if name in ("FloorDiv", "Mod", "PythonMod", "ToFloat", "OpaqueUnaryFn_sqrt", "FloatPow", "FloatTrueDiv", "IntTrueDiv"):
        if not all(nonnegative(part, least) for part in atom.args if not part.is_Float):
            return None
        return 1 if name == "FloorDiv" and nonnegative(atom.args[0] - atom.args[1], least) else 0
    lows = [int(part) if part.is_Integer else 0 if nonnegative(part, least) else None for part in atom.args]
    known = [low for low in lows if low is not None]
    if name == "Max":
        return max(known, default=None)
    return min(known) if name == "Min" and len(known) == len(lows) else None


def _plain(expression: Any, least: Least) -> Any:
    """Without what is decided by size: max(1, seq) is seq; x % y is x and x//y is 0 where 0 <= x < y."""
    for atom in sorted(expression.atoms(sympy.Function), key=lambda a: len(str(a))):
        name = type(atom).__name__
        if name in ("Max", "Min"):
            best = next((a for a in atom.args if all(_above(a, b, least, name) for b in atom.args if b is not a)), None)
            expression = expression.xreplace({atom: best}) if best is not None else expression
        elif name in ("FloorDiv", "Mod", "PythonMod"):
            expression = expression.xreplace({atom: _divided(name, *atom.args, least)})
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
    cases = _cases((size,), dict.fromkeys(size.free_symbols, 2))
    values = {sympy.expand(_plain(new, bounds)) for (new,), bounds in cases or []}
    number = values.pop() if len(values) == 1 else None
    return number if number is not None and number.is_Integer else None


def divisions(fact: Any) -> set[Any]:
    """The floor divisions and remainders in a relation."""
    return {atom for atom in fact.atoms(sympy.Function) if type(atom).__name__ in ("Mod", "PythonMod", "FloorDiv")}
