"""What a workflow measured: figures of each epoch, the best of them, and the results it ends with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shaped.metrics import Mean
from shaped.params import ParamList

if TYPE_CHECKING:
    from shaped.loop import Loop


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with.

    Attributes:
        final_loss, best_loss: The monitored figure of the last epoch, and the best; in the loss's unit by default.
        best_epoch: Counted from 1; 0 where there was no epoch.
        epochs: Complete ones. steps: Batches taken.
        ended: "all epochs", or why it was stopped or cancelled.
        seconds: Of training, over all calls of this process.
        history: Figures by name, an entry for each epoch: `training/loss`, `validation/...`.
        checkpoint: The newest, where there is a folder.
        extensions: Those of the configuration.
    """

    final_loss: float
    best_loss: float
    best_epoch: int
    epochs: int
    steps: int
    ended: str
    seconds: float
    history: tuple[Mapping[str, float], ...] = ()
    monitor: str = "validation/loss"
    checkpoint: Path | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures of the last epoch."""
        return self.history[-1] if self.history else {}

    def __str__(self) -> str:
        return (f"{self.monitor} {self.final_loss:.4g} after {self.epochs} epochs, best {self.best_loss:.4g} in epoch "
                f"{self.best_epoch}; ended by {self.ended}")  # fmt: skip


@dataclass(frozen=True)
class ValidationResult:
    """Loss and metrics over data, weighted by example.

    Attributes:
        samples: Examples, not batches.
    """

    loss: float
    metrics: Mapping[str, float]
    samples: int
    seconds: float
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        figures = "".join(f", {name} {value:.4g}" for name, value in self.metrics.items())
        return f"loss {self.loss:.4g}{figures} over {self.samples} examples"


class History:
    """Listens to a loop: the mean training loss of each epoch, what was recorded at its end, and the best epoch.

    Args:
        monitor: The figure that says which epoch is best.
        mode: "min" or "max".
        keep_best: Keep the parameters of the best epoch (a copy in memory, and in the checkpoint).
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], *, keep_best: bool = False) -> None:
        self.monitor, self._sign, self._keep_best = monitor, 1 if mode == "min" else -1, keep_best
        self.epochs: list[dict[str, float]] = []
        self._loss, self._open = Mean(), False
        self._best: dict[str, Any] | None = None
        self._skipped = 0

    def attached(self, loop: "Loop") -> None:
        """Begin to listen; the state is kept with the loop's."""
        self._skipped = loop.trainer.skipped
        loop.keep("history", self)
        loop.on_step(self._step, name="history", priority=-90)

    def _step(self, loop: "Loop") -> None:
        skipped = loop.trainer.skipped
        if skipped == self._skipped:  # a skipped step leaves the loss before it in place
            self._loss.update(loop.loss)
        self._skipped = skipped

    def end_epoch(self, loop: "Loop") -> None:
        """Begin an epoch's entry with the training loss, the plain mean of its steps' losses."""
        loss = self._loss.compute()
        self._loss.reset()
        self.epochs.append({})
        self._open = True
        loop.record({"training/loss": loss})

    def on_record(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Add to the open entry; the best epoch is known before early stopping and checkpoints hear of it."""
        if not self._open:
            return
        self.epochs[-1].update(values)
        value = values.get(self.monitor, math.nan)
        if self._keep_best and not math.isnan(value) and self.best_epoch == len(self.epochs):
            params = loop.trainer.params
            self._best = {n: t.detach().clone() for n, t in zip(params.names, params, strict=True)}

    def complete(self, loop: "Loop") -> None:
        """Close the epoch's entry."""
        self._open = False

    @property
    def values(self) -> list[float]:
        """The monitored figure of each epoch; NaN where it was not recorded."""
        return [epoch.get(self.monitor, math.nan) for epoch in self.epochs]

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best figure, from 1; 0 where there is none."""
        ranked = [(self._sign * value, i + 1) for i, value in enumerate(self.values) if not math.isnan(value)]
        return min(ranked)[1] if ranked else 0

    def restore(self, params: ParamList) -> None:
        """Put back the parameters of the best epoch, where they were kept."""
        if self._best is not None:
            params.set_values([self._best[name] for name in params.names])

    def result(self, loop: "Loop", ended: str, seconds: float, place: Path | None, extensions: Any) -> TrainingResult:
        """All of it as a TrainingResult."""
        best, values = self.best_epoch, self.values
        return TrainingResult(
            final_loss=values[-1] if values else math.nan,
            best_loss=values[best - 1] if best else math.nan,
            best_epoch=best,
            epochs=len(self.epochs),
            steps=loop.step,
            ended=ended,
            seconds=seconds,
            history=tuple(dict(epoch) for epoch in self.epochs),
            monitor=self.monitor,
            checkpoint=place,
            extensions=extensions,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "epochs": [dict(epoch) for epoch in self.epochs],
            "total": self._loss.total,
            "weight": self._loss.weight,
            "best": self._best,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.epochs = [dict(epoch) for epoch in state["epochs"]]
        self._loss.total, self._loss.weight = float(state["total"]), float(state["weight"])
        self._best = None if state["best"] is None else dict(state["best"])
        self._open, self._skipped = False, int(state["skipped"])
