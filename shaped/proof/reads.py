"""What a program reads from outside of itself: where each value lies, what it was, and whether it is still that.

A read is an owner (a module's globals, an object's dictionary, a cell, a list) and a key. Its owner is the value of
another read, or something that was there from the start, so that each value can be looked up again along its path,
after anything on the way was replaced. Values are compared, tensors are held to their shape, dtype and device.
"""

import gc
import logging
import types
import weakref
from array import array
from collections import deque
from collections.abc import Container, ItemsView, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from shaped.params import ParamList

PLAIN, ITEM, ATTRIBUTE, CELL, WHOLE, CONTEXT = "plain", "item", "attribute", "cell", "whole", "context"
DESCRIBED = "described"  # a descriptor of a class, as it lies there: asked for as an attribute it would run its code
READS = "reads"  # in a graph's meta: what its trace read from outside
NOT_READ = (dict, list, set, deque)  # containers that methods may write into without reading
_LIMIT = 20_000  # entries of containers that are looked at in one trace
_LEAVES = (
    *(int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice, Enum),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
# What a program says goes through these; they change as others speak, and no number of it lies there.
_SPEAKERS = (logging.Filterer, logging.Manager, logging.Formatter)
_LIBRARIES = ("torch", "numpy", "builtins", "functorch", "einops", "math", "shaped", "jaxtyping", "sympy")
_BYTES = bytearray, memoryview, array
_VIEWS = KeysView, ValuesView, ItemsView, types.MappingProxyType  # of what they refer to


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
        settled: Such changes alter nothing: the program traced once more, after them, is the same.
        beyond: What holds too much to look at.
        looks: What is read of an input beside its values and its shape.
        codes: What code was run, of those that are followed, with the name of the module that its globals are.
    """

    found: list[Read] = field(default_factory=list)
    changed: list[Read] = field(default_factory=list)
    settled: bool = False
    beyond: str = ""
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
    if type(container).__module__ == "numpy":
        return container.copy()
    if isinstance(container, Tensor):
        return repr(container.tolist())
    return frozenset(container) if isinstance(container, set | frozenset) else tuple(container)


def is_leaf(value: Any) -> bool:
    """Whether it is a number, a text or the like, which is compared by value."""
    return isinstance(value, _LEAVES) or (type(value).__module__ == "numpy" and not is_array(value))


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy."""
    return type(value).__module__ == "numpy" and type(value).__name__ in ("ndarray", "memmap", "recarray")


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


class Log:
    """Reads as they come. Which of them are from outside is told at the end: what is reached from the roots."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str, Any], Read] = {}
        self._roots: dict[int, tuple[Any, str]] = {}
        self._dictionaries: dict[int, Any] = {}  # of which object a dictionary is
        self._within: dict[int, tuple[Any, list[Any]]] = {}  # what has no place in a set, a weak reference, as a key
        self._seen: dict[int, Any] = {}
        self._counted: set[tuple[int, str, Any]] = set()
        self._written: dict[int, Any] = {}
        self._budget = _LIMIT
        self.beyond: Any = None

    def root(self, owner: Any, name: str = "") -> None:
        """Something that is there before the program runs, and what it is called."""
        self._roots.setdefault(id(owner), (owner, name))

    def alias(self, holder: Any, owner: Any) -> None:
        """A dictionary that is an object's own."""
        if holder is not owner and isinstance(holder, dict):
            self._dictionaries.setdefault(id(holder), owner)
        elif isinstance(holder, type):
            self.root(holder)

    def add(self, kind: str, owner: Any, key: Any, value: Any) -> None:
        """Note a read, the first of its place."""
        if isinstance(value, types.ModuleType):
            self.root(vars(value), value.__name__)
        elif isinstance(value, types.FunctionType | type):
            self.root(value)
        place = (id(owner), kind, key)
        if place not in self._found:
            self._found[place] = Read(kind, owner, key, value)

    def count(self, kind: str, owner: Any, key: Any) -> None:
        """A number that the program counts up."""
        self._counted.add((id(owner), kind, key))

    def write(self, container: Any) -> None:
        """A container that the program changes: it may hold more at the next call."""
        self._written[id(container)] = container

    def is_outside(self, owner: Any) -> bool:
        """Whether something is reached from the roots, as far as it is known by now."""
        waiting, seen = [owner], set[int]()
        sources: dict[int, list[Any]] = {}
        for read in self._found.values():
            sources.setdefault(id(read.value), []).append(read.owner)
        while waiting:
            one = waiting.pop()
            if id(one) in self._roots:
                return True
            if id(one) not in seen:
                seen.add(id(one))
                waiting += sources.get(id(one), [])
                waiting += [self._dictionaries[id(one)]] if id(one) in self._dictionaries else []
                waiting += self._within[id(one)][1] if id(one) in self._within else []
        return False

    def deep(self, value: Any) -> None:
        """All that is in a value is read."""
        waiting = [value]
        while waiting and self._budget > 0:
            one = waiting.pop()
            if id(one) in self._seen or not _holds(one):
                continue
            self._seen[id(one)] = one
            for part in filter(_holds, _placeless(one)):
                self._within.setdefault(id(part), (part, []))[1].append(one)
                waiting.append(part)
            for kind, owner, key, held in _contents(one):
                self._budget -= 1
                if owner is not one:
                    self.alias(owner, one)
                self.add(kind, owner, key, held)
                if kind != WHOLE:
                    waiting.append(held)
        if self._budget <= 0 and self.beyond is None:
            self.beyond = value

    def reads(self) -> Reads:
        """What was read from outside: the owner was there before, or was itself read from outside."""
        by_owner: dict[int, list[Read]] = {}
        for read in self._found.values():
            by_owner.setdefault(id(read.owner), []).append(read)
        owned: dict[int, list[int]] = {}
        for holder, owner in self._dictionaries.items():
            owned.setdefault(id(owner), []).append(holder)
        inside: dict[int, list[Any]] = {}
        for part, holders in self._within.values():
            for holder in holders:
                inside.setdefault(id(holder), []).append(part)
        found: list[Read] = []
        reached: set[int] = set()
        waiting: list[tuple[int, int, str, bool]] = [
            (at, -1, name or _name_of(owner), False) for at, (owner, name) in self._roots.items()
        ]
        while waiting:
            at, parent, text, own = waiting.pop(0)
            if at in reached:
                continue
            reached.add(at)
            waiting.extend((holder, parent, text, True) for holder in owned.get(at, ()))
            waiting.extend((id(part), -1, _name_of(part), False) for part in inside.get(at, ()))
            for read in by_owner.get(at, ()):
                if is_traced(read.value) and (read.kind != ITEM or id(read.owner) not in self._written):
                    continue  # an input of the graph; and a proof that is over keeps none of its tensors
                read.value = MISSING if is_traced(read.value) else read.value
                read.parent, read.own, read.text = parent, own, _text(read, text, own)
                if isinstance(read.value, Tensor):
                    read.first, read.proved = read.value, (read.value.shape, read.value.dtype, read.value.device)
                found.append(read)
                if any(id(read.value) in known for known in (by_owner, owned, inside)):
                    waiting.append((id(read.value), len(found) - 1, read.text, False))
        beyond = next((r.text for r in found if r.value is self.beyond), "") if self.beyond is not None else ""
        changed = [read for read in found if self._is_changed(read)]
        for read in changed:
            if not is_leaf(read.value):
                read.value = MISSING  # it may hold tensors of the trace
        for read in found:
            if read.kind == WHOLE and isinstance(read.value, tuple):
                read.value = tuple([PLACED if is_traced(part) else part for part in read.value])
        return Reads(found, changed, beyond=beyond)

    def _is_changed(self, read: Read) -> bool:
        if (id(read.owner), read.kind, read.key) in self._counted or id(read.owner) in self._written:
            return True
        if is_node(read):  # one like it may take its place
            return type(read.now()) is not type(read.value)
        return not is_traced(read.value) and not same(read.value, read.now())


def _holds(value: Any) -> bool:
    """Whether there is something in a value that a program may read."""
    if is_container(value) or isinstance(value, (weakref.ref, *_VIEWS)):
        return True
    closed = (Tensor, nn.Module, types.ModuleType, types.FunctionType, type, *_SPEAKERS)
    if isinstance(value, closed) or is_leaf(value) or is_traced(value):
        return False
    if isinstance(value, types.MethodType | ParamList) or hasattr(type(value), "__slots__"):
        return True
    return own(value, "__dict__", None) is not None  # without a `__getattr__` of its own


def _placeless(value: Any) -> list[Any]:
    """What a value holds that no key finds: the entries of a set, a mapping's keys, what is referred to weakly."""
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, _VIEWS):
        return gc.get_referents(value)
    return list(value) if isinstance(value, dict | set | frozenset) else []


def _contents(value: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Everything in a value, as reads; the tensors of a trace are none of ours."""
    if isinstance(value, dict):
        yield WHOLE, value, None, parts(value)
        yield from ((PLAIN, value, key, held) for key, held in list(value.items()))
    elif is_container(value):
        yield WHOLE, value, None, parts(value)
        if not is_array(value):
            numbered = enumerate(value) if not isinstance(value, set | frozenset) else ()
            yield from ((ITEM, value, i, held) for i, held in numbered if not is_leaf(held))
    elif isinstance(value, ParamList):
        yield from ((ITEM, value, i, tensor) for i, tensor in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield ATTRIBUTE, value, "__self__", value.__self__
    elif isinstance(value, partial):
        yield from ((ATTRIBUTE, value, name, getattr(value, name)) for name in ("func", "args", "keywords"))
    else:
        try:
            held_by = getattr(value, "__dict__", None)
        except Exception:  # code of its own
            held_by = None
        if isinstance(held_by, dict):
            yield from ((PLAIN, held_by, key, held) for key, held in list(held_by.items()))
        for kind in type(value).__mro__:
            for name in _slots(kind):
                yield ATTRIBUTE, value, name, getattr(value, name, MISSING)
        yield from of_class(type(value), held_by if isinstance(held_by, dict) else ())


def of_class(kind: type, hidden: Container[str] = ()) -> Iterator[tuple[str, Any, Any, Any]]:
    """The values that users' classes give to all of a kind, as reads; their code is told by its frames."""
    names: set[str] = set()
    for one in kind.__mro__:
        for name, held in list(vars(one).items()) if not is_library(one.__module__) else ():
            coded = name.startswith(("__", "_abc_")) or hasattr(type(held), "__get__")
            if not coded and name not in names and name not in hidden:
                yield ATTRIBUTE, kind, name, held
            names.add(name)


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return [s for s in ((slots,) if isinstance(slots, str) else slots) if s not in ("__dict__", "__weakref__")]


def _name_of(root: Any) -> str:
    return "" if isinstance(root, dict | types.CellType) else str(own(root, "__name__", type(root).__name__))


def _text(read: Read, owner: str, own: bool) -> str:
    if read.kind in (WHOLE, CONTEXT):
        return owner
    if read.kind == CELL:
        return str(read.key)
    if read.kind in (ATTRIBUTE, DESCRIBED) or own:
        return f"{owner}.{read.key}" if owner else str(read.key)
    if not owner:
        return str(read.key)
    module, _, kept = owner.rpartition(".")
    if kept in ("_modules", "_parameters", "_buffers"):
        return f"{module}.{read.key}"
    if read.kind == PLAIN and isinstance(read.owner, dict) and "__name__" in read.owner:
        return f"{owner}.{read.key}"
    return f"{owner}[{read.key!r}]"


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
