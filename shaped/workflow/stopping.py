"""Early stopping on a smoothed figure: a class of its own, and a listener of a loop."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from shaped.arguments import checked, keyed, number, real, whole
from shaped.errors import NonFiniteError, StateError

if TYPE_CHECKING:
    from shaped.loop import Loop


class EarlyStopping:
    """Says when a figure has stopped improving.

        s_1 = x_1,    s_n = alpha*x_n + (1 - alpha)*s_(n-1)         smoothed
        improved      s_n < best - min_delta  ("max": s_n > best + min_delta); then best = s_n
        stop          after `patience` figures in a row that have not improved

    By itself: `if stopping.step(loss): break`. In a loop: `loop.attach(EarlyStopping(patience=5))` looks at each
    recorded `monitor`, ends the run as `Loop.stop` does, and its state is in the checkpoint.

    Args:
        patience: Figures without improvement, at least 1.
        monitor: The recorded figure, where it is attached to a loop.
        alpha: Weight of the newest figure, above 0 and at most 1 (which smooths nothing).
        mode: "min" or "max": which values are better.
        min_delta: What a figure must be better by, in its own unit.

    Raises:
        ValueError: An argument is out of range.
    """

    @checked
    def __init__(
        self,
        patience: int = 10,
        *,
        monitor: str = "validation/loss",
        alpha: float = 0.1,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
    ) -> None:
        whole("patience", patience, 1)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha!r}; it is a number above 0 and at most 1")
        number("min_delta", min_delta)
        if not monitor:
            raise ValueError(f"monitor is {monitor!r}; it is the name of a recorded figure")
        self.patience, self.monitor, self.alpha, self.mode, self.min_delta = patience, monitor, alpha, mode, min_delta
        self.reset()

    def reset(self) -> None:
        """Forget all figures."""
        self.smoothed = math.nan  # of all figures so far
        self.best = math.nan  # the best smoothed one
        self.waited = 0  # figures since then
        self.stopped = False
        self.at = self._loaded_at = -1  # the step of a loop at which the newest figure came, and that of a loaded state

    def step(self, value: float) -> bool:
        """Take a figure in; True says stop.

        Raises:
            NonFiniteError: It is NaN or infinite, which would stay in the average for ever; nothing has changed.
        """
        value = real("value", value)
        if not math.isfinite(value):
            raise NonFiniteError(f"early stopping was given {self.monitor} = {value}; its average would stay so")
        first = math.isnan(self.smoothed)
        self.smoothed = value if first else self.alpha * value + (1 - self.alpha) * self.smoothed
        gain = self.best - self.smoothed if self.mode == "min" else self.smoothed - self.best
        if first or gain > self.min_delta:
            self.best, self.waited = self.smoothed, 0
        else:
            self.waited += 1
        self.stopped = self.waited >= self.patience
        return self.stopped

    @property
    def watches(self) -> str:
        """The figure that a loop must record."""
        return self.monitor

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        names = ("smoothed", "best", "waited", "stopped", "at", "alpha", "mode")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; `patience` and `min_delta` may be others now.

        Raises:
            StateError: It was saved with another `alpha` or `mode`, or is no such state; nothing has changed.
        """
        keyed("state", state, error=StateError)
        wrong = [f"{name} was {state.get(name)!r} there, {mine!r} here"
                 for name, mine in (("alpha", self.alpha), ("mode", self.mode)) if state.get(name) != mine]  # fmt: skip
        wrong += [f"`{name}` is missing" for name in ("smoothed", "best", "waited", "stopped") if name not in state]
        if wrong:
            raise StateError(f"the state is of another early stopping: {'; '.join(wrong)}")
        self.smoothed, self.best = float(state["smoothed"]), float(state["best"])
        self.waited, self.stopped = int(state["waited"]), bool(state["stopped"])
        self.at = self._loaded_at = int(state.get("at", -1))

    def attached(self, loop: "Loop") -> None:
        """Watch a loop's figures; a run that had been stopped stays so after a resume."""
        loop.keep(f"early stopping on {self.monitor}", self)
        loop.on_start(self._start, name=loop.free_name(f"early stopping on {self.monitor}"))

    def _start(self, loop: "Loop") -> None:
        if self.stopped:
            loop.stop(str(self))

    def on_record(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Take the figure in, and end the run where it has stopped improving.

        A script that goes on from a checkpoint may evaluate its step once more: that figure is part of the state.
        """
        if self.monitor not in values or loop.step == self._loaded_at:
            return
        self.at = loop.step
        if self.step(values[self.monitor]):
            loop.stop(str(self))

    def __str__(self) -> str:
        if not self.stopped:
            return f"{self.monitor} (smoothed) is {self.smoothed:.4g}, its best {self.best:.4g}"
        return f"{self.monitor} (smoothed) has not been better than {self.best:.4g} for {self.waited} figures"
