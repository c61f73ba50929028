"""Sizes as the walk of a plan asks about them: quotients, and what an axis of the mesh divides."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch import SymInt, Tensor


def extent(size: Any) -> sympy.Expr:
    """The expression of a size."""
    return size.node.expr if isinstance(size, SymInt) else sympy.Integer(size)


def extents(t: Tensor) -> list[sympy.Expr]:
    """The expressions of a tensor's sizes."""
    return [extent(size) for size in t.shape]


def product(sizes: list[sympy.Expr]) -> sympy.Expr:
    """Of some sizes."""
    return sympy.Mul(*sizes)


def quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """a/b where b divides a whatever the symbols are; None otherwise."""
    if b == 1:
        return a
    whole, parts = b.as_coeff_Mul()
    number, factors = a.as_coeff_Mul()
    if not (whole.is_Integer and number.is_Integer) or whole == 0 or number % whole:
        return None
    left = dict(factors.as_powers_dict())
    for base, power in parts.as_powers_dict().items():
        if base == 1:
            continue
        left[base] = left.get(base, 0) - power
        if not (left[base].is_Integer and left[base] >= 0):
            return None
    return sympy.Integer(number // whole) * sympy.Mul(*[base**power for base, power in left.items()])


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": lambda *parts: sum(parts),
    "Mul": lambda *parts: math.prod(parts),
    "Pow": operator.pow,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
}


def computable(size: Any) -> bool:
    """Whether a size is arithmetic that `number_of` does."""
    if isinstance(size, int) or size.is_Integer or size.is_Symbol:
        return True
    return type(size).__name__ in _ARITHMETIC and all(map(computable, size.args))


def number_of(size: Any, symbols: Mapping[Any, Any]) -> Any:
    """A size where each symbol is a number, or a symbolic size of another trace."""
    if isinstance(size, int) or size.is_Integer:
        return int(size)
    if size.is_Symbol:
        return symbols[size]
    return _ARITHMETIC[type(size).__name__](*[number_of(part, symbols) for part in size.args])


class Extents:
    """What is known of sizes under a plan.

    Args:
        names: The expression of each dimension name.
        known: Sizes that are known, by name.
        planned: Names that lie over the axis.
        size: Of the axis.
        axis: Its name.

    Attributes:
        conditions: What was assumed, in words.
    """

    def __init__(
        self, names: Mapping[str, sympy.Expr], known: Mapping[str, int], planned: list[str], size: int, axis: str
    ) -> None:
        self._names, self._size, self._axis = names, size, axis
        self._planned = [names[name] for name in planned if name in names]
        self._shown: dict[sympy.Symbol, sympy.Expr] = {}
        self._values: dict[sympy.Symbol, sympy.Expr] = {}
        self.conditions = dict.fromkeys(f"{name} % {axis} == 0" for name in planned)
        for name, expression in names.items():
            number, symbol = expression.as_coeff_Mul()
            if symbol.is_Symbol:
                self._shown.setdefault(symbol, sympy.Symbol(name, positive=True, integer=True) / number)
                if name in known:
                    self._values[symbol] = sympy.Integer(known[name]) / number

    def show(self, size: sympy.Expr) -> str:
        """A size in dimension names."""
        return str(size.xreplace(self._shown)).replace("**", "^") if size.free_symbols else str(size)

    def shape(self, sizes: list[sympy.Expr]) -> str:
        """`[batch, 4*dim]`."""
        return f"[{', '.join(map(self.show, sizes))}]"

    def at(self, size: sympy.Expr) -> sympy.Expr:
        """With the sizes that are known put in."""
        return size.xreplace(self._values)

    def even(self, size: sympy.Expr) -> bool:
        """Whether the axis divides a size; what that hangs on is noted."""
        number, _ = size.as_coeff_Mul()
        if number.is_Integer and number % self._size == 0:
            return True
        if any(quotient(size, name) is not None for name in self._planned):
            return True
        value = self.at(size)
        if value.is_Integer and value % self._size == 0:
            if size.free_symbols:
                self.conditions[f"{self.show(size)} % {self._axis} == 0"] = None
            return True
        return False
