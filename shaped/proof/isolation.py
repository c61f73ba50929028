"""What a trace needs of Python and of libraries, for its own thread and for as long as it lasts.

`math.sqrt(seq)` and `len(x)` make plain numbers of sizes in C. So the modules whose code asks for one get names of
their own instead, which do the same wherever no size is symbolic: neither `builtins` nor `math` is touched. jaxtyping's
checks, torch's warnings and its logs are switched by a context variable, which other threads do not see.
"""

import builtins
import logging
import math
import numbers
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from types import FrameType, ModuleType
from typing import Any

import jaxtyping
import sympy
import torch
from torch import SymInt, Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.utils._sympy.functions import IntTrueDiv, ToFloat

from shaped.proof.naming import is_only_called

_ONE_AT_A_TIME = threading.RLock()  # torch's tracer keeps state that threads share
_active: ContextVar[bool] = ContextVar("active", default=False)
_unwarned: ContextVar[bool] = ContextVar("unwarned", default=False)
_uncompiled: ContextVar[bool] = ContextVar("uncompiled", default=False)
_heard: ContextVar[bool] = ContextVar("heard", default=False)
# The globals of modules that get names of their own, as far as they are known in the proof under way.
_asking: ContextVar[list[dict[str, Any]] | None] = ContextVar("asking", default=None)


def _either(original: Callable[..., Any], symbolic: Callable[[Any], Any], *args: Any) -> Any:
    """A function of `math`, or its symbolic form for a size."""
    if len(args) == 1 and isinstance(args[0], torch.SymInt | torch.SymFloat):
        return symbolic(args[0])
    return original(*args)


def _length(thing: Any) -> Any:
    """`len`, which of a tensor may be a size: the C code beneath `__len__` would read it as a plain number."""
    size: Any = thing.shape[0] if isinstance(thing, Tensor) and thing.dim() else None
    return size if isinstance(size, SymInt) else len(thing)


def _itself(size: Any, memo: Any) -> Any:
    return size


for _kind in (torch.SymInt, torch.SymFloat, torch.SymBool):
    # `copy.deepcopy` of a size would copy the world that it is of, weak references to storages too, each of which
    # frees its storage when it goes.
    if not hasattr(_kind, "__deepcopy__"):
        _kind.__deepcopy__ = _itself  # type: ignore[union-attr]


def _divided(a: Any, b: Any) -> Any:
    """`divmod`, which sizes do not have."""
    return (a // b, a % b) if isinstance(a, SymInt) or isinstance(b, SymInt) else divmod(a, b)


def _power(base: Any, exponent: Any) -> Any:
    """`math.pow`, whose result is always a fraction."""
    symbolic = isinstance(base, torch.SymInt | torch.SymFloat) or isinstance(exponent, torch.SymInt | torch.SymFloat)
    return torch.sym_float(base) ** exponent if symbolic else math.pow(base, exponent)


_sym_log2: Callable[[Any], Any] = vars(torch)["_sym_log2"]
_SYMBOLIC: dict[str, Callable[..., Any]] = {
    "sqrt": partial(_either, math.sqrt, torch.sym_sqrt),
    **{name: partial(_either, getattr(math, name), vars(torch)[f"_sym_{name}"]) for name in ("cos", "sin", "tanh")},
    "pow": _power,
    "exp": partial(_either, math.exp, lambda x: math.e ** torch.sym_float(x)),
    "log2": partial(_either, math.log2, _sym_log2),
    "log": partial(_either, math.log, lambda x: _sym_log2(x) * math.log(2.0)),
    "log10": partial(_either, math.log10, lambda x: _sym_log2(x) * (math.log(2.0) / math.log(10.0))),
}


_ORIGINAL = {name: getattr(math, name) for name in _SYMBOLIC}


_DENOMINATOR = 64  # the largest of a number whose product with a size is taken to be exact


class _Float(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, float)

    def __call__(cls, value: Any = 0.0) -> Any:
        return torch.sym_float(value) if isinstance(value, torch.SymInt | torch.SymFloat) else float(value)


class _Real(metaclass=_Float):
    """`float`, which keeps a size symbolic."""


def _is_exact(fraction: Any) -> bool:
    """Whether it is one size by another, or times a number that floating point has, such as 0.25."""
    if isinstance(fraction, sympy.Mul) and len(fraction.args) == 2 and isinstance(fraction.args[1], ToFloat):
        return bool(fraction.args[0].is_Float) and float(fraction.args[0]).as_integer_ratio()[1] <= _DENOMINATOR
    return isinstance(fraction, IntTrueDiv)


class _Entire(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, int)

    def __call__(cls, value: Any = 0, *base: Any) -> Any:
        if isinstance(value, torch.SymFloat) and _is_exact(value.node.expr):
            return torch.sym_int(value)  # of other fractions the rounding is none of a proof
        return value if isinstance(value, torch.SymInt) else int(value, *base)


class _Cut(metaclass=_Entire):
    """`int`, which keeps a size symbolic."""


class _Counts(_Entire):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, int | SymInt)


class _Count(metaclass=_Counts):
    """`int` of torch's recurrent layers, whose width is to be one: a size is."""


class _Whole(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, numbers.Integral | SymInt)


class _Math(ModuleType):
    """`math`, with functions that keep sizes symbolic in the thread that traces."""

    def __getattribute__(self, name: str) -> Any:
        value = getattr(math, name)  # or what took its place
        return _SYMBOLIC[name] if _active.get() and value is _ORIGINAL.get(name, self) else value


class _Numbers(ModuleType):
    """`numbers`, by which torch's layers tell one size from several: a symbolic one is whole, too."""

    class Integral(metaclass=_Whole):
        """What `isinstance` asks."""

    def __getattribute__(self, name: str) -> Any:
        return _Numbers.Integral if name == "Integral" else getattr(numbers, name)


_INSTEAD: dict[int, Any] = {
    id(math): _Math("math"),
    id(numbers): _Numbers("numbers"),
    **{id(_ORIGINAL[name]): function for name, function in _SYMBOLIC.items()},
}
_BUILTINS: dict[str, Callable[..., Any]] = {"len": _length, "divmod": _divided}
# In torch's own layers, and in modules that do nothing but call them: elsewhere `float` may be a dtype.
_LAYERS = (vars(torch.nn.init), vars(torch.nn.functional))
_OF_LAYERS: dict[str, Callable[..., Any]] = {"float": _Real, "int": _Cut}


# What is said where a size is no number: by Python, and by torch's recurrent layers.
_COUNTS = ("divmod()", "SymInt' object is not iterable", "_size should be of type int")


def stands_in(value: Any) -> bool:
    """Whether a value is one of ours, in the place of `len` or of a part of `math` while a trace lasts."""
    return any(value is ours for ours in (say, _Count, *_BUILTINS.values(), *_OF_LAYERS.values(), *_INSTEAD.values()))


class Asks(BaseException):
    """Ends a run in which another module asks for a size; no `except Exception` of the user's stops it."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.module = module


def note_asking(frame: FrameType | None) -> None:
    """Raise `Asks` if the code that reads a size as a number may do so by `len` or `math` as they are in C."""
    asking = _asking.get()
    while frame is not None and _is_below(frame):
        frame = frame.f_back
    if frame is None or asking is None or any(frame.f_globals is module for module in asking):
        return
    names = frame.f_code.co_names
    if any(name in _builtins_of(frame.f_globals) or id(frame.f_globals.get(name)) in _INSTEAD for name in names):
        raise Asks(frame.f_globals)


def _builtins_of(module: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    if any(module is layers for layers in _LAYERS):
        return _BUILTINS | {"float": _Real}
    if module is vars(torch.nn.modules.rnn):  # where its other uses are annotations, which are read already
        return _BUILTINS | {"int": _Count}
    return _BUILTINS | {name: kind for name, kind in _OF_LAYERS.items() if is_only_called(module, name)}


def _is_below(frame: FrameType) -> bool:
    """Whether a frame is part of how a symbolic size becomes a number."""
    name = str(frame.f_globals.get("__name__"))
    return name == "torch" or name.startswith(("torch.fx.", "shaped.proof."))


def follow(run: Callable[[], Any], begin: Callable[[], None]) -> Any:
    """Run, and begin again with more modules' names changed as long as others ask for sizes."""
    token = _asking.set([*(_asking.get() or [])]) if _asking.get() is None else None
    try:
        while True:
            try:
                return run()
            except Asks as asks:
                _learn(asks.module)
            except TypeError as error:
                last = error.__traceback__
                while last is not None and last.tb_next is not None:
                    last = last.tb_next
                counts = any(call in str(error) for call in _COUNTS)
                if not counts or last is None or not _learn(last.tb_frame.f_globals):
                    raise
            begin()
    finally:
        if token is not None:
            _asking.reset(token)


def _learn(module: dict[str, Any]) -> bool:
    """Remember that a module asks; False where that is known already."""
    asking = _asking.get()
    if asking is None or any(module is known for known in asking):
        return False
    asking.append(module)
    return True


def say(*values: Any, **options: Any) -> None:
    """`print`: a proof runs a program many times, and the first is heard."""
    if not _heard.get():
        print(*values, **options)


@contextmanager
def heard_once(modules: Sequence[dict[str, Any]]) -> Iterator[None]:
    """The time in which what these modules print is heard until `hush` is called, in this thread."""
    changed = [module for module in modules if "print" not in module]
    token = _heard.set(False)
    for module in changed:
        module["print"] = say
    try:
        yield
    finally:
        for module in changed:
            if module.get("print") is say:
                del module["print"]
        _heard.reset(token)


def hush() -> None:
    """What the program prints was heard once."""
    _heard.set(True)


@contextmanager
def proving() -> Iterator[None]:
    """The time of one proof, in whose runs the same modules ask."""
    token = _asking.set([])
    try:
        yield
    finally:
        _asking.reset(token)


@contextmanager
def tracing() -> Iterator[None]:
    """The time of one run: sizes stay symbolic, and nothing is said of what torch does not know of them.

    The Python dispatcher keeps composite operations (matmul) from reading symbolic sizes as numbers in C++.
    """
    with _ONE_AT_A_TIME, _renamed(_asking.get() or ()), _hushed(), uncompiled():
        token = _active.set(True)
        try:
            with enable_python_dispatcher(), torch.inference_mode(False), torch.enable_grad():
                _start_autograd()
                yield
        finally:
            _active.reset(token)


@contextmanager
def _renamed(modules: Any) -> Iterator[None]:
    """The names of these modules, by which they ask for sizes, changed and changed back."""
    changed: list[tuple[dict[str, Any], str, Any, bool]] = []
    try:
        for module in modules:
            for name, function in _builtins_of(module).items():
                if module.get(name, vars(builtins)[name]) is vars(builtins)[name]:
                    changed.append((module, name, module.get(name), name in module))
                    module[name] = function
            for name, value in list(module.items()):
                if id(value) in _INSTEAD:
                    changed.append((module, name, value, True))
                    module[name] = _INSTEAD[id(value)]
        yield
    finally:
        for module, name, value, was in reversed(changed):
            if was:
                module[name] = value
            else:
                del module[name]


class _Config(type(jaxtyping.config)):  # type: ignore[misc]
    """jaxtyping's switches; within a trace its checks are off, since they would ask for each size. Ours: claims.py."""

    @property
    def jaxtyping_disable(self) -> bool:
        """Whether no check is run in this thread."""
        return _active.get() or bool(self.__dict__["jaxtyping_disable"])

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, value: bool) -> None:
        self.__dict__["jaxtyping_disable"] = value


class _Here:
    """In a warning's filter, what stands for the pattern: any text, in the thread that traces."""

    def match(self, _: str) -> bool:
        return _active.get() or _unwarned.get()


def _not_here(_: logging.LogRecord) -> bool:
    return not _active.get()


_IGNORED: Any = ("ignore", _Here(), Warning, None, 0)


@contextmanager
def unwarned() -> Iterator[None]:
    """Without warnings in this thread: `warnings.catch_warnings` would silence all of them."""
    token = _unwarned.set(True)
    warnings.filters.insert(0, _IGNORED)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _unwarned.reset(token)
        if _IGNORED in warnings.filters:
            warnings.filters.remove(_IGNORED)  # type: ignore[attr-defined]


class _Inlines:
    """In the place of torch's flag that FX is tracing: true in the threads where a proof runs the program."""

    def __bool__(self) -> bool:
        return _uncompiled.get()


_INLINES: Any = _Inlines()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Where this thread calls what `torch.compile` made, the function that was compiled runs itself."""
    from torch._dynamo import config  # a first proof needs all of it anyway

    outermost, token = not _uncompiled.get(), _uncompiled.set(True)
    try:
        with _said_to_trace(outermost), config.patch(error_on_nested_fx_trace=False):
            yield
    finally:
        _uncompiled.reset(token)


@contextmanager
def _said_to_trace(outermost: bool) -> Iterator[None]:
    """With torch's word that FX is tracing, in this thread: one of its own from 2.14 on, before that the process's."""
    flags: Any = torch.fx._symbolic_trace
    if hasattr(flags, "_set_is_fx_tracing"):
        before = flags._get_is_fx_tracing()
        flags._set_is_fx_tracing(True)
        try:
            yield
        finally:
            flags._set_is_fx_tracing(before)
        return
    flags._is_fx_tracing_flag = flags._is_fx_tracing_flag or _INLINES
    try:
        yield
    finally:
        if flags._is_fx_tracing_flag is _INLINES and outermost:
            flags._is_fx_tracing_flag = False


@contextmanager
def _hushed() -> Iterator[None]:
    """Without warnings, checks of jaxtyping, and logs of failed shape functions, in this thread."""
    loggers = [
        logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")
    ]
    outermost, was = not _active.get(), type(jaxtyping.config)
    if outermost:
        for logger in loggers:
            logger.addFilter(_not_here)
        warnings.filters.insert(0, _IGNORED)  # type: ignore[attr-defined]
        jaxtyping.config.__class__ = _Config
    try:
        yield
    finally:
        if outermost:
            jaxtyping.config.__class__ = was
            if _IGNORED in warnings.filters:  # another thread's catch_warnings may have put its own list there
                warnings.filters.remove(_IGNORED)  # type: ignore[attr-defined]
            for logger in loggers:
                logger.removeFilter(_not_here)


@cache
def _start_autograd() -> None:
    """One backward pass on a real number, before the first on tensors without data.

    A first backward pass on those starts autograd's device threads (torch 2.15), and then no forked child can use it.
    """
    x = torch.zeros((), requires_grad=True)
    torch.autograd.grad(x * x, x)
