"""Runs on real tensors at small sizes: what torch does there, whatever its shape functions say.

A statement is held against them before it is given, and so is a refutation. What depends on values (a matrix that is
not positive definite, an index that is data) decides nothing.
"""

import itertools
import math
import random
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shaped.errors import ShapeError, Unprovable
from shaped.proof.demands import is_demand
from shaped.proof.isolation import uncompiled, unwarned
from shaped.proof.keeping import putting_back
from shaped.proof.limits import hold_limits
from shaped.proof.setting import Setting, checking
from shaped.proof.shelter import Shelter
from shaped.proof.source import is_users
from shaped.proof.standing import Standing
from shaped.proof.ways import way_under_way
from shaped.shapes import Dim, TensorSpec

_RUNS = 400  # at most
_FEW = 12  # that are made however long they take
_OPERATIONS = 6000  # of all runs together, so that a deep model is tried at a few sizes
_FURTHER, _FURTHEST, _DRAWN = 32, 21, 3000  # runs that a guess is held against, their sizes, and how many are drawn
_ELEMENTS = 400_000  # of all inputs of one run
_EVERY = (7, 4, 3, 2)  # all sizes up to one of these, where they are not too many
_POOL = (1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 24, 35)
NEGATIVE = r"class values must be non-negative|non-negative integral|rate to be non-negative"  # entries; or else sizes
ABSENT = r"not linked with support for|not compiled with CUDA|No CUDA GPUs|NVIDIA driver"  # a GPU: not of shapes
_VALUES = re.compile(
    rf"between 0 and 1|probabilit|singular|positive.definite|overflow|converge|{NEGATIVE}|monotonic"
    rf"|must be in the range|satisfy the constraint|elements of source|{ABSENT}|does not match required size",
    re.IGNORECASE,
)
_INDEX = re.compile(r"out of (bounds|range)|out-of-bounds|ZeroDivisionError")
_POSITION = re.compile(r"(index|Target|value|indices) -?\d+")  # which says where
_DIVISOR = "ZeroDivisionError"  # as torch says of integers: of a size, or of data, and those may be 1
_SIGNED = 3  # how tensors are filled: with numbers of either sign
_WHOLE = {4: 1, 5: -1, 6: 6}  # whole numbers with these, and all else as ever
_LENGTH = "Length of all samples"  # of what is packed: zeros are none

Sizes = Mapping[str, int]


class Trials:
    """The runs of one function, each made once."""

    def __init__(
        self, setting: Setting, names: Sequence[str], static: Sizes, operations: int = 16,
        assumed: Callable[[Sizes], bool] = lambda sizes: True,
    ) -> None:  # fmt: skip
        self.setting, self.assumed = setting, assumed
        self.names = tuple(names)
        self.static = static
        self.operations = operations
        self.left = max(8, min(setting.runs, _OPERATIONS // max(operations, 1)))
        self._spent, self._least = 0.0, max(0, self.left - _FEW)
        self._known: dict[tuple[int, ...], bool | None] = {}
        self._errors: dict[tuple[int, ...], Exception] = {}

    def outcomes(self, several: Iterable[Sizes]) -> list[bool | None]:
        """Whether it runs at each of these sizes and returns what it declares; None where that cannot be told."""
        several = list(several)
        with self._aside():
            found = [self._outcome(sizes) for sizes in several]
        if any(found) or all(dtype.is_floating_point for dtype in self.setting.dtypes):  # no input is an index
            return found
        # An index that is out of range, or a divisor that is 0, whatever the sizes is a matter of its values.
        failed = [sizes for sizes, passes in zip(several, found, strict=True) if passes is False]
        with self._aside():
            valued = [sizes for sizes in failed if self._index(sizes)]
        # Where another value may stand, it may at other sizes too.
        places = {_place(self.failure(sizes)) for sizes in valued}
        return [None if passes is False and (sizes in valued or _place(self.failure(sizes)) in places) else passes
                for sizes, passes in zip(several, found, strict=True)]  # fmt: skip

    def _index(self, sizes: Sizes) -> bool:
        """Whether what stopped a run may be the value of an input: one index for all of these is the program's own.

        A run of other values that another operation stops, which an input indexes too, says nothing of this one.
        """
        failure, shapes = self.failure(sizes), self._shapes(sizes)
        said, place = _told(failure), _place(failure)
        if not _INDEX.search(said) or not _POSITION.search(said):
            return bool(_INDEX.search(said))
        others = (self._error(shapes, sizes, fill) for fill in _WHOLE)
        return any(other is None or (_place(other) == place and _told(other) != said) for other in others)

    def _outcome(self, sizes: Sizes) -> bool | None:
        key = tuple(sizes[name] for name in self.names)
        if key not in self._known:
            limit = self.setting.seconds
            if self.left <= 0 or (limit is not None and self._spent > limit and self.left <= self._least):
                return None
            started = 0.0 if limit is None else time.process_time()  # a system call, a fifth of a small run's time
            self._known[key] = self._run(sizes, key)
            self._spent += 0.0 if limit is None else time.process_time() - started
        return self._known[key]

    def first_failure(self, several: Iterable[Sizes]) -> tuple[Sizes | None, int]:
        """The first of these sizes at which a run fails, and how many went through before."""
        passed = 0
        with self._aside():
            for sizes in several:
                outcome = self._outcome(sizes)
                if outcome is False:
                    return sizes, passed
                passed += bool(outcome)
                if self.left <= 0:
                    break
        return None, passed

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Nothing that the runs change in a module or a generator stays; without warnings."""
        over = False
        try:
            with unwarned(), uncompiled(), putting_back(), self.setting.keeping():
                yield
                over = True
        except Unprovable:
            if not over:  # that a run leaves a tensor in a module is for the trace to say
                raise

    def failure(self, sizes: Sizes) -> Exception:
        """What stopped a run that failed."""
        return self._errors[tuple(sizes[name] for name in self.names)]

    def sizes(
        self, units: Mapping[str, tuple[Dim, int]], equal: Mapping[str, Dim], near: Sequence[int] = ()
    ) -> Iterator[dict[str, int]]:
        """Sizes to try: every small one where they are few, and draws.

        `units` says what a name is a multiple of and with which rest, in half of them; `equal` what it always is;
        `near` are larger numbers that the program compares with.
        """
        free = [name for name in self.names if name not in self.static]
        generator = random.Random(0)
        most = next((n for n in _EVERY if n ** len(free) <= _RUNS), 1)
        every = [dict(zip(free, some, strict=True)) for some in itertools.product(range(1, most + 1), repeat=len(free))]
        generator.shuffle(every)
        pool = (*_POOL, *(n + more for n in near for more in (-1, 0, 1, 11, n + 3)))
        drawn = [{name: generator.choice(pool) for name in free} for _ in range(_RUNS if free else 0)]
        seen = set[tuple[int, ...]]()
        for n, some in enumerate([*drawn[: _RUNS // 4 if near else 0], *every, *drawn]):
            sizes = {**self.static, **some}
            for name, (by, rest) in units.items() if n % 2 else ():
                if name in free:
                    sizes[name] = by.evaluate(sizes) * generator.choice((1, 1, 2, 3)) + rest
            sizes |= {name: dim.evaluate(sizes) for name, dim in equal.items()}
            key = tuple(sizes[name] for name in self.names)
            if key not in seen and min(key, default=1) >= 1:
                seen.add(key)
                yield {name: sizes[name] for name in self.names}

    def further(self, admitted: Callable[[Sizes], bool]) -> list[dict[str, int]]:
        """Some sizes that are assumed and admitted and were not tried; often multiples of each other, or alike."""
        free, found = [name for name in self.names if name not in self.static], list[dict[str, int]]()
        generator = random.Random(1)
        for _ in range(_DRAWN if free else 0):
            sizes: dict[str, int] = dict(self.static)
            for name in generator.sample(free, len(free)):
                among = [n for n in sizes.values() if 1 <= n <= _FURTHEST]
                by = generator.choice(among) * generator.randint(1, 3) if among and generator.random() < 0.5 else 0
                sizes[name] = by or generator.randint(1, _FURTHEST)
            key = tuple(sizes[name] for name in self.names)
            if key not in self._known and sizes not in found and admitted(sizes) and self.assumed(sizes):
                found.append(sizes)
                if len(found) == _FURTHER:
                    break
        self.left = max(self.left, len(found))
        return found

    def can_be(self, sizes: Sizes) -> bool:
        """Whether there are tensors of these sizes, and they are not too large to be tried."""
        shapes = self._shapes(sizes)
        return min((n for shape in shapes for n in shape), default=0) >= 0 and sum(map(math.prod, shapes)) <= _ELEMENTS

    def _shapes(self, sizes: Sizes) -> list[list[int]]:
        return [[int(dim.evaluate(sizes)) for dim in entry.spec.dims] for entry in self.setting.signature.entries]

    def _run(self, sizes: Sizes, key: tuple[int, ...]) -> bool | None:
        hold_limits()
        if not self.can_be(sizes):
            return None
        shapes = self._shapes(sizes)
        self.left -= 1
        error = self._error(shapes, sizes, 0)
        if error is not None and _LENGTH in str(error):
            error = self._error(shapes, sizes, 2)
        if error is not None and _DIVISOR in str(error):
            error = self._error(shapes, sizes, 2) and error
        elif error is not None and _INDEX.search(str(error)):  # an index may be data: with others it may go through
            error = self._error(shapes, sizes, 1) or (self._error(shapes, sizes, 2) and error)
        way = way_under_way()
        if error is None and way is not None:  # which other values may not take
            error = self._error(shapes, sizes, _SIGNED)
            of_values = error is not None and (_INDEX.search(str(error)) or _LENGTH in str(error))
            error = None if of_values else error
        if error is None:
            return True
        _forget(error)
        self._errors[key] = error
        if is_demand(error) or (way is not None and way.refuses(error)):
            return None
        return None if isinstance(error, Warning) or _depends_on_values(error) else False

    def _error(self, shapes: Sequence[Sequence[int]], sizes: Sizes, fill: int) -> Exception | None:
        """What stops a run on tensors of these shapes."""
        setting, generator = self.setting, torch.Generator().manual_seed(0)
        try:
            tensors = [
                _filled(shape, dtype, fill, generator).to(setting.device).requires_grad_(want)
                for shape, dtype, want in zip(shapes, setting.dtypes, setting.mask, strict=True)
            ]
            check = checking(partial(_expected, dict(sizes)))
            standing = Standing(setting.held, tensors)
            around, lengths = setting.around(), _Lengths()
            with putting_back(), torch.enable_grad(), Shelter(tensors, 0), check, around, standing, lengths:
                results = setting.run(tensors)
                _compare(results, setting.signature.result, dict(sizes))
        except Unprovable as error:  # it writes into a tensor from outside
            if not error.assigns:
                raise
            return error
        except Exception as error:
            return error
        return None


class _Lengths(TorchFunctionMode):
    """Refuses attention over other than as many keys as values, which torch's kernel for the CPU does not look at.

    Its plain kernel does, and is chosen by a switch of the process: another thread would see that.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            named = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            key, value = named.get("key"), named.get("value")
            if isinstance(key, Tensor) and isinstance(value, Tensor) and key.shape[-2:-1] != value.shape[-2:-1]:
                raise RuntimeError(f"attention over keys {[*key.shape]} and values {[*value.shape]}")
        return func(*args, **(kwargs or {}))


def _compare(results: Sequence[Any], declared: Sequence[TensorSpec], sizes: dict[str, int]) -> None:
    if len(results) != len(declared):
        raise ShapeError(f"{len(results)} results for {len(declared)}")
    for result, spec in zip(results, declared, strict=True):
        _check(result, spec, sizes)


def _check(value: Any, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Hold a result against its spec; `sizes` gains the names that only results use."""
    if not isinstance(value, Tensor) or value.dim() != len(spec.dims) or value.dtype not in spec.dtypes:
        raise ShapeError(f"a result is not {spec}")
    for dim, size in zip(spec.dims, value.shape, strict=True):
        if dim.is_name:
            sizes.setdefault(dim.text, size)
        if not set(dim.names) <= set(sizes) or dim.evaluate(sizes) != size:
            raise ShapeError(f"a result has {size} where {dim} is declared")


def _expected(sizes: dict[str, int], value: Any, spec: TensorSpec) -> None:
    _check(value, spec, sizes)


def _depends_on_values(error: Exception) -> bool:
    if type(error).__name__ == "LinAlgError" or is_memory(error):
        return True
    return not isinstance(error, ZeroDivisionError) and bool(_VALUES.search(str(error)))


def _told(error: Exception | None) -> str:
    """What an error says, with what was noted of it."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])


def _place(error: Exception) -> tuple[CodeType, int] | None:
    """The operation of the user's that an error stopped: its code, and where in it."""
    at, place = error.__traceback__, None
    while at is not None:
        if is_users(at.tb_frame):
            place = at.tb_frame.f_code, at.tb_lasti
        at = at.tb_next
    return place


def is_memory(error: BaseException) -> bool:
    """Whether the process has no more memory, which says nothing of shapes."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _forget(error: BaseException | None) -> None:
    """Let go of what the frames of an exception hold; its lines stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _filled(shape: Sequence[int], dtype: torch.dtype, fill: int, generator: torch.Generator) -> Tensor:
    """Floats in (0, 1), zeros for integers (an index into anything), true booleans; or all 0; or all 1; or drawn; or
    the first with other integers."""
    if fill == _SIGNED:
        drawn = torch.randn(shape, generator=generator)
        return drawn.to(dtype) if dtype.is_floating_point or dtype.is_complex else (drawn > 0).to(dtype)
    if fill in _WHOLE and dtype is not torch.bool and not (dtype.is_floating_point or dtype.is_complex):
        return torch.full(shape, _WHOLE[fill], dtype=dtype)
    if fill and fill not in _WHOLE:
        return torch.full(shape, fill - 1, dtype=dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(shape, generator=generator).clamp_min(1e-3).to(dtype)
    return torch.ones(shape, dtype=dtype) if dtype is torch.bool else torch.zeros(shape, dtype=dtype)
