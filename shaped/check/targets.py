"""What a module defines that can be proved: functions, and the methods of its classes."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CellType, ModuleType
from typing import Any, Literal

from shaped.check.choices import has_shape
from shaped.check.instances import hints_of

Kind = Literal["function", "method", "class"]
_BEHIND = 8  # functions that decorators may hide another in


@dataclass(frozen=True)
class Target:
    """A function, or a method of a class."""

    name: str  # "loss", "Net.forward"
    function: Callable[..., Any]
    owner: type | None = None
    kind: Kind = "function"  # of a static method, too: it is called on nothing
    within: Callable[..., Any] | None = None  # the function that makes it, which `owner` and `kind` are then about
    lines: range = range(0)  # of its own, where it is within another

    @property
    def is_alone(self) -> bool:
        """Whether it is a function of no class and of no other function."""
        return self.owner is None and self.within is None

    @property
    def has_shapes(self) -> bool:
        """Whether one of its annotations is a tensor's."""
        return any(map(has_shape, hints_of(inspect.unwrap(self.function)).values()))


def declares_only(function: Callable[..., Any]) -> bool:
    """Whether a function is there for others to define: its body is `...`, `pass` or `raise NotImplementedError`."""
    try:
        lines, _ = inspect.getsourcelines(inspect.unwrap(function).__code__)
        node = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except (OSError, SyntaxError, IndexError, TypeError, AttributeError):
        return False
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_empty(node.body)


def is_empty(body: Sequence[ast.stmt]) -> bool:
    """Whether statements do nothing, or only say that others have to."""
    return all(
        isinstance(one, ast.Pass)
        or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        or (isinstance(one, ast.Raise) and one.exc is not None and "NotImplementedError" in ast.unparse(one.exc))
        for one in body
    )


def functions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a module itself defines, in order."""
    found = {name: _defined(value, module.__name__, name) for name, value in vars(module).items() if callable(value)}
    return {name: function for name, function in found.items() if function is not None}


def _defined(value: Any, module: str, name: str) -> Callable[..., Any] | None:
    """The function of this module that a name stands for, also behind a decorator that does not say so; or none."""
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < _BEHIND:
        one = waiting.pop(0)
        if id(one) in seen or not callable(one) or not inspect.isfunction(inspect.unwrap(one)):
            continue
        seen.add(id(one))
        if one.__module__ == module and (one is value or one.__qualname__ == name):
            return one  # type: ignore[no-any-return]
        waiting += [cell.cell_contents for cell in getattr(one, "__closure__", None) or () if _is_full(cell)]
    return None


def _is_full(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not yet
        return False


def methods_of(module: ModuleType) -> dict[str, Target]:
    """The methods of the classes that a module itself defines, with those of classes within; in order."""
    found: dict[str, Target] = {}
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and value.__qualname__ == name:
            found.update({target.name: target for target in _methods(value)})
    return found


def _methods(owner: type) -> Iterator[Target]:
    for name, value in vars(owner).items():
        function, kind = _function(value)
        function = _defined(function, owner.__module__, f"{owner.__qualname__}.{name}")
        if function is not None and _is_written(function):
            yield Target(f"{owner.__qualname__}.{name}", function, owner, kind)
        elif isinstance(value, type) and value.__qualname__ == f"{owner.__qualname__}.{name}":
            yield from _methods(value)


def _is_written(function: Callable[..., Any]) -> bool:
    """Whether somebody wrote it, rather than a dataclass."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is None or not code.co_filename.startswith("<")


def _function(value: Any) -> tuple[Callable[..., Any] | None, Kind]:
    """The function behind an attribute of a class, and what it is called on."""
    if isinstance(value, staticmethod):
        return value.__func__, "function"
    if isinstance(value, classmethod):
        return value.__func__, "class"
    if isinstance(value, property):
        return value.fget, "method"
    cached = getattr(value, "func", None)  # functools.cached_property
    function = cached if inspect.isfunction(cached) else value
    found = callable(function) and inspect.isfunction(inspect.unwrap(function))
    return (function if found else None), "method"


def named(name: str, functions: Mapping[str, Callable[..., Any]], methods: Mapping[str, Target]) -> dict[str, Target]:
    """The targets of a name: a function, a method, or all methods of a class."""
    if name in functions:
        return {name: Target(name, functions[name])}
    return {key: target for key, target in methods.items() if key == name or key.startswith(f"{name}.")}
