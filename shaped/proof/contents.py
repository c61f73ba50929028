"""Where an object keeps what it holds: in a dictionary, in slots, or in C, where nothing tells of it."""

import ctypes
import threading
import types
from collections import deque
from functools import cache
from typing import Any

_TOLD = (object, types.SimpleNamespace, list, tuple, dict, deque)  # of C, and nothing of it is hidden
_BY_A_STATEMENT = 1 << 9  # Py_TPFLAGS_HEAPTYPE, which a class statement sets, and some classes of C
_WORD = ctypes.sizeof(ctypes.c_void_p)
ARRAYS = ("ndarray", "memmap", "recarray")  # NumPy's, which are compared by their bytes
ITERATORS = ("flatiter", "nditer", "broadcast")  # NumPy's, over arrays that lie elsewhere
_ADDRESSES = "PzZO"  # of what else is kept elsewhere
# Modules of C whose objects do not change, are told by their contents, or are refused where they are read.
_KNOWN = {
    *("builtins", "torch", "numpy", "functorch", "types", "typing", "enum", "abc", "_abc", "re", "datetime", "decimal"),
    *("functools", "itertools", "operator", "collections", "weakref", "struct"),
    *(
        "_struct",
        "_thread",
        "threading",
        "_multiprocessing",
        "io",
        "_io",
        "inspect",
        "random",
        "_random",
        "sqlite3",
        "_csv",
        "csv",
    ),
    *("array", "mmap", "zoneinfo", "_operator", "pathlib", "fractions", "uuid", "ast", "_ast", "posix", "time"),
    *("sympy", "shaped", "einops", "jaxtyping", "triton", "logging", "importlib", "os", "_weakref", "_collections"),
}


def hidden_part(kind: Any) -> type | None:
    """The part of a class that is C and keeps what no dictionary tells: of a subclass of float, its number."""
    return _hidden_part(kind)


@cache
def _hidden_part(kind: Any) -> type | None:
    return next((base for base in kind.__mro__ if base not in _TOLD and _is_of_c(base)), None)


def _is_of_c(kind: type) -> bool:
    """Whether a class keeps more than slots and a dictionary, beside what the one above it keeps."""
    if not kind.__flags__ & _BY_A_STATEMENT:
        return True
    held = vars(kind)
    told = len(slots_of(kind)) + ("__dict__" in held) + ("__weakref__" in held)
    return kind.__base__ is not None and kind.__basicsize__ - kind.__base__.__basicsize__ > told * _WORD


def hides(value: Any) -> bool:
    """Whether a value keeps in C what nothing tells of: pointers, queues, and all that other libraries write in C."""
    hidden = hidden_part(type(value))
    if hidden is not None and hidden.__module__ == "numpy" and hidden.__name__ in (*ITERATORS, "ndarray"):
        return type(value).__name__ not in ARRAYS or value.dtype.hasobject
    if hidden is None or hidden.__module__.partition(".")[0] in _KNOWN:
        return False
    return hidden.__module__ != "_ctypes" or not _is_whole(type(value))


def _is_whole(kind: Any) -> bool:
    """Whether a type of ctypes keeps its numbers itself, and no address of others."""
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        return all(_is_whole(field[1]) for one in kind.__mro__ for field in vars(one).get("_fields_", ()))
    if issubclass(kind, ctypes.Array):
        return _is_whole(kind._type_)
    return issubclass(kind, ctypes._SimpleCData) and kind._type_ not in _ADDRESSES


def own_dictionary(value: Any) -> dict[str, Any] | None:
    """An object's own dictionary, found without code of its own; of what each thread has its own, the thread's."""
    if isinstance(value, threading.local):
        return getattr(value, "__dict__", None)
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own if isinstance(own, dict) else None


def slots_of(kind: type) -> list[str]:
    """The names of a class's slots, as attributes."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    private = f"_{kind.__name__.lstrip('_')}"
    return [
        f"{private}{s}" if s.startswith("__") and not s.endswith("__") else s
        for s in names
        if s not in ("__dict__", "__weakref__")
    ]
