"""Reads as a trace makes them, one at a time, and what of all that is in a value counts as read.

An object that keeps what it holds in C, where nothing tells of it, is hidden: a program that reads it is not compiled.
"""

import gc
import types
import weakref
from collections.abc import Container, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from shaped.params import ParamList
from shaped.proof.contents import hides, own_dictionary, slots_of
from shaped.proof.reads import (
    ATTRIBUTE,
    BUFFERS,
    CALLED,
    CELL,
    CONTEXT,
    DESCRIBED,
    ITEM,
    MISSING,
    PLACED,
    PLAIN,
    SPEAKERS,
    VIEWS,
    WHOLE,
    Read,
    Reads,
    is_array,
    is_container,
    is_leaf,
    is_library,
    is_node,
    is_traced,
    own,
    parts,
    same,
)

_LIMIT = 20_000  # entries of containers that are looked at in one trace
_OF_ENUMS = {"_value_", "_name_", "__objclass__", "_sort_order_"}


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
        self._hidden: dict[int, Any] = {}
        self.beyond: Any = None
        self.calls: dict[tuple[int, str], Read] = {}  # functions of libraries' modules

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

    def hide(self, value: Any) -> None:
        """What a value holds is read, and nothing tells of it."""
        self._hidden[id(value)] = value

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
            if hides(one):
                self.hide(one)
                continue
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
        hidden = next((r for r in found if id(r.value) in self._hidden), None)
        changed = [read for read in found if self._is_changed(read)]
        for read in changed:
            if not is_leaf(read.value):
                read.value = MISSING  # it may hold tensors of the trace
        for read in found:
            if read.kind == WHOLE and isinstance(read.value, tuple):
                read.value = tuple([PLACED if is_traced(part) else part for part in read.value])
        calls = [read for read in self.calls.values() if read.now() is read.value]
        return Reads(found, changed, calls=calls, beyond=beyond, hidden="" if hidden is None else _told(hidden))

    def _is_changed(self, read: Read) -> bool:
        if (id(read.owner), read.kind, read.key) in self._counted or id(read.owner) in self._written:
            return True
        if is_node(read):  # one like it may take its place
            return type(read.now()) is not type(read.value)
        return not is_traced(read.value) and not same(read.value, read.now())


def _holds(value: Any) -> bool:
    """Whether there is something in a value that a program may read."""
    if is_container(value) or issubclass(type(value), (weakref.ref, *VIEWS)):
        return True
    closed = (Tensor, nn.Module, types.ModuleType, types.FunctionType, type, *SPEAKERS)
    if isinstance(value, closed) or is_traced(value):
        return False
    if is_leaf(value):  # a member may be given more, and a number of a class of the user's
        held = own_dictionary(value) or {}
        return any(name not in _OF_ENUMS or not is_leaf(one) for name, one in held.items() if one is not type(value))
    if isinstance(value, types.MethodType | ParamList) or hasattr(type(value), "__slots__") or hides(value):
        return True
    return own(value, "__dict__", None) is not None  # without a `__getattr__` of its own


def _placeless(value: Any) -> list[Any]:
    """What a value holds that no key finds: the entries of a set, a mapping's keys, what is referred to weakly."""
    if isinstance(value, weakref.ref):
        return [value()]
    if issubclass(type(value), VIEWS):
        return gc.get_referents(value)
    return list(value) if isinstance(value, dict | set | frozenset) else []


def _contents(value: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Everything in a value, as reads; the tensors of a trace are none of ours."""
    if isinstance(value, dict):
        yield WHOLE, value, None, parts(value)
        yield from ((PLAIN, value, key, held) for key, held in list(value.items()))
    elif is_container(value):
        yield WHOLE, value, None, parts(value)
        if not is_array(value) and not isinstance(value, BUFFERS):
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
            for name in slots_of(kind):
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


def _name_of(root: Any) -> str:
    return "" if isinstance(root, dict | types.CellType) else str(own(root, "__name__", type(root).__name__))


def _text(read: Read, owner: str, own: bool) -> str:
    if read.kind in (WHOLE, CONTEXT):
        return owner
    if read.kind == CALLED:
        return f"{owner}({', '.join(map(repr, read.key))})"
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


def _told(read: Read) -> str:
    """What is hidden, and of which class it is."""
    kind = type(read.value)
    return f"`{read.text}` ({kind.__module__.removeprefix('_')}.{kind.__qualname__})"
