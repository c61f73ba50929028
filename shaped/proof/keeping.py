"""What a program can reach and write into, as it was before it was proved, and put back after each run.

A cache that a traced call filled would hold tensors without data, and the next run would read them. So the globals that
the program names, its closure, and the objects and containers in them are remembered first, and put back as they were.
Tensors are no part of this: writing into one from outside is refused (see shelter.py and fake.py).
"""

import dis
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import _lru_cache_wrapper, partial
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_LIBRARIES = {
    *("shaped", "shaped_kernels", "torch", "functorch", "numpy", "sympy", "jaxtyping", "beartype", "triton"),
    *("pytest", "_pytest", "pluggy", "xdist", "hypothesis"),  # to which an `assert` that pytest rewrote leads
    *(name for name in sys.stdlib_module_names if name != "__main__"),
}
_SEEDS = {"manual_seed", "seed", "set_rng_state", "set_state", "fork_rng", "default_generator"}
_BINDING = {dis.opmap[f"{way}_{of}"] for way in ("STORE", "DELETE") for of in ("GLOBAL", "ATTR", "DEREF")}
_LONGEST = 100_000  # entries of a container that is looked into
_BYTES = 2**26  # of an array that is copied
_MISSING: Any = object()

_kept: ContextVar["Kept | None"] = ContextVar("kept", default=None)


class Kept:
    """What is reached from some functions and objects."""

    def __init__(self, roots: Sequence[Any]) -> None:
        self._seen: dict[int, Any] = {}
        self._bound: set[tuple[int, str]] = set()  # names of a module or of globals that were looked at
        self._names: set[str] = set()  # that the program's code uses
        self._stores: set[str] = set()  # and binds anew, beyond its own variables
        self._places: list[tuple[str, Callable[[], None]]] = []  # by name, what puts one binding back
        self._puts: list[Callable[[], None]] = []  # each puts one thing back
        self._waiting: deque[tuple[Any, set[str]]] = deque((root, set()) for root in roots)
        self._python = self._numpy = False  # whether it may draw from their generators
        self.printing: list[dict[str, Any]] = []  # the globals of its code that prints
        while self._waiting:
            value, names = self._waiting.popleft()
            if isinstance(value, types.ModuleType):  # again for each code that names it
                self._module(value, names)
            elif id(value) not in self._seen:
                self._seen[id(value)] = value
                self._look_into(value)
        self._puts += [put for name, put in self._places if name in self._stores]
        self._generators()

    def put_back(self) -> None:
        """Put back what was changed."""
        for put in self._puts:
            put()

    # -- what there is -----------------------------------------------------------------------------------------------

    def _push(self, values: Iterable[Any], names: set[str] | None = None) -> None:
        self._waiting.extend((value, names or set()) for value in values if not isinstance(value, _LEAVES))

    def _look_into(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType | types.BuiltinMethodType):  # random.random is a method
            self._push([value.__self__, getattr(value, "__func__", None)])
        elif isinstance(value, staticmethod | classmethod):
            self._push([value.__func__])
        elif isinstance(value, property):
            self._push([value.fget])
        elif isinstance(value, partial):
            self._push([value.func, value.args, value.keywords])
        elif isinstance(value, _lru_cache_wrapper):
            self._puts.append(partial(_forget_calls, value, _calls(value)))
            self._push([value.__wrapped__])
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, dict | list | set | deque):
            self._container(value)
        elif isinstance(value, tuple | frozenset):
            self._push(value)
        elif isinstance(value, torch.Generator | random.Random) or type(value).__module__.startswith("numpy"):
            self._of_library(value)
        elif not isinstance(value, Tensor):
            self._object(value)

    def _function(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._cell(name, cell)
        self._push([function.__defaults__, function.__kwdefaults__, vars(function)])
        if _is_library(function.__module__):
            return
        names, stores = set[str](), set[str]()
        _read(function.__code__, names, stores)
        if "print" in names and not any(function.__globals__ is known for known in self.printing):
            self.printing.append(function.__globals__)
        self._names |= names
        self._stores |= stores
        self._bindings(function.__globals__, names)

    def _cell(self, name: str, cell: types.CellType) -> None:
        if id(cell) not in self._seen:
            self._seen[id(cell)] = cell
            held = _content(cell)
            self._places.append((name, partial(_put_content, cell, held)))
            self._push([held])

    def _bindings(self, owner: dict[str, Any], names: set[str]) -> None:
        for name in names:
            if (id(owner), name) in self._bound:  # modules name each other in circles
                continue
            self._bound.add((id(owner), name))
            self._push([owner.get(name)], names)
            self._places.append((name, partial(_put_binding, owner, name, owner.get(name, _MISSING))))

    def _module(self, module: types.ModuleType, names: set[str]) -> None:
        self._python |= module is random
        self._numpy |= module.__name__.split(".")[0] == "numpy"
        if not _is_library(module.__name__):
            self._bindings(vars(module), names)

    def _class(self, kind: type) -> None:
        for one in (one for one in kind.__mro__ if not _is_library(one.__module__)):
            if one is kind or id(one) not in self._seen:
                self._seen[id(one)] = one
                self._push(vars(one).values())
                for name, value in vars(one).items():
                    self._places.append((name, partial(_put_attribute, one, name, value)))

    def _container(self, value: Any) -> None:
        if len(value) > _LONGEST:
            return
        if isinstance(value, dict):
            held = contents(value)
            self._puts.append(partial(put_dict, value, held))
            self._push(held.values())
        else:
            items = list.copy(value) if isinstance(value, list) else list(value)
            self._puts.append(partial(put_items, value, items))
            self._push(items)

    def _object(self, value: Any) -> None:
        self._push([type(value)])
        if _is_library(type(value).__module__) and not isinstance(value, nn.Module | types.SimpleNamespace):
            return
        try:
            own = object.__getattribute__(value, "__dict__")
        except AttributeError:
            own = None
        if isinstance(own, dict):
            self._seen[id(own)] = own
            held = dict(own)
            self._puts.append(partial(put_dict, own, held))
            self._push(held.values())
        for slot in (s for kind in type(value).__mro__ for s in _slots(kind)):
            there = getattr(value, slot, _MISSING)
            self._puts.append(partial(_put_attribute, value, slot, there))
            self._push([there])

    def _of_library(self, value: Any) -> None:
        if isinstance(value, torch.Generator):
            self._puts.append(partial(_put_state, value.get_state, value.set_state, value.get_state()))
        elif isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
            self._puts.append(partial(_put_state, value.getstate, value.setstate, value.getstate()))
        elif hasattr(value, "bit_generator"):  # numpy.random.Generator
            held = value.bit_generator
            self._puts.append(partial(_put_state, lambda: held.state, partial(setattr, held, "state"), held.state))
        elif hasattr(value, "get_state") and hasattr(value, "set_state"):  # numpy.random.RandomState
            self._puts.append(partial(_put_state, value.get_state, value.set_state, value.get_state()))
        elif type(value).__name__ == "ndarray" and value.nbytes <= _BYTES and not value.dtype.hasobject:
            self._puts.append(partial(_put_array, value, value.copy()))

    def _generators(self) -> None:
        """The generators of the process, where the program's code may move them: other threads draw from them too."""
        if self._names & _SEEDS:
            self._look_into(torch.default_generator)
        if self._python:
            self._puts.append(partial(_put_state, random.getstate, random.setstate, random.getstate()))
        numpy = sys.modules.get("numpy.random")
        if self._numpy and "random" in self._names and numpy is not None:
            self._puts.append(partial(_put_state, numpy.get_state, numpy.set_state, numpy.get_state()))


_LEAVES = (
    *(int, float, complex, str, bytes, bytearray, type(None), type(Ellipsis), range, slice),
    *(torch.dtype, torch.device, torch.Size, torch.SymInt, types.CodeType),
)


def _is_library(module: Any) -> bool:
    return str(module).split(".")[0] in _LIBRARIES


def _read(code: types.CodeType, names: set[str], stores: set[str]) -> None:
    """Gather the names that a function's code uses, and those that it binds outside of its own variables."""
    names.update(code.co_names)
    if _BINDING & set(code.co_code[::2]):
        stores.update(str(i.argval) for i in dis.get_instructions(code) if i.opcode in _BINDING)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _read(constant, names, stores)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return _MISSING


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    named = (slots,) if isinstance(slots, str) else tuple(slots)
    return [name for name in named if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


# -- putting back ------------------------------------------------------------------------------------------------------


def contents(owner: dict[Any, Any]) -> dict[Any, Any]:
    """What a mapping holds, past what a subclass does in its own methods: some make a new object at each look."""
    kind: Any = OrderedDict if isinstance(owner, OrderedDict) else dict
    return dict(kind.items(owner))


def put_dict(owner: dict[Any, Any], held: dict[Any, Any]) -> None:
    """Make a mapping what it was, past what a subclass does in its own methods."""
    now = contents(owner)
    if len(now) == len(held) and all(map(is_, now, held)) and all(map(is_, now.values(), held.values())):
        return
    kind: Any = OrderedDict if isinstance(owner, OrderedDict) else dict
    kind.clear(owner)
    for key, value in held.items():
        kind.__setitem__(owner, key, value)


def put_items(owner: Any, held: Any) -> None:
    """Make a list, a deque or a set what it was."""
    if isinstance(owner, set):
        if len(owner) != len(held) or any(one not in owner for one in held):
            owner.clear()
            owner.update(held)
    elif len(owner) != len(held) or not all(map(is_, owner, held)):
        owner.clear()
        owner.extend(held)


def _put_binding(owner: dict[str, Any], name: str, value: Any) -> None:
    if owner.get(name, _MISSING) is not value:
        if value is _MISSING:
            del owner[name]
        else:
            owner[name] = value


def _put_attribute(owner: Any, name: str, value: Any) -> None:
    now = vars(owner).get(name, _MISSING) if isinstance(owner, type) else getattr(owner, name, _MISSING)
    if now is not value:
        if value is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


def _put_content(cell: types.CellType, value: Any) -> None:
    if _content(cell) is not value and value is not _MISSING:
        cell.cell_contents = value


def _put_state(get: Callable[[], Any], put: Callable[[Any], Any], state: Any) -> None:
    now = get()
    same = torch.equal(now, state) if isinstance(state, Tensor) else repr(now) == repr(state)
    if not same:
        put(state)


def _put_array(array: Any, held: Any) -> None:
    if array.tobytes() != held.tobytes():
        array[...] = held


_cleared: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # how often we did: the cache then counts from 0 again


def _calls(function: Any) -> tuple[int, int]:
    return function.cache_info().misses, _cleared.get(function, 0)


def _forget_calls(function: Any, calls: tuple[int, int]) -> None:
    """What a cached call gave within a run is of no use outside of it."""
    if _calls(function) != calls:
        function.cache_clear()
        _cleared[function] = _cleared.get(function, 0) + 1


# -- when --------------------------------------------------------------------------------------------------------------


@contextmanager
def keeping(*roots: Any) -> Iterator[Kept]:
    """Remember what these reach, for the runs within."""
    kept = Kept(roots)
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


@contextmanager
def putting_back() -> Iterator[None]:
    """The time of one run, after which all is as it was."""
    try:
        yield
    finally:
        kept = _kept.get()
        if kept is not None:
            kept.put_back()
