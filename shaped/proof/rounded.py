"""Sizes that a program rounds, as floor divisions: `math.ceil(n / 4)`, `int(0.25 * n)`, padding to a multiple."""

import math
from typing import Any

import sympy
from sympy.core.relational import Relational
from torch.utils._sympy.functions import (
    CeilToInt,
    FloatTrueDiv,
    FloorDiv,
    FloorToInt,
    IntTrueDiv,
    Mod,
    PythonMod,
    ToFloat,
    TruncToInt,
)

_DENOMINATOR = 2**10  # of a number in floating point that is taken as the fraction that it is
ROUNDED = (CeilToInt, FloorToInt, TruncToInt)


def whole(size: Any) -> Any:
    """A size with `ceil(n / 4)` as (n + 3)//4, `floor(n / 4)` and `int(0.25*n)` as n//4, and padding without a rest."""
    for atom in size.atoms(*ROUNDED):
        over, under = sympy.together(_fraction(atom.args[0])).as_numer_denom()
        if (under.is_Integer and not over.has(sympy.Float)) or isinstance(atom.args[0], IntTrueDiv):
            above = over + under - 1 if isinstance(atom, CeilToInt) else over
            size = size.xreplace({atom: FloorDiv(sympy.expand(above), under)})
    for atom in size.atoms(Mod, PythonMod):
        over, by = atom.args
        rests = [rest for rest in over.atoms(Mod, PythonMod) if rest.args[1] == by and over.coeff(rest, 1) == -1]
        if rests and by.is_Integer:  # (4 - n % 4) % 4, so that n padded by it is 4*((n + 3)//4)
            left = sympy.expand(over.xreplace({rest: rest.args[0] for rest in rests}) - by)
            size = size.xreplace({atom: left + by * FloorDiv(sympy.expand(by - 1 - left), by)})
    return _without_padding(size) if isinstance(size, Relational) else size


def _without_padding(fact: Any) -> Any:
    """Whether 4*((n + 3)//4) is n, or more, as a question about the rest: n % 4 == 0."""
    difference = sympy.expand(fact.args[0] - fact.args[1])
    for atom in difference.atoms(FloorDiv):
        over, by = atom.args
        times = difference.coeff(atom, 1) / by
        padded = sympy.expand(over - by + 1)
        if not by.is_Integer or sympy.expand(difference - times * (by * atom - padded)) != 0:
            continue
        none = sympy.Eq(PythonMod(padded, by), 0)
        if isinstance(fact, sympy.Eq | sympy.Ne):
            return none if isinstance(fact, sympy.Eq) else sympy.Not(none)
        if not (times.is_positive or times.is_negative):
            continue
        more = isinstance(fact, sympy.Ge | sympy.Gt) == bool(times.is_positive)  # asks whether padding is above 0, or 0
        at_none = isinstance(fact, sympy.Ge | sympy.Le)  # what is so where there is no padding
        return (sympy.true if at_none else sympy.Not(none)) if more else (none if at_none else sympy.false)
    return fact


def _fraction(quotient: Any) -> Any:
    """A quotient in floating point as a fraction; numbers that are no small binary fractions stay as they are."""
    if isinstance(quotient, IntTrueDiv | FloatTrueDiv):
        return _fraction(quotient.args[0]) / _fraction(quotient.args[1])
    if isinstance(quotient, ToFloat):
        return _fraction(quotient.args[0])
    if isinstance(quotient, sympy.Float):
        exact = sympy.Rational(float(quotient)) if math.isfinite(float(quotient)) else quotient
        return exact if exact.is_Rational and exact.q <= _DENOMINATOR else quotient
    if isinstance(quotient, sympy.Add | sympy.Mul):
        return quotient.func(*map(_fraction, quotient.args))
    return quotient
