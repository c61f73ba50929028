"""Whose cells and defaults a frame reads: it has its code, which many functions may share, and not its function."""

import gc
import types
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import Any

from shaped.proof.instructions import UNKNOWN, Shadow
from shaped.proof.reads import MISSING, own


class Functions:
    """The functions that a program has from outside, by their code, and those that it makes itself."""

    def __init__(self) -> None:
        self._outside: dict[CodeType, list[Any]] = {}
        self._made: set[CodeType] = set()  # codes of which the program makes functions
        self._parents: dict[CodeType, CodeType] = {}
        self._sought: set[CodeType] = set()

    def add(self, function: types.FunctionType, outside: Callable[[], bool] | None = None) -> bool:
        """A function that was met. False where it is known, or may be one that the program has made.

        Args:
            function: The one.
            outside: Whether it was read from outside, asked where the program has made functions of its code by now.
        """
        code = function.__code__
        if self._is_outside(function) or (code in self._made and not (outside is not None and outside())):
            return False
        self._outside.setdefault(code, []).append(function)
        for inner in (c for c in code.co_consts if isinstance(c, CodeType)):
            self._parents.setdefault(inner, code)
        return True

    def of(self, code: CodeType) -> list[Any]:
        """Those from outside that have this code."""
        return self._outside.get(code, [])

    def make(self, code: Any, parent: CodeType) -> None:
        """The program makes a function of this code, in a frame of another."""
        if isinstance(code, CodeType):
            self._parents[code] = parent
            self._made.add(code)

    def _is_outside(self, function: Any) -> bool:
        return any(one is function for one in self.of(function.__code__))

    def cells(self, code: CodeType, name: str, value: Any, function: Any = None) -> list[Any]:
        """The cell of a variable that a function has from outside of the program; none if it is made within.

        Args:
            code: Of the frame.
            name: Of the variable.
            value: Which it has. Where it is not known whose the frame is, all cells are taken that hold it.
            function: Whose the frame is, if that is known.
        """
        while name in code.co_freevars:
            index = code.co_freevars.index(name)
            if function is not None and self._is_outside(function):
                return [function.__closure__[index]]
            if function is None:
                self._seek(code)
                cells = [one.__closure__[index] for one in self.of(code) if one.__closure__]
                found = [cell for cell in cells if content(cell) is value]
                if found:
                    return found
            if code not in self._parents:
                break
            code, function = self._parents[code], None
        return []

    def _seek(self, code: CodeType) -> None:
        """A getter, a method of a class in a function, a hook: C code calls it, and nobody has named it."""
        if code not in self._sought and code not in self._made:
            self._sought.add(code)
            for function in gc.get_referrers(code):
                if isinstance(function, types.FunctionType):
                    self.add(function)


def content(cell: Any) -> Any:
    """What a cell holds, missing where it is empty yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def function_of(value: Any) -> Any:
    """The function of Python that a call of a value enters, if it is told without running code; else None."""
    for _ in range(8):  # a method of a partial of a method
        if isinstance(value, types.FunctionType):
            return value
        if isinstance(value, types.MethodType | staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, partial):
            value = value.func
        elif isinstance(value, type | types.BuiltinFunctionType) or own(value, "__class__", None) is None:
            return None
        else:
            value = next((vars(c)["__call__"] for c in type(value).__mro__ if "__call__" in vars(c)), None)
    return None


def taken_by(caller: Shadow) -> list[Any]:
    """What a call takes from the stack: the function among the first two, then what it is given; else nothing."""
    last = caller.last
    if last is None or last.name not in ("CALL", "CALL_KW", "CALL_FUNCTION_EX"):
        return []
    arg = int(last.arg or 0)
    length = 3 + arg % 2 if last.name == "CALL_FUNCTION_EX" else arg + 2 + (last.name == "CALL_KW")
    return caller.stack[-length:]


def callee(caller: Shadow, code: CodeType) -> Any:
    """The function of this code that a frame is calling right now, as far as its stack tells."""
    for head in taken_by(caller)[:2]:
        function = None if head is UNKNOWN else function_of(head)
        if function is not None and function.__code__ is code:
            return function
    return None


def above(frame: FrameType) -> Any:
    """`super()` in a frame of a method."""
    kind, names = frame.f_locals.get("__class__"), frame.f_code.co_varnames
    first = frame.f_locals.get(names[0]) if names else None
    try:
        return super(kind, first) if isinstance(kind, type) else UNKNOWN  # type: ignore[arg-type]
    except TypeError:
        return UNKNOWN
