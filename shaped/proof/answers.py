"""Calls whose result is known, or is read anew at each step: of a context, a reference, a switch, a cache.

How this process is set is in no frame of the user's and in no object that the program has: NumPy's handling of errors,
torch's switches, a logger's level, what a cache answers. There the function itself is asked again, at each step.
"""

import decimal
import inspect
import logging
import os
import re
import sys
import threading
import types
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from functools import _lru_cache_wrapper
from importlib import import_module
from types import FrameType
from typing import Any, Protocol

from torch import Tensor

from shaped.proof.closures import content, function_of
from shaped.proof.contents import own_dictionary
from shaped.proof.instructions import UNKNOWN
from shaped.proof.log import Log, of_class
from shaped.proof.reads import ATTRIBUTE, CALLED, CELL, CONTEXT, MISSING, flat, is_leaf, is_library, is_traced, own
from shaped.proof.source import is_users

NOT_KNOWN: Any = object()
_MODULES = {
    *("torch", "numpy", "sys", "gc", "locale", "_locale", "signal", "_signal", "decimal", "_decimal", "logging"),
    *("threading", "_thread", "warnings", "posix", "os", "faulthandler"),
}
_ASKS = re.compile(r"^_?(get|is|are_|active_|current_)|_enabled$|^setlocale$")
# What a trace sets itself, what no step changes, and what is refused.
_OTHERS = re.compile(
    r"grad_enabled|inference|autocast|compiling|exporting|tracing|scripting|available|built|rng_state|frame"
)
_OF_OBJECTS: dict[str, Any] = {  # methods that say how an object is, which nothing else tells
    **dict.fromkeys(("isEnabledFor", "getEffectiveLevel", "hasHandlers"), logging.Logger),
    "locked": (type(threading.Lock()), threading.Semaphore),
    "cache_info": _lru_cache_wrapper,
}


class Reader(Protocol):
    """Who notes reads.

    Attributes:
        contexts: That the program itself has set.
    """

    log: Log
    contexts: set[ContextVar[Any]]

    def read(self, frame: FrameType, kind: str, owner: Any, key: Any, value: Any) -> None:
        """Note one."""

    def use(self, values: Sequence[Any]) -> None:
        """All that is in these is read."""


def answered(reader: Reader, frame: FrameType, function: Any, given: list[Any]) -> Any:
    """What such a call gives, once it is noted what it reads; NOT_KNOWN of all others."""
    owner = own(function, "__self__", None)
    if isinstance(owner, ContextVar):
        return _of_context(reader, frame, owner, own(function, "__name__", ""), given)
    if isinstance(function, weakref.ref):
        reader.log.root(function())
        return function()
    if function is globals:
        reader.log.root(frame.f_globals)
        return frame.f_globals
    if function is inspect.signature and given and isinstance(function_of(given[0]), types.FunctionType):
        for name in ("__defaults__", "__kwdefaults__"):  # which the signature shows as they are now
            defaults = getattr(function_of(given[0]), name)
            reader.read(frame, ATTRIBUTE, function_of(given[0]), name, defaults)
            reader.use([defaults])
        return UNKNOWN
    if function in (os.getenv, os.path.expandvars, os.path.expanduser):
        reader.log.root(os.environ, "os.environ")
        reader.use([os.environ])
        return UNKNOWN
    if function in (__import__, import_module) and _are_plain(given):
        name = str(given[0])
        return sys.modules.get(name if function is import_module else name.partition(".")[0], UNKNOWN)
    if function is dir and given and (held := own_dictionary(given[0])) is not None:
        reader.log.alias(held, given[0])
        reader.use([held])
        return UNKNOWN
    if function is vars and given and isinstance(given[0], type):
        for read in of_class(given[0]):
            reader.log.root(given[0])
            reader.read(frame, *read)
        return UNKNOWN
    if isinstance(function, _lru_cache_wrapper) and not is_library(function.__module__):
        return _of_cache(reader, frame, function, given)
    if _are_plain(given) and is_users(frame):
        return _of_process(reader, frame, function, given)
    return NOT_KNOWN


def _of_context(reader: Reader, frame: FrameType, owner: ContextVar[Any], name: str, given: list[Any]) -> Any:
    if name in ("set", "reset"):
        (reader.contexts.add if name == "set" else reader.contexts.discard)(owner)
        return UNKNOWN
    if name != "get":
        return NOT_KNOWN
    if owner not in reader.contexts:
        reader.read(frame, CONTEXT, owner, name, owner.get(MISSING))
    return owner.get(*given[:1]) if owner.get(MISSING) is not MISSING else UNKNOWN


def _of_cache(reader: Reader, frame: FrameType, function: Any, given: list[Any]) -> Any:
    """A cache has answered, and what it holds is no longer what the function reads."""
    hits, value = function.cache_info().hits, MISSING
    if _are_plain(given):
        try:
            value = function(*given)
        except Exception:  # it was given by name
            value = MISSING
    told = is_leaf(value) or (isinstance(value, Tensor) and not is_traced(value))
    found = function.cache_info().hits > hits
    if told and (found or is_leaf(value)):  # what was given by name is kept apart, though it is the same question
        reader.read(frame, CALLED, function, tuple(given), value)
        return value if found else UNKNOWN
    reader.log.hide(function)
    reader.use(given)
    return UNKNOWN


def _of_process(reader: Reader, frame: FrameType, function: Any, given: list[Any]) -> Any:
    owner, code = own(function, "__self__", None), own(function, "__func__", function)
    name, module = own(code, "__name__", ""), str(own(code, "__module__", None) or own(owner, "__name__", ""))
    if isinstance(owner, _OF_OBJECTS.get(name, ())):
        asks, module = True, str(own(owner, "name", type(owner).__name__))
    else:
        plain = len(given) < 2 and isinstance(function, types.FunctionType | types.BuiltinFunctionType)
        known = plain and module.partition(".")[0] in _MODULES
        asks = known and bool(_ASKS.search(name)) and not _OTHERS.search(name)
    if not asks:
        return NOT_KNOWN
    try:
        said = flat(function(*given))
    except Exception:  # it was given by name
        return NOT_KNOWN
    reader.log.root(function, f"{module}.{name}")
    reader.read(frame, CALLED, function, tuple(given), said)
    return UNKNOWN if type(said) is tuple else said


def enclosed(reader: Reader, frame: FrameType, function: types.FunctionType) -> None:
    """What a function that is not followed has in its closure, and the functions there in theirs."""
    waiting, seen = [function], set[int]()
    while waiting:
        one = waiting.pop()
        seen.add(id(one))
        for name, cell in zip(one.__code__.co_freevars, one.__closure__ or (), strict=True):
            held = content(cell)
            reader.log.root(cell)
            reader.read(frame, CELL, cell, name, held)
            if isinstance(held, types.FunctionType) and id(held) not in seen:
                waiting.append(held)
            reader.use([held])


def calculates(log: Log) -> None:
    """A decimal number was met, and how many digits its sums have is set elsewhere."""
    log.root(precision, "decimal.getcontext")
    log.add(CALLED, precision, (), precision())


def precision() -> tuple[Any, ...]:
    """How decimal numbers are rounded in this thread."""
    context = decimal.getcontext()
    return context.prec, context.rounding, context.Emin, context.Emax, context.clamp


def _are_plain(given: Sequence[Any]) -> bool:
    """Whether all that a function was given is known, and is a number, a text or the like."""
    return all(value is not UNKNOWN and is_leaf(value) and not is_traced(value) for value in given)
