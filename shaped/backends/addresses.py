"""Where the owner of a read from outside is found again in another process: by number, by name, or along closures.

What the program reaches has a number there (`reach.py`). What lies within an installed package is found by the name of
its module, its class and its function; a cell of a function that is wrapped there, by the names of the closures on the
way to it.
"""

import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from shaped.backends.kernels import Unkeepable
from shaped.backends.reach import Reach, named
from shaped.proof.reads import Read

_DEEPEST = 16  # functions that are wrapped in one another


class Addresses:
    """The addresses of what a program reads.

    Args:
        reach: All that the program reaches.
        values: What it read, where more functions may be.
    """

    def __init__(self, reach: Reach, values: Sequence[Any]) -> None:
        self._reach, self._values = reach, values
        self._within: dict[int, list[Any]] | None = None

    def of(self, read: Read) -> list[Any]:
        """Where another process finds the owner of a read.

        Raises:
            Unkeepable: It does not.
        """
        owner = read.owner
        if id(owner) in self._reach.numbers:
            return ["line", self._reach.numbers[id(owner)]]
        if owner is os.environ:
            return ["environment"]
        if isinstance(owner, dict):
            name = owner.get("__name__")
            if isinstance(name, str) and name in sys.modules and vars(sys.modules[name]) is owner:
                return ["module", name]
        if isinstance(owner, type | types.FunctionType) and _by_name(owner.__module__, owner.__qualname__) is owner:
            return ["named", owner.__module__, owner.__qualname__]
        if isinstance(owner, types.CellType | types.FunctionType):
            if self._within is None:
                roots = dict.fromkeys(_named_ones([*self._reach.things, *self._values]))
                self._within = {id(thing): path for root in roots for thing, path in _within(root)}
            if id(owner) in self._within:
                return ["within", *self._within[id(owner)]]
        raise Unkeepable(f"it reads `{read.text}` in a {named(type(owner))} that is not found again in another process")


def found_again(address: Sequence[Any], reach: Reach) -> Any:
    """The owner that an address tells.

    Raises:
        ValueError: It is not there.
    """
    kind, *where = address
    if kind == "line":
        return reach.things[where[0]]
    if kind == "environment":
        return os.environ
    module = sys.modules.get(where[0])
    if module is None:
        raise ValueError(f"`{where[0]}` is not imported")
    if kind == "module":
        return vars(module)
    root = _by_name(*where[:2])
    if kind == "named":
        if root is None:
            raise ValueError(f"`{where[0]}` has no `{where[1]}`")
        return root
    if isinstance(root, type | types.FunctionType):
        for thing, (_, _, *path) in _within(root):
            if path == where[2:]:
                return thing
    raise ValueError(f"`{where[1]}` of `{where[0]}` has no `{where[-1]}` in it")


def _by_name(module: Any, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _named_ones(things: Sequence[Any]) -> Iterator[Any]:
    """Classes, the bases of them too, and functions that are found by their names."""
    for thing in things:
        for one in thing.__mro__ if isinstance(thing, type) else (thing,):
            if isinstance(one, type | types.FunctionType) and _by_name(one.__module__, one.__qualname__) is one:
                yield one


def _within(root: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The functions of a class, or one by itself, with their cells and what they wrap; and the names on the way."""
    own = vars(root).items() if isinstance(root, type) else [("", root)]
    for name, one in own:
        yield from _around(one, [root.__module__, root.__qualname__, name], _DEEPEST)


def _around(thing: Any, path: list[Any], left: int) -> Iterator[tuple[Any, list[Any]]]:
    function = thing
    if isinstance(thing, staticmethod | classmethod | types.MethodType):
        function = thing.__func__
    elif isinstance(thing, property):
        function = thing.fget
    if not isinstance(function, types.FunctionType) or not left:
        return
    yield function, [*path, "()"]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield cell, [*path, name]
        try:
            held = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        yield from _around(held, [*path, name], left - 1)
