"""How a module's code uses a name of Python's own: whether all that it does with it is to call it."""

import dis
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")


def is_only_called(module: dict[str, Any], name: str) -> bool:
    """Whether no function or method of a module hands a name on, as `dtype=float` does."""
    return not any(name in code.co_names and _is_handed_on(code, name) for code in _codes(module))


def _codes(module: dict[str, Any]) -> Iterator[types.CodeType]:
    waiting: list[Any] = list(module.values())
    seen = set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, types.CodeType):
            yield one
            waiting += [part for part in one.co_consts if isinstance(part, types.CodeType)]
        elif isinstance(one, types.FunctionType) and one.__globals__ is module:
            waiting.append(one.__code__)
        elif isinstance(one, type) and one.__module__ == module.get("__name__"):
            waiting += vars(one).values()
        elif isinstance(one, staticmethod | classmethod):
            waiting.append(one.__func__)
        elif isinstance(one, property):
            waiting += [one.fget, one.fset]


@cache
def _is_handed_on(code: types.CodeType, name: str) -> bool:
    """Whether it is loaded other than for a call: what is called has a NULL beside it on the stack."""
    loads = [one for one in dis.get_instructions(code) if one.opname in _LOADS and one.argval == name]
    return any(one.opname == "LOAD_NAME" or not int(one.arg or 0) & 1 for one in loads)
