"""What a program reads from outside of itself: where each value lies, what it was, and whether it is still that.

A read is an owner (a module's globals, an object's dictionary, a cell, a list) and a key. Its owner is the value of
another read, or something that was there from the start, so that each value can be looked up again along its path,
after anything on the way was replaced. Values are compared, tensors are held to their shape, dtype and device.
"""

import ctypes
import logging
import mmap
import types
import weakref
from array import array
from collections import deque
from collections.abc import ItemsView, KeysView, ValuesView
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from shaped.proof.contents import ARRAYS, ITERATORS

PLAIN, ITEM, ATTRIBUTE, CELL, WHOLE, CONTEXT = "plain", "item", "attribute", "cell", "whole", "context"
DESCRIBED = "described"  # a descriptor of a class, as it lies there: asked for as an attribute it would run its code
CALLED = "called"  # what a function says that asks how this process is set
READS = "reads"  # in a graph's meta: what its trace read from outside
NOT_READ = (dict, list, set, deque)  # containers that methods may write into without reading
_LEAVES = (
    *(int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice, Enum),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
# What a program says goes through these; they change as others speak, and no number of it lies there.
SPEAKERS = (logging.Filterer, logging.Manager, logging.Formatter)
_LIBRARIES = ("torch", "numpy", "builtins", "functorch", "einops", "math", "shaped", "jaxtyping", "sympy")
BUFFERS: tuple[Any, ...] = ctypes.Structure.__mro__[1], mmap.mmap  # all that ctypes makes
_BYTES = bytearray, memoryview, array, *BUFFERS
VIEWS = KeysView, ValuesView, ItemsView, types.MappingProxyType  # of what they refer to


class _Missing:
    """No value there."""

    def __repr__(self) -> str:
        return "missing"


MISSING: Any = _Missing()


class _Placed:
    """In a container, a tensor that the trace put in the place of one of the program's own."""

    def __repr__(self) -> str:
        return "a tensor"


PLACED: Any = _Placed()


@dataclass(eq=False)
class Read:
    """A value and where it lies.

    Attributes:
        kind: How it is looked up.
        owner: In what; replaced when something on the way to it is.
        key: At what.
        value: What was there. For WHOLE the parts, for an array a copy.
        parent: Number of the read whose value the owner is, or whose value's dictionary; -1 if it was there before.
        own: Whether the owner is the dictionary of the parent's value.
        text: The same as users write it: `CONFIG.beta`.
        first, proved: Of a tensor, the one that was traced, with its shape, dtype and device.
    """

    kind: str
    owner: Any
    key: Any
    value: Any
    parent: int = -1
    own: bool = False
    text: str = ""
    first: Any = None
    proved: Any = None

    def now(self) -> Any:
        """What is there now."""
        try:
            if self.kind == PLAIN:
                return dict.get(self.owner, self.key, MISSING)
            if self.kind == ITEM:
                return self.owner[self.key]
            if self.kind == CELL:
                return self.owner.cell_contents
            if self.kind == CONTEXT:
                return self.owner.get(MISSING)
            if self.kind == ATTRIBUTE:
                return getattr(self.owner, self.key, MISSING)
            if self.kind == CALLED:
                return flat(self.owner(*self.key))
            if self.kind == DESCRIBED:
                return next((vars(c)[self.key] for c in self.owner.__mro__ if self.key in vars(c)), MISSING)
            return parts(self.owner)
        except (ValueError, IndexError, KeyError, RuntimeError):
            return MISSING


@dataclass
class Reads:
    """All that one trace read from outside, each after the one that it lies in.

    Attributes:
        found: The reads.
        changed: What the program itself changes, of what it reads.
        calls: Functions of libraries' modules, as they lie there.
        settled: Such changes alter nothing: the program traced once more, after them, is the same.
        beyond: What holds too much to look at.
        hidden: What keeps in C what is read of it.
        drawn: What gives another value each time, of a program that is no loss; a loss is refused for it.
        looks: What is read of an input beside its values and its shape.
        codes: What code was run, of those that are followed, with the name of the module that its globals are.
    """

    found: list[Read] = field(default_factory=list)
    changed: list[Read] = field(default_factory=list)
    calls: list[Read] = field(default_factory=list)
    settled: bool = False
    beyond: str = ""
    hidden: str = ""
    drawn: str = ""
    looks: str = ""
    codes: frozenset[tuple[types.CodeType, str]] = frozenset()

    @property
    def depends(self) -> list[str]:
        """What the program reads and changes, so that its next call may be another program: numbers in any case."""
        kinds = [(type(read.value), read.text) for read in self.changed]
        return list(dict.fromkeys(text for kind, text in kinds if not self.settled or kind in (int, float)))

    def of_tensor(self, tensor: Tensor) -> Read | None:
        """Where a tensor lies, or one that it is the `.data` of."""
        tensors = [read for read in self.found if read.first is not None]
        return next((r for r in tensors if r.first is tensor), None) or next(
            (r for r in tensors if _lies(r.first) == _lies(tensor)), None
        )


def parts(container: Any) -> Any:
    """What a container holds, to compare it with later: a dictionary's keys, the items of all others."""
    if isinstance(container, dict):
        return tuple(container)
    if is_array(container):
        return container.copy()
    if isinstance(container, Tensor):
        return repr(container.tolist())
    if isinstance(container, BUFFERS):
        return bytes(container)
    return frozenset(container) if isinstance(container, set | frozenset) else tuple(container)


def flat(value: Any) -> Any:
    """What a function gave, to compare it with later: containers of numbers as tuples."""
    if isinstance(value, dict):
        return tuple((key, flat(held)) for key, held in value.items())
    return tuple(map(flat, value)) if isinstance(value, list | tuple) else value


def is_leaf(value: Any) -> bool:
    """Whether it is a number, a text or the like, which is compared by value."""
    if isinstance(value, _LEAVES):
        return True
    return type(value).__module__ == "numpy" and not is_array(value) and type(value).__name__ not in ITERATORS


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy."""
    return type(value).__module__.partition(".")[0] == "numpy" and type(value).__name__ in ARRAYS


def is_container(value: Any, exact: bool = False) -> bool:
    """Whether it holds others; `exact`: and is looked into without running code of its own."""
    if exact:
        return type(value) in (dict, list, tuple, types.MappingProxyType) or (
            isinstance(value, dict | list | tuple) and type(value).__getitem__ in _GETTERS
        )
    return isinstance(value, (dict, list, tuple, set, frozenset, deque, *_BYTES)) or is_array(value)


_GETTERS = (dict.__getitem__, list.__getitem__, tuple.__getitem__)


def is_opaque(value: Any) -> bool:
    """Whether a module is a library's, whose contents do not change."""
    return is_library(getattr(value, "__name__", ""))


def is_library(name: Any) -> bool:
    """Whether a module of this name is one whose contents do not change."""
    return str(name).split(".")[0] in _LIBRARIES


def same(old: Any, new: Any) -> bool:
    """Whether a value is what it was: numbers by value, with their sign and type; others by identity."""
    if old is new:
        return True
    if old is PLACED:
        return isinstance(new, Tensor)
    if type(old) is not type(new):
        return False
    if isinstance(old, tuple):
        return len(old) == len(new) and all(map(same, old, new))
    if isinstance(old, Tensor):
        return False
    if isinstance(old, weakref.ref):
        return old() is new()
    if isinstance(old, float | complex):
        return repr(old) == repr(new)  # with the sign of zero, and NaN as itself
    if is_array(old):
        return bool(old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes())
    if isinstance(old, frozenset) or is_leaf(old):
        return bool(old == new)
    return isinstance(old, types.MethodType) and old.__func__ is new.__func__ and old.__self__ is new.__self__


def own(value: Any, name: str, default: Any) -> Any:
    """What an object has under a name without code of its own: a `__getattr__` may raise what it likes."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return default


def _lies(tensor: Tensor) -> Any:
    """Where a tensor lies in memory, and how."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def is_node(read: Read) -> bool:
    """Whether the value of a read is an object that other reads look into, which may be replaced by one like it."""
    value = read.value
    if read.kind == WHOLE or value is MISSING or is_leaf(value):
        return False
    return not isinstance(value, types.FunctionType | types.BuiltinFunctionType | type | weakref.ref)


def is_traced(value: Any) -> bool:
    """Whether it is a tensor of the trace itself, or one of its sizes."""
    return isinstance(value, FakeTensor | torch.SymInt | torch.SymFloat | torch.SymBool)
