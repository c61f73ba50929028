"""From torch's symbolic sizes (sympy) to terms over dimension names, and back.

term_of(fact).evaluate(sizes)  is  fact at those sizes, in Python's own arithmetic
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch.utils._sympy.functions import (
    CeilToInt,
    FloatTrueDiv,
    FloorDiv,
    FloorToInt,
    IntTrueDiv,
    Max,
    Min,
    OpaqueUnaryFn_log2,
    OpaqueUnaryFn_sqrt,
    PythonMod,
    RoundToInt,
    ToFloat,
    TruncToInt,
)

from shaped.shapes.terms import PYTHON, Term

_RELATIONS = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">="}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_BINARY = {
    "FloorDiv": "//", "CleanDiv": "//", "Mod": "%", "PythonMod": "%", "IntTrueDiv": "/", "FloatTrueDiv": "/",
    "FloatPow": "**", "PowByNatural": "**", "BitwiseFn_bitwise_and": "&", "BitwiseFn_bitwise_or": "|",
    "BitwiseFn_bitwise_xor": "^", "LShift": "<<", "RShift": ">>",
}  # fmt: skip
_CALLS = {
    "TruncToInt": "int", "CeilToInt": "ceil", "FloorToInt": "floor", "RoundToInt": "round", "RoundDecimal": "round",
    "Max": "max", "Min": "min", "Abs": "abs", "ceiling": "ceil", "floor": "floor", "TruncToFloat": "int",
    **{f"OpaqueUnaryFn_{name}": name for name in PYTHON},
}  # fmt: skip


def term_of(e: Any) -> Term:
    """A size or a relation over symbols, as a term over their names.

    A fraction stands for a whole number: dim/heads is dim//heads.
    """
    kind = type(e)
    name = kind.__name__
    if kind in _RELATIONS:
        left, right = map(term_of, e.args)
        if not e.args[0].free_symbols and e.args[1].free_symbols:
            return Term.of(_MIRRORED[_RELATIONS[kind]], right, left)
        return Term.of(_RELATIONS[kind], left, right)
    if isinstance(e, sympy.And | sympy.Or | sympy.Not):
        return Term.of(name.lower(), *map(term_of, e.args))
    if isinstance(e, sympy.Symbol):
        return Term.name(e.name)
    if isinstance(e, sympy.Integer):
        return Term.number(int(e))
    if isinstance(e, sympy.Rational):
        return Term.of("//", Term.number(int(e.p)), Term.number(int(e.q)))
    if isinstance(e, sympy.Float) and math.isfinite(float(e)):
        return Term.number(float(e))
    if name in ("ToFloat", "Identity"):
        return term_of(e.args[0])
    if name in _BINARY:
        return Term.of(_BINARY[name], *map(term_of, e.args))
    if name in _CALLS:
        return Term.of(_CALLS[name], *map(term_of, e.args))
    if isinstance(e, sympy.Mul | sympy.Add | sympy.Pow):
        return _arithmetic(e)
    if isinstance(e, sympy.Piecewise) and len(e.args) == 2 and e.args[1].args[1] is sympy.true:
        (then, condition), (otherwise, _) = (part.args for part in e.args)
        return Term.of("if", term_of(condition), term_of(then), term_of(otherwise))
    return Term(name, tuple(map(term_of, e.args)) or (Term.name(str(e)),))  # shown, and never true


def _arithmetic(e: Any) -> Term:
    if isinstance(e, sympy.Pow):
        base, power = e.args
        if power.is_Integer and power < 0:
            return Term.of("//", Term.number(1), term_of(base**-power))
        return Term.of("**", term_of(base), term_of(power))
    if isinstance(e, sympy.Mul):
        over, under = e.as_numer_denom()
        if under != 1:
            return Term.of("//", term_of(over), term_of(under))
        number, rest = e.as_coeff_Mul()
        factors = [term_of(part) for part in rest.as_ordered_factors()]
        if number == -1:
            factors[0] = Term.of("neg", factors[0])
        elif number != 1:
            factors.insert(0, term_of(number))
        return functools.reduce(functools.partial(Term.of, "*"), factors)
    terms = e.as_ordered_terms()
    if any(term.is_Rational and not term.is_Integer for term in terms):  # (n - 1)/4: neither part is whole
        over, under = sympy.together(e).as_numer_denom()
        return Term.of("//", term_of(sympy.expand(over)), term_of(under))
    terms.sort(key=lambda term: bool(term.as_coeff_Mul()[0] < 0))  # t - p, not -p + t
    first, *others = terms
    sum_ = term_of(first)
    for term in others:
        negative = bool(term.as_coeff_Mul()[0] < 0)
        sum_ = Term.of("-" if negative else "+", sum_, term_of(-term if negative else term))
    return sum_


def without_fractions(fact: Any) -> Any:
    """A relation whose sides have whole coefficients: 2*n == m for n == m/2."""
    if type(fact) not in _RELATIONS:
        return fact
    scale = math.lcm(*(int(t.as_coeff_Mul()[0].q) for side in fact.args for t in sympy.Add.make_args(side)
                       if t.as_coeff_Mul()[0].is_Rational))  # fmt: skip
    return fact if scale == 1 else fact.func(*(sympy.expand(scale * side) for side in fact.args), evaluate=False)


def _divided(over: Any, under: Any) -> Any:
    over, under = sympy.sympify(over), sympy.sympify(under)
    whole = over.is_integer is not False and under.is_integer is not False
    return IntTrueDiv(over, under) if whole else FloatTrueDiv(over, under)


def _rounded(kind: Any) -> Callable[..., Any]:
    return lambda size: size if sympy.sympify(size).is_integer else kind(size)


SYMPY: Mapping[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "neg": operator.neg, "**": operator.pow,
    "//": lambda a, b: FloorDiv(sympy.sympify(a), sympy.sympify(b)), "/": _divided,
    "%": lambda a, b: PythonMod(sympy.sympify(a), sympy.sympify(b)),
    "==": sympy.Eq, "!=": sympy.Ne, "<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge,
    "and": sympy.And, "or": sympy.Or, "not": sympy.Not, "max": Max, "min": Min,
    "ceil": _rounded(CeilToInt), "floor": _rounded(FloorToInt), "int": _rounded(TruncToInt),
    "round": _rounded(RoundToInt), "float": ToFloat, "sqrt": OpaqueUnaryFn_sqrt, "log2": OpaqueUnaryFn_log2,
}  # fmt: skip


def sympy_of(term: Term, values: Mapping[str, Any]) -> Any:
    """A term over names as sympy has it, each name being the expression in `values`."""
    return sympy.sympify(term.evaluate(values, SYMPY))
