"""Averages of parameters: to evaluate with, then to train on.

`EMA` and `SWA` average any parameters from outside, over torch.optim.swa_utils' arithmetic; an
optimizer with `ema_decay=` keeps the same average inside its update, for no pass of its own.

Averages of bfloat16 and float16 are float32: the share that an update adds is below half a unit in their last place,
and they would stand still. Entries that are no floating point (counts of batches, masks) are copied, not averaged.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from shaped.arguments import checked, keyed, whole
from shaped.errors import listing
from shaped.params import ParamList


class _Average:
    """Averages beside parameters; a subclass says how they take one more in."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._names = list(params.names) if isinstance(params, ParamList) else None
        self._params = list(params)
        self.averages = [p.detach().to(_wide(p.dtype), copy=True) for p in self._params]
        self._moving = [i for i, p in enumerate(self._params) if p.is_floating_point() or p.is_complex()]
        self.count = 0

    def update(self) -> None:
        """Take the parameters as they are now into the averages; call it after a step."""
        now = [p.detach() for p in self._params]
        moving = self._moving if self.count else []
        with torch.no_grad():
            for i in set(range(len(now))) - set(moving):
                self.averages[i].copy_(now[i])
            if moving:
                averages = [self.averages[i] for i in moving]
                self._take(averages, [now[i].to(self.averages[i].dtype) for i in moving])
        self.count += 1

    def _take(self, averages: list[Tensor], now: list[Tensor]) -> None:
        raise NotImplementedError

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters for the length of a `with` block, and the parameters back after it."""
        with swapped(self._params, self.averages):
            yield

    def state_dict(self) -> dict[str, Any]:
        """The averages, live, with their names where a ParamList is averaged, and how many times they were moved."""
        names = {"names": list(self._names)} if self._names is not None else {}
        return {"averages": list(self.averages), "count": self.count, **names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, all or nothing: by name where both have names, else by position.

        Raises:
            ValueError: The averages do not fit the parameters; nothing has changed.
        """
        theirs = keyed("state", state, "averages", "count")["averages"]
        names = state.get("names")
        if not isinstance(theirs, list | tuple):
            raise ValueError(f"expected a list of averages, got a {type(theirs).__name__}")
        if names is not None and not (isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)):
            raise ValueError(f"expected a list of names, got {names!r}")
        whole("state['count']", state["count"], 0)
        if odd := [type(t).__name__ for t in theirs if not isinstance(t, Tensor)]:
            raise ValueError(f"expected averages that are tensors, got a {odd[0]}")
        if any(t.is_meta for t in theirs):
            raise ValueError("expected averages with entries, got one on meta, which has none")
        if self._names is not None and names is not None:
            named = dict(zip(names, theirs, strict=False))
            if len(names) != len(theirs) or set(named) != set(self._names):
                raise ValueError(f"expected averages of {listing(self._names)}, got those of {listing(list(named))}")
            theirs = [named[name] for name in self._names]
        mine = [tuple(e.shape) for e in self.averages]
        if [tuple(t.shape) for t in theirs] != mine:
            raise ValueError(f"expected averages of shapes {mine}, got {[tuple(t.shape) for t in theirs]}")
        kinds = [[_kind(t) for t in tensors] for tensors in (self.averages, theirs)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"expected averages of {', '.join(kinds[0])}, got {', '.join(kinds[1])}")
        with torch.no_grad():
            torch._foreach_copy_(self.averages, theirs)
        self.count = state["count"]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an average: at least float32 where it moves."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "floating point" if tensor.is_floating_point() else "whole numbers"


class EMA(_Average):
    """Exponential moving average: e <- decay*e + (1 - decay)*p. The first update copies the parameters.

    Args:
        params: What is averaged.
        decay: Share of the average kept at each update.

    Raises:
        ValueError: `decay` is outside [0, 1).
    """

    @checked
    def __init__(self, params: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        super().__init__(params)
        self._rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def _take(self, averages: list[Tensor], now: list[Tensor]) -> None:
        self._rule(averages, now, None)


class SWA(_Average):
    """Stochastic weight averaging: the mean of the parameters at all updates.

    Source: Izmailov et al. 2018, arXiv:1803.05407; batch norm statistics are `torch.optim.swa_utils.update_bn`'s.
    """

    @checked
    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params)
        self._rule = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def _take(self, averages: list[Tensor], now: list[Tensor]) -> None:
        self._rule(averages, now, self.count)


@contextmanager
def swapped(params: Iterable[Tensor], averages: Iterable[Tensor]) -> Iterator[None]:
    """Put other values into parameters for the length of a `with` block; theirs come back even after an error."""
    params, averages = list(params), list(averages)
    with torch.no_grad():
        before = [p.detach().clone() for p in params]
        for p, e in zip(params, averages, strict=True):
            p.copy_(e)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, b in zip(params, before, strict=True):
                p.copy_(b)


@checked
@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Evaluate with the averages that an optimizer with `ema_decay=` keeps; the parameters come back after.

    Args:
        optimizer: Whose state has averages; parameters without one keep their values.

    Raises:
        ValueError: None has an average yet.
    """
    pairs = [(p, entry["ema"]) for p, entry in optimizer.state.items() if "ema" in entry]
    if not pairs:
        raise ValueError("no parameter has an average: make the optimizer with ema_decay=, and take a step")
    with swapped([p for p, _ in pairs], [e for _, e in pairs]):
        yield
