"""Whole numbers that a program counts for itself: `table[torch.arange(seq)]` is right for `seq <= length` only.

Shape functions see no values, so the least and the largest entry of what is counted are followed through what keeps
them exact: both occur. What may or may not occur is not followed, so that nothing is asked that torch does not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
from torch import SymInt, Tensor

from shaped.proof.arithmetic import holds
from shaped.proof.calls import Mismatch
from shaped.proof.indices import SAME, WHOLE, uses
from shaped.proof.symbolic import expression

# All entries stay, or are there several times.
_SAME = SAME | {"flip", "roll", "tile", "broadcast_to", "view_as", "reshape_as", "type_as", "moveaxis", "swapdims"}
_SUMS = {"add": 1, "radd": 1, "sub": -1, "subtract": -1}
Ends = tuple[sympy.Expr, sympy.Expr]


class Counted:
    """What a program counts, each with its least and largest entry.

    Args:
        show: A size in names.
        ask: Whether a relation between sizes is so; what only the size hints can decide is a condition.
    """

    def __init__(self, show: Callable[[Any], str], ask: Callable[[sympy.Basic], bool]) -> None:
        self._known: dict[int, tuple[Tensor, int, Ends]] = {}  # with the version; kept: ids are not reused
        self._show, self._ask = show, ask

    def note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Look at a call.

        Raises:
            Mismatch: It looks up what lies beyond an axis.
        """
        if self._known:
            for index, length, counts_back in uses(name, args, kwargs):
                ends = self._ends(index)
                if ends is not None:
                    self._hold(name, ends, expression(length), counts_back)
        if isinstance(result, Tensor) and result.dtype in WHOLE:
            counted = name == "arange"
            ends = _counted(args, kwargs, result.shape[0]) if counted else self._followed(name, args, kwargs)
            if ends is not None and all(holds(sympy.Ge(expression(size), 1)) for size in result.shape):
                self._known[id(result)] = result, result._version, ends

    def _hold(self, name: str, ends: Ends, length: sympy.Expr, counts_back: bool) -> None:
        least, largest = ends
        lowest = -length if counts_back else sympy.Integer(0)
        for low, high, at in ((largest, length - 1, largest), (lowest, least, least)):
            fact = _at_most(low, high)
            if holds(fact) or (fact != sympy.false and self._ask(fact)):
                continue
            goal = self._show(fact) if fact.free_symbols else f"{self._show(low)} <= {self._show(high)}"
            raise Mismatch(goal, f"{name} looks up the position {self._show(at)} of {self._show(length)}")

    def _ends(self, tensor: Any) -> Ends | None:
        """Of a tensor that was counted and not written into since."""
        found, version, ends = self._known.get(id(tensor), (None, 0, None))
        return ends if found is not None and found._version == version else None

    def _followed(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ends | None:
        """Least and largest entry of what a call makes of others."""
        if not self._known or not args or "out" in kwargs:
            return None
        mine = self._ends(args[0])
        if name in _SAME:
            return mine
        if mine is not None and name == "getitem":
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            return mine if all(map(_is_whole, parts)) else None
        if len(args) == 2 and not kwargs:
            if name in _SUMS:
                return self._sum(args[0], args[1], _SUMS[name])
            if name == "rsub":
                return self._sum(args[1], args[0], -1)
            if name in ("mul", "rmul", "multiply") and mine is not None and type(args[1]) is int:
                return _ordered(mine[0] * args[1], mine[1] * args[1], args[1] < 0)
        return None

    def _sum(self, first: Any, second: Any, sign: int) -> Ends | None:
        """Of two that have no axis in common, so that each entry of one meets each of the other."""
        a, b = self._or_number(first), self._or_number(second)
        if a is None or b is None or _share_an_axis(first, second):
            return None
        least, largest = (b[0], b[1]) if sign > 0 else (-b[1], -b[0])
        return a[0] + least, a[1] + largest

    def _or_number(self, value: Any) -> Ends | None:
        if type(value) is int or isinstance(value, SymInt):
            return expression(value), expression(value)
        return self._ends(value)


def _is_whole(part: Any) -> bool:
    """Whether a part of an index takes all of an axis, or makes one."""
    return part is None or part is ... or (isinstance(part, slice) and part == slice(None))


def _counted(args: Sequence[Any], kwargs: Mapping[str, Any], count: Any) -> Ends | None:
    """Of `torch.arange` with so many entries, upwards in whole steps."""
    given = dict(zip(("end",) if len(args) == 1 else ("start", "end", "step"), args, strict=False)) | dict(kwargs)
    start, step = given.get("start", 0), given.get("step", 1)
    if not (type(start) is int or isinstance(start, SymInt)) or type(step) is not int or step < 1:
        return None
    return expression(start), expression(start) + (expression(count) - 1) * step


def _share_an_axis(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    pairs = zip(reversed(first.shape), reversed(second.shape), strict=False)
    return any(not ((type(a) is int and a == 1) or (type(b) is int and b == 1)) for a, b in pairs)


def _ordered(a: sympy.Expr, b: sympy.Expr, turned: bool) -> Ends:
    return (b, a) if turned else (a, b)


def _at_most(low: sympy.Expr, high: sympy.Expr) -> sympy.Basic:
    """`low <= high`, with each size on the side where nothing is taken from it: `seq <= length`."""
    number, rest = sympy.expand(high - low).as_coeff_Add()
    terms = sympy.Add.make_args(rest)
    below = [-term for term in terms if term.as_coeff_Mul()[0] < 0]
    return sympy.Le(sympy.Add(*below), sympy.Add(number, *(t for t in terms if t.as_coeff_Mul()[0] > 0)))
