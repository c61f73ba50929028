"""What a program's code can reach, described the same way in each process: code by its bytecode, values by content.

From a loss, its parameters and the options of a trainer this goes on to every function, class, closure, default and
global that their code names, and into the objects and containers there. Each thing gets a number, in an order that is
the same wherever the description is, so that what a process has at a number is what another one had there.

The insides of installed packages are told by their versions; of their functions and methods that are named, the
bytecode is told too. Whatever cannot be described is an `Untold`: a program that reaches it is not kept.
"""

import enum
import functools
import hashlib
import logging
import re
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib.util import resolve_name
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from shaped.backends.bytecode import digest_of_code, imports_of, is_library, names_of
from shaped.params import ParamList
from shaped.proof.contents import hidden_part, own_dictionary, slots_of
from shaped.proof.reads import is_array

_MOST = 200_000  # things that are looked at
_LONG = 10_000_000  # bytes of an array
_PLAIN = (
    *(type(None), bool, int, float, complex, type(Ellipsis), type(NotImplemented), range, slice),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
_SKIPPED = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__abstractmethods__", "__firstlineno__"),
    *("__static_attributes__", "__parameters__", "_abc_impl", "__annotate_func__", "__annotations_cache__"),
    *("__dataclass_params__", "__match_args__", "__orig_bases__"),
}
_NAMED_ALONE = (  # of C, told by their names
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
# Numbers that are others in each process; a program that reads one is told by what it read.
_OF_A_PROCESS = {("transformers", "_original_object_hash")}
_ABSENT: Any = object()
_COMPUTED = {"getattr", "vars", "__dict__", "attrgetter", "getattr_static"}  # by which any name may be read
_OF_MODULES = {"__doc__", "__file__", "__cached__", "__name__", "__package__"}


class Untold(Exception):
    """Something that a program reaches and that cannot be described; the message says what."""


class Reach:
    """All that is reached from some roots, in order.

    Args:
        roots: By the name that a reader knows them by.

    Attributes:
        lines: One description for each thing: where it is, and what.
        numbers: By id, which line tells of it.
        things: By number; they are kept alive.
        codes: Code objects that were read.
        modules: Names of the modules of the project that were met.

    Raises:
        Untold: Something cannot be described.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.lines: list[str] = []
        self.numbers: dict[int, int] = {}
        self.things: list[Any] = []
        self.codes: set[types.CodeType] = set()
        self.modules: dict[str, None] = {}
        self._storages: dict[int, int] = {}
        self._bound: set[tuple[int, str]] = set()
        self._waiting: deque[tuple[str, Any, Sequence[str]]] = deque((n, v, ()) for n, v in roots.items())
        while self._waiting:
            if len(self.lines) > _MOST:
                raise Untold(f"more than {_MOST:,} things are reached, the last of them `{self._waiting[0][0]}`")
            self._look(*self._waiting.popleft())

    def token(self, value: Any) -> str:
        """A value that is read at a place of its own, on one line; what is in it is told elsewhere."""
        told = plain(value)
        if told is not None:
            return told
        if isinstance(value, Tensor):
            return f"{value.dtype} {tuple(value.shape)} on {value.device}"
        if type(value) in (tuple, frozenset):
            parts = [self.token(one) for one in value]
            return f"{type(value).__name__} of {parts}"
        if is_array(value):
            return _array(value, "an array")
        if isinstance(value, types.MethodType):
            return f"method {self.token(value.__func__)} of {self.token(value.__self__)}"
        number = self.numbers.get(id(value))
        if isinstance(value, types.FunctionType):
            return f"function {named(value)} {digest_of_code(value.__code__)} {number}"
        return f"{'class' if isinstance(value, type) else 'a'} {named(value)} {number}"

    # -- one thing ---------------------------------------------------------------------------------------------------

    def _say(self, path: str, what: str, value: Any = _ABSENT) -> None:
        if value is not _ABSENT:
            self.numbers[id(value)] = len(self.lines)
        self.things.append(value)
        self.lines.append(f"{path}: {what}")

    def _push(self, path: str, value: Any, names: Sequence[str] = ()) -> None:
        self._waiting.append((path, value, names))

    def _look(self, path: str, value: Any, names: Sequence[str]) -> None:
        if isinstance(value, types.ModuleType) and not isinstance(value, nn.Module):
            self._module(path, value, names)
            return
        told = "missing" if value is _ABSENT else plain(value)
        if told is not None:
            self._say(path, told)
        elif id(value) in self.numbers:
            self._say(path, f"that of line {self.numbers[id(value)]}")
        else:
            self._thing(path, value)

    def _thing(self, path: str, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, type):
            self._class(path, value)
        elif isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, ParamList):
            self._parameters(path, value)
        elif is_array(value):
            self._say(path, _array(value, path), value)
        elif isinstance(value, dict | types.MappingProxyType):
            self._mapping(path, value)
        elif isinstance(value, list | tuple | deque) and not hasattr(value, "__dict__"):
            self._say(path, f"{named(type(value))} of {len(value)}", value)
            for i, one in enumerate(value):
                self._push(f"{path}[{i}]", one)
        elif isinstance(value, set | frozenset):
            self._say(path, f"{named(type(value))} of {self._members(path, value)}", value)
        elif (held := _held(value)) is not None:
            self._say(path, named(type(value)), value)
            for name, one in held:
                self._push(f"{path}.{name}", one)
        else:
            self._object(path, value)

    def _members(self, path: str, value: Iterable[Any]) -> list[str]:
        told = [plain(one) for one in value]
        if None in told:
            raise Untold(f"`{path}` is a set of what has no order in another process")
        # In the order in which it is walked, which a program may go by: of texts it is another in most processes.
        return sorted(map(str, told)) if path.endswith("._non_persistent_buffers_set") else list(map(str, told))

    def _function(self, path: str, function: types.FunctionType) -> None:
        code = function.__code__
        self._say(path, f"function {named(function)} {digest_of_code(code)}", function)
        self._codes(code)
        library = is_library(function.__module__)
        if library and _at_its_name(function):
            return
        self._mine(function.__module__)
        self._say(f"{path}.__annotations__", _spelled(getattr(function, "__annotations__", {})))
        for name in ("__defaults__", "__kwdefaults__"):
            if (held := getattr(function, name)) is not None:
                self._push(f"{path}.{name}", held)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._cell(f"{path}.<{name}>", cell)
        for name, one in vars(function).items():
            self._push(f"{path}.{name}", one)
        if not library:
            self._globals(path, function, code)

    def _codes(self, code: types.CodeType) -> None:
        self.codes.add(code)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._codes(constant)

    def _cell(self, path: str, cell: types.CellType) -> None:
        if id(cell) in self.numbers:
            self._say(path, f"that of line {self.numbers[id(cell)]}")
            return
        self._say(path, "cell", cell)
        try:
            self._push(path, cell.cell_contents)
        except ValueError:  # not yet assigned
            self._push(path, _ABSENT)

    def _globals(self, path: str, function: types.FunctionType, code: types.CodeType) -> None:
        owner, builtins = function.__globals__, getattr(function, "__builtins__", {})
        if id(owner) not in self.numbers:
            self._say(f"{path}.__globals__", f"of {owner.get('__name__')}", owner)
        used, named_by = names_of(code)
        asked = {*used, *named_by}
        if {"import_module", "__import__"} & asked:
            raise Untold(f"`{path}` imports by a name that is computed")
        if _COMPUTED & asked:
            named_by = (*named_by, "*")
        for name in used:
            if (id(owner), name) not in self._bound or isinstance(owner.get(name), types.ModuleType):
                self._bound.add((id(owner), name))
                self._push(name, owner.get(name, builtins.get(name, _ABSENT)), named_by)
        for name, level in imports_of(code):
            module = resolve_name("." * level + name, str(owner.get("__package__") or "")) if level else name
            if module not in sys.modules and not is_library(module):
                raise Untold(f"`{path}` imports `{module}` within, which is not imported as yet: import it first")
            for part in {module, module.partition(".")[0]} & set(sys.modules):
                self._push(part, sys.modules[part], named_by)

    def _mine(self, module: Any) -> None:
        if isinstance(module, str) and not is_library(module):
            self.modules[module] = None

    def _module(self, path: str, module: types.ModuleType, names: Sequence[str]) -> None:
        if id(module) not in self.numbers:
            self._say(path, f"module {module.__name__}", module)
            self.numbers[id(vars(module))] = len(self.lines)
            self._say(path, "its dictionary", vars(module))
        if is_library(module.__name__):
            for name in names:
                if type(vars(module).get(name)) in (int, float):  # `math.pi` may be bound anew like any other
                    self._push(f"{path}.{name}", vars(module)[name], names)
            return
        self._mine(module.__name__)
        held = vars(module)
        if "*" in names:
            names = (
                *names,
                *(name for name, one in held.items() if name not in _OF_MODULES and plain(one) is not None),
            )
        for name in names:
            if name in held and ((id(held), name) not in self._bound or isinstance(held[name], types.ModuleType)):
                if isinstance(held[name], types.ModuleType) and (id(held), name, *names) in self._bound:
                    continue
                self._bound |= {(id(held), name), (id(held), name, *names)}  # type: ignore[arg-type]
                self._push(f"{path}.{name}", held[name], names)

    def _class(self, path: str, kind: type) -> None:
        self._say(path, f"class {named(kind)}", kind)
        library = is_library(kind.__module__)
        if library:
            if kind.__module__ != "builtins":
                self._say(f"{path}.*", _methods(kind))
            if not issubclass(kind, enum.Enum) and any(not is_library(one.__module__) for one in kind.__mro__):
                self._push(f"{path}.__mro__", kind.__mro__)
            return
        self._mine(kind.__module__)
        for base in kind.__mro__[1:]:
            self._push(f"{path} over {named(base)}", base)
        if type(kind) is not type:
            self._push(f"{path}.__class__", type(kind))
        if issubclass(kind, tuple) or kind.__annotations__:
            self._say(f"{path}.__annotations__", _spelled(vars(kind).get("__annotations__", {})))
        for name, one in vars(kind).items():
            if name not in _SKIPPED and not isinstance(one, types.GetSetDescriptorType | types.MemberDescriptorType):
                self._push(f"{path}.{name}", one)

    def _tensor(self, path: str, tensor: Tensor) -> None:
        told = f"{named(type(tensor))} {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        try:
            storage = self._storages.setdefault(tensor.untyped_storage().data_ptr(), len(self._storages))
            where = f"{tensor.stride()} in memory {storage if tensor.numel() else '-'} at {tensor.storage_offset()}"
        except (RuntimeError, NotImplementedError):  # sparse, or of another kind
            where = str(tensor.layout)
        self._say(path, f"{told} {where} {tensor.requires_grad}", tensor)

    def _mapping(self, path: str, value: Any) -> None:
        kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        items = list(kind.items(value) if isinstance(value, dict) else value.items())
        self._say(path, f"{named(type(value))} of {[self._key(path, key) for key, _ in items]}", value)
        for key, one in items:
            self._push(f"{path}[{key!r}]" if isinstance(key, str | int) else f"{path}[...]", one)

    def _key(self, path: str, key: Any) -> str:
        told = plain(key)
        if told is None and isinstance(key, type | types.FunctionType | types.BuiltinFunctionType):
            told = named(key)
        if told is None and isinstance(key, tuple):
            told = f"({', '.join(self._key(path, part) for part in key)})"
        if told is None:
            raise Untold(f"`{path}` has a key that is {named(type(key))}, which is another in another process")
        return told

    def _parameters(self, path: str, params: ParamList) -> None:
        """A list by its entries: nested lists of it are made as they are asked for."""
        told = [f"{entry.path} {entry.spec.quoted}" for entry in params.entries]
        self._say(path, f"{named(type(params))} of {told}", params)
        self._push(f"{path}.__class__", type(params))
        for entry, tensor in zip(params.entries, params.tensors, strict=True):
            self._push(f"{path}.{entry.path}", tensor)

    def _object(self, path: str, value: Any) -> None:
        kind = type(value)
        own = own_dictionary(value)
        slots = [s for one in kind.__mro__ for s in slots_of(one)]
        if own is None and not slots and not isinstance(value, list | tuple | dict) and kind not in _EMPTY:
            raise Untold(f"`{path}` is {named(kind)}, and what it holds cannot be read")
        if (hidden := hidden_part(kind)) is not None and kind not in _EMPTY:
            raise Untold(f"`{path}` is {named(kind)}, and what it holds as {named(hidden)} cannot be read")
        if isinstance(value, Iterator):
            raise Untold(f"`{path}` is an iterator, which gives something else each time")
        self._say(path, f"a {named(kind)}", value)
        self._push(f"{path}.__class__", kind)
        if own is not None:
            self.numbers[id(own)] = len(self.lines)
            self._say(path, f"has {[*own]}", own)
            for name, one in list(own.items()):
                admitted = name == "training" and isinstance(value, nn.Module)  # a batch is admitted by it
                if not admitted and (kind.__module__.partition(".")[0], name) not in _OF_A_PROCESS:
                    self._push(f"{path}.{name}", one)
        for slot in slots:
            self._push(f"{path}.{slot}", getattr(value, slot, _ABSENT))
        if isinstance(value, list | tuple | deque):
            for i, one in enumerate(value):
                self._push(f"{path}[{i}]", one)


# -- what things are ---------------------------------------------------------------------------------------------------

_EMPTY = (object,)
_OF_ENUMS = ("_name_", "__objclass__", "_sort_order_")


def plain(value: Any) -> str | None:
    """A number, a text or the like, as it is told; None for all else. Texts are told by a digest."""
    if type(value) is str or type(value) is bytes:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return f"{type(value).__name__} {len(value)} {hashlib.sha256(data).hexdigest()[:24]}"
    if isinstance(value, enum.Enum):
        told = [plain(one) for name, one in vars(value).items() if name not in _OF_ENUMS]
        return None if None in told else f"{named(type(value))}.{value.name} {told}"
    if type(value) in _PLAIN or isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"{type(value).__name__} {value!r}"
    if type(value).__module__ == "numpy" and not is_array(value) and hasattr(value, "tobytes"):
        return f"{type(value).__name__} {value.tobytes().hex()}"
    if isinstance(value, re.Pattern):
        return f"Pattern {plain(value.pattern)} {value.flags}"
    if isinstance(value, PurePath):
        return f"{type(value).__name__} {hashlib.sha256(str(value).encode()).hexdigest()[:24]}"
    if isinstance(value, logging.Logger):
        return f"{named(type(value))} {value.getEffectiveLevel()} {value.disabled} {value.manager.disable}"
    if isinstance(value, torch.Generator):
        return f"generator on {value.device}{'' if value is not torch.default_generator else ', the default one'}"
    if type(value).__module__ == "logging" or type(value).__name__ in ("lock", "RLock"):
        return named(type(value))
    if isinstance(value, types.GenericAlias | types.UnionType) or type(value).__module__ == "typing":
        return _scrubbed(repr(value))
    if isinstance(value, _NAMED_ALONE) and not _is_bound(value):
        return f"built in {named(value)}"
    return None


def _is_bound(value: Any) -> bool:
    owner = getattr(value, "__self__", None)
    return owner is not None and not isinstance(owner, types.ModuleType | type)


def _held(value: Any) -> list[tuple[str, Any]] | None:
    """What some kinds of things hold, which have no dictionary that says it."""
    if isinstance(value, types.MethodType):
        return [("__func__", value.__func__), ("__self__", value.__self__)]
    if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
        return [(value.__name__, value.__self__)]
    if isinstance(value, staticmethod | classmethod):
        return [("__func__", value.__func__)]
    if isinstance(value, property):
        return [(name, getattr(value, name)) for name in ("fget", "fset", "fdel")]
    if isinstance(value, functools.partial):
        return [(name, getattr(value, name)) for name in ("func", "args", "keywords")]
    if isinstance(value, functools._lru_cache_wrapper):
        if not is_library(value.__module__):
            raise Untold(f"`{named(value)}` has a cache, which may hold what it would not compute again")
        return [("__wrapped__", value.__wrapped__)]
    if isinstance(value, weakref.ref):
        return [("()", value())]
    if isinstance(value, ContextVar):
        try:
            return [(value.name, value.get())]
        except LookupError:
            return [(value.name, _ABSENT)]
    return None


def _array(value: Any, path: str) -> str:
    if value.dtype.hasobject or value.nbytes > _LONG:
        raise Untold(f"`{path}` is an array of objects, or too large")
    return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:24]}"


def named(value: Any) -> str:
    """A function, a class or another thing by module and name."""
    kind = type(value)
    module = getattr(value, "__module__", None) or getattr(kind, "__module__", "")
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or kind.__qualname__
    return f"{module}.{name}"


def _at_its_name(function: types.FunctionType) -> bool:
    """Whether it is what its module has under its name, so that no closure of the user's is in it."""
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _methods(kind: type) -> str:
    """The bytecode of a class's own methods."""
    mine = []
    for name, one in sorted(vars(kind).items()):
        code = getattr(getattr(one, "__func__", getattr(one, "fget", one)), "__code__", None)
        if isinstance(code, types.CodeType):
            mine.append(f"{name} {digest_of_code(code)}")
    return hashlib.sha256("\n".join(mine).encode()).hexdigest()[:24]


def _spelled(annotations: Any) -> str:
    told = {name: one if isinstance(one, str) else _scrubbed(repr(one)) for name, one in dict(annotations).items()}
    return hashlib.sha256(repr(told).encode()).hexdigest()[:24]


def _scrubbed(text: str) -> str:
    """Without addresses, which are others in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
