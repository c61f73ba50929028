"""Where an object keeps what it holds: in a dictionary, in slots, or in C, where nothing tells of it."""

import types
from collections import deque
from typing import Any

_TOLD = (object, types.SimpleNamespace, list, tuple, dict, deque)  # of C, and nothing of it is hidden
_BY_A_STATEMENT = 1 << 9  # Py_TPFLAGS_HEAPTYPE, which a class statement sets


def hidden_part(kind: type) -> type | None:
    """The part of a class that is C and keeps what no dictionary tells: of a subclass of float, its number."""
    return next((base for base in kind.__mro__ if not base.__flags__ & _BY_A_STATEMENT and base not in _TOLD), None)


def own_dictionary(value: Any) -> dict[str, Any] | None:
    """An object's own dictionary, found without code of its own."""
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
