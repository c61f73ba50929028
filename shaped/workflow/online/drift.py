"""Noticing that data have changed: river's detectors behind one protocol, and the trigger that an update waits for.

A detector takes one number at a time (a loss, an error, a feature) and says where it sees a drift; after that it begins
anew. Its state is plain data, small, and goes on in a new object with the same answers.
"""

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from shaped.arguments import checked, keyed, number, real, whole
from shaped.errors import ShapedError, StateError

Reason = Literal["drift", "schedule"]


@runtime_checkable
class DriftDetector(Protocol):
    """What a trigger asks. `update` is True at the value at which a drift is seen."""

    def update(self, value: float) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _River:
    """One of river's detectors: its answers, and its state as plain data."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._detector = self._new()

    def _new(self) -> Any:
        try:
            import river.drift
        except ImportError:
            raise ShapedError('drift detection comes with river: pip install "shaped-trainer[online]"') from None
        return getattr(river.drift, type(self).__name__)(**self._arguments)

    def update(self, value: float) -> bool:
        """Add a number; True where a drift is seen.

        Raises:
            ValueError: It is not finite: it would poison every later answer.
        """
        value = real("value", value)
        if not math.isfinite(value):
            raise ValueError(f"the detector was given {value}; it takes finite numbers")
        self._detector.update(value)
        return bool(self._detector.drift_detected)

    def state_dict(self) -> dict[str, Any]:
        """Arguments, and all that river keeps."""
        kept = {name: _packed(value) for name, value in vars(self._detector).items() if not callable(value)}
        return {"detector": type(self).__name__, "arguments": dict(self._arguments), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateError: It is another detector's, or has other arguments, or another version of river's.
        """
        keyed("state", state, error=StateError)
        mine = {"detector": type(self).__name__, "arguments": self._arguments}
        there = {name: state.get(name) for name in mine}
        if there != mine:
            raise StateError(f"the state is of {there['detector']}({there['arguments']}), and this is {self!r}")
        fresh = self._new()
        expected = {name for name, value in vars(fresh).items() if not callable(value)}
        if set(state.get("kept", ())) != expected:
            raise StateError(f"the state of {type(self).__name__} was written by another version of river")
        try:
            for name, value in state["kept"].items():
                setattr(fresh, name, _unpacked(value, getattr(fresh, name)))
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise StateError(f"the state of {type(self).__name__} does not fit: {error}") from None
        self._detector = fresh

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._arguments})"


class ADWIN(_River):
    """A window that grows while its mean stays, and is cut where two parts of it differ (Bifet & Gavaldà 2007).

    Args:
        delta: Probability of a false alarm at a check; above 0 and below 1.
        clock: Numbers between checks.
        grace_period: Numbers before the first check.

    Raises:
        ValueError: A number is out of range.

    Source: river.drift.ADWIN, whose answers these are.
    """

    @checked
    def __init__(self, delta: float = 0.002, clock: int = 32, grace_period: int = 10) -> None:
        if not 0 < delta < 1:
            raise ValueError(f"delta is {delta!r}; it is a number above 0 and below 1")
        whole("clock", clock, 1)
        whole("grace_period", grace_period, 0)
        super().__init__(delta=delta, clock=clock, grace_period=grace_period)


class PageHinkley(_River):
    """A cumulative sum of deviations from the running mean, against a threshold (Page 1954).

    Args:
        min_instances: Numbers before the first answer.
        delta: Deviation that is no drift, in the numbers' unit.
        threshold: Sum of deviations that is one, in that unit.
        alpha: What the sum keeps of itself at each number.
        mode: Drifts "up", "down" or "both".

    Source: river.drift.PageHinkley, whose answers these are.
    """

    @checked
    def __init__(
        self,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 0.9999,
        mode: Literal["up", "down", "both"] = "both",
    ) -> None:
        whole("min_instances", min_instances, 1)
        for name, value in (("delta", delta), ("threshold", threshold), ("alpha", alpha)):
            number(name, value)
        super().__init__(min_instances=min_instances, delta=delta, threshold=threshold, alpha=alpha, mode=mode)


class KSWIN(_River):
    """A Kolmogorov-Smirnov test of the newest numbers against a sample of those before (Raab et al. 2020).

    Args:
        alpha: Significance of each test.
        window_size, stat_size: Numbers kept, and the newest of them that are tested.
        seed: Of the sample. Without one a resumed run could not be the same.

    Source: river.drift.KSWIN, whose answers these are.
    """

    @checked
    def __init__(self, alpha: float = 0.005, window_size: int = 100, stat_size: int = 30, seed: int = 0) -> None:
        super().__init__(alpha=alpha, window_size=window_size, stat_size=stat_size, seed=seed)


def _packed(value: Any) -> Any:
    """What river keeps, as plain data: numbers as they are, and its four kinds of objects."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, deque):
        return {"window": [float(x) for x in value]}
    if isinstance(value, random.Random):
        version, words, gauss = value.getstate()
        return {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss}
    if hasattr(value, "get_width"):  # ADWIN's window, whose buckets only river can read; what can be asked is compared
        return {"buckets": torch.frombuffer(bytearray(value.__getstate__()), dtype=torch.uint8), **_asked(value)}
    return {"n": float(value.n), "mean": float(value.get())}


def _asked(window: Any) -> dict[str, float]:
    return {name: float(getattr(window, f"get_{name}")()) for name in ("width", "total", "variance", "n_detections")}


def _unpacked(value: Any, fresh: Any) -> Any:
    """The object again; `fresh` is what a new detector has in its place."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(fresh, deque):
        return deque(value["window"], maxlen=fresh.maxlen)
    if isinstance(fresh, random.Random):
        fresh.setstate((value["version"], tuple(value["words"].tolist()), value["gauss"]))
    elif hasattr(fresh, "get_width"):
        fresh.__setstate__(bytes(value["buckets"].tolist()))
        if _asked(fresh) != {name: value[name] for name in _asked(fresh)}:
            raise ValueError("river reads its window differently")
    else:
        fresh.n, fresh._mean = value["n"], value["mean"]
    return fresh


class Trigger:
    """Says when an update is due: where a drift is seen, or when so many numbers have come.

    A drift that is seen before `min_samples` or within `cooldown` is not lost: it fires when these have passed.

    Args:
        detector: Sees drifts; None for a schedule alone.
        every: Numbers from one firing to the next, whatever the detector says; None for drifts alone.
        min_samples: Numbers before the first firing.
        cooldown: Numbers after a firing in which there is no other.

    Raises:
        ValueError: There is neither a detector nor a schedule, or a number is out of range.
    """

    @checked
    def __init__(
        self,
        detector: DriftDetector | None = None,
        *,
        every: int | None = None,
        min_samples: int = 1,
        cooldown: int = 0,
    ) -> None:
        if detector is None and every is None:
            raise ValueError("a trigger needs a detector, or every=")
        for name, value, least in (("every", every, 1), ("min_samples", min_samples, 1), ("cooldown", cooldown, 0)):
            if value is not None:
                whole(name, value, least)
        self.detector, self.every, self.min_samples, self.cooldown = detector, every, min_samples, cooldown
        self.seen, self._since, self._fired, self._drift = 0, 0, False, False
        self._fresh = None if detector is None else detector.state_dict()

    def update(self, value: float) -> Reason | None:
        """Add a number; "drift" or "schedule" where an update is due."""
        value = real("value", value)
        if self.detector is not None:
            self._drift = self.detector.update(value) or self._drift
        self.seen += 1
        self._since += 1
        if self.seen < self.min_samples or (self._fired and self._since <= self.cooldown):
            return None
        reason: Reason | None = None
        if self._drift:
            reason = "drift"
        elif self.every is not None and self._since >= self.every:
            reason = "schedule"
        if reason is not None:
            self._since, self._fired, self._drift = 0, True, False
        return reason

    def restart(self) -> None:
        """Let the detector begin anew, as it was given: the model has changed, and what came before says nothing."""
        if self.detector is not None and self._fresh is not None:
            self.detector.load_state_dict(self._fresh)
        self._drift = False

    def state_dict(self) -> dict[str, Any]:
        """Counts, a drift that waits, and the detector's state."""
        counts = {"seen": self.seen, "since": self._since, "fired": self._fired, "drift": self._drift}
        return {**counts, "detector": None if self.detector is None else self.detector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateError: It has a detector and this has none, or the other way round, or the detector refuses it.
        """
        keyed("state", state, "detector", "seen", "since", "fired", "drift", error=StateError)
        if (state["detector"] is None) != (self.detector is None):
            raise StateError("the trigger has a detector on one side only")
        if self.detector is not None:
            self.detector.load_state_dict(state["detector"])
        self.seen, self._since = int(state["seen"]), int(state["since"])
        self._fired, self._drift = bool(state["fired"]), bool(state["drift"])
