"""Schedules as plain functions, step -> lr: for a loop that sets lr itself, and as oracles for torch's schedulers.

    lr = warmup_cosine(peak=3e-4, warmup=100, total=10_000)
    for step, batch in enumerate(batches):
        optimizer.set_lr(lr(step))

Step 0 is the first. torch's schedulers work on these optimizers as on torch's own; `as_lambda` turns
one of these functions into a `LambdaLR`, which is saved and resumed with the optimizer. `ReduceOnPlateau` follows a
figure instead of the step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from shaped.arguments import checked, real, whole
from shaped.errors import NonFiniteError
from shaped.optim.groups import refuse_other

Schedule = Callable[[int], float]


@checked
def constant(lr: float) -> Schedule:
    """The same lr at every step."""
    return lambda step: lr


@checked
def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """lr * factor**(step // every): torch's StepLR.

    Raises:
        ValueError: `every` is less than 1.
    """
    whole("every", every, 1)
    return lambda step: lr * factor ** (step // every)


@checked
def exponential(lr: float, factor: float) -> Schedule:
    """lr * factor**step: torch's ExponentialLR."""
    return lambda step: lr * factor**step


@checked
def cosine(lr: float, total: int, end: float = 0.0) -> Schedule:
    """From `lr` to `end` on half a cosine in `total` steps, then `end`: torch's CosineAnnealingLR up to `total`.

        end + (lr - end) * (1 + cos(pi * step / total)) / 2

    Raises:
        ValueError: `total` is less than 1.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts.
    """
    whole("total", total, 1)
    return lambda step: end + (lr - end) * (1 + math.cos(math.pi * min(step, total) / total)) / 2


@checked
def cosine_restarts(lr: float, period: int, factor: int = 1, end: float = 0.0) -> Schedule:
    """A cosine from `lr` to `end` again and again: torch's CosineAnnealingWarmRestarts.

        end + (lr - end) * (1 + cos(pi * t / T)) / 2      t steps after the last restart, T = period * factor**restarts

    Args:
        lr: At each restart.
        period: Steps of the first cosine.
        factor: Each is so many times as long as the one before it.
        end: What each falls towards.

    Raises:
        ValueError: `period` or `factor` is less than 1.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    whole("period", period, 1)
    whole("factor", factor, 1)

    def at(step: int) -> float:
        length, since = period, step
        if factor == 1:
            since = step % period
        while since >= length:
            since, length = since - length, length * factor
        return _between(lr, end, since / length)

    return at


@checked
def warmup(lr: float, steps: int) -> Schedule:
    """lr * min(1, (step + 1) / steps): on a line to `lr`, which step `steps - 1` is the first to have.

    Raises:
        ValueError: `steps` is less than 1.
    """
    whole("steps", steps, 1)
    return lambda step: lr * min(1.0, (step + 1) / steps)


@checked
def warmup_cosine(peak: float, warmup: int, total: int, end: float = 0.0) -> Schedule:
    """Linearly from 0 to `peak` in `warmup` steps, then a cosine to `end` at step `total`.

    Step `warmup` is the first at `peak`; step 0 is at 0 unless `warmup` is 0.

    Raises:
        ValueError: `warmup` is negative, or `total` is not beyond it.
    """
    if warmup < 0 or total <= warmup:
        raise ValueError(f"expected 0 <= warmup < total, got warmup {warmup} and total {total}")
    down = cosine(peak, total - warmup, end)
    return lambda step: peak * step / warmup if step < warmup else down(step - warmup)


@checked
def linear(start: float, end: float, total: int) -> Schedule:
    """On a line from `start` to `end` in `total` steps, then `end`.

    Raises:
        ValueError: `total` is less than 1.
    """
    whole("total", total, 1)
    return lambda step: start + (end - start) * min(step, total) / total


@checked
def one_cycle(peak: float, total: int, rise: float = 0.3, start: float = 25.0, end: float = 1e4) -> Schedule:
    """Up from peak/start to `peak` on half a cosine, and down to peak/start/end: torch's OneCycleLR.

    Args:
        peak: The largest lr.
        total: Steps of the whole cycle; later steps stay at the last lr.
        rise: Share of the cycle that goes up.
        start, end: What `peak` is divided by at the first step, and that again at the last.

    Raises:
        ValueError: `total` is less than 1, or `rise` is outside (0, 1).

    Source: Smith & Topin 2017, arXiv:1708.07120.
    """
    whole("total", total, 1)
    if not 0.0 < rise < 1.0:
        raise ValueError(f"rise must be in (0, 1), got {rise}")
    top, last = rise * total - 1, total - 1

    def lr(step: int) -> float:
        if step <= top:
            return _between(peak / start, peak, step / top if top else 1.0)  # a rise of one step is at the peak
        return _between(peak, peak / start / end, (min(step, last) - top) / (last - top))

    return lr


@checked
def as_lambda(optimizer: Optimizer, schedule: Schedule) -> LambdaLR:
    """torch's LambdaLR that gives every group schedule(step), whatever lr it was made with.

    Raises:
        ValueError: A group's lr is 0, which no factor can change.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if 0.0 in rates:
        raise ValueError(f"LambdaLR multiplies the lr a group was made with, and that of group {rates.index(0.0)} is 0")
    return LambdaLR(optimizer, [_share_of(schedule, rate) for rate in rates])


class ReduceOnPlateau(ReduceLROnPlateau):
    """torch's ReduceLROnPlateau, as a listener of a loop: lr * factor where a figure has not improved for `patience`.

        loop.attach(ReduceOnPlateau(optimizer, monitor="validation/loss", factor=0.5, patience=3))

    Its state is in the loop's checkpoint. The lr is one of the numbers that a compiled step is handed, so a reduction
    compiles nothing.

    Args:
        optimizer: Whose groups' lr is reduced.
        monitor: The recorded figure.
        mode: "min" or "max": which values are better.
        factor, patience, options: As torch's: the lr is reduced after more than `patience` figures without improvement.

    Raises:
        ValueError: `factor` is not below 1, or `mode` is unknown.
    """

    @checked
    def __init__(
        self,
        optimizer: Optimizer,
        *,
        monitor: str = "validation/loss",
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        **options: Any,
    ) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(f"monitor is {monitor!r}; it is the name of a recorded figure")
        super().__init__(optimizer, mode=mode, factor=factor, patience=patience, **options)
        self.monitor = monitor
        self.at = self._loaded_at = -1  # the step at which the newest figure came, and that of a state that was loaded

    def attached(self, loop: Any) -> None:
        """Keep the state with the loop's. Raises ValueError where the loop's trainer has another optimizer."""
        refuse_other(self.optimizer, loop.trainer.optimizer)
        loop.keep(f"lr on {self.monitor}", self)

    @property
    def watches(self) -> str:
        """The figure that a loop must record."""
        return self.monitor

    def on_record(self, loop: Any, values: Mapping[str, float]) -> None:
        """Take the figure in; that of a loaded state's own step, where a script evaluates it once more, is in it.

        Raises:
            NonFiniteError: It is NaN, of which torch's makes a figure without improvement.
        """
        if self.monitor not in values or loop.step == self._loaded_at:
            return
        if math.isnan(values[self.monitor]):
            raise NonFiniteError(f"ReduceOnPlateau was given {self.monitor} = nan")
        self.at = loop.step
        self.step(values[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        """As torch's."""
        return {key: value for key, value in super().state_dict().items() if key != "_loaded_at"}

    @checked
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        self._loaded_at = int(state_dict.get("at", -1))


def _share_of(schedule: Schedule, rate: float) -> Schedule:
    return lambda step: real(f"schedule({step})", schedule(step)) / rate


def _between(first: float, second: float, share: float) -> float:
    return second + (first - second) * (1 + math.cos(math.pi * share)) / 2


BY_NAME: Mapping[str, Callable[..., Schedule]] = {
    function.__name__: function
    for function in (
        constant, cosine, cosine_restarts, exponential, linear, one_cycle, step_decay, warmup, warmup_cosine
    )
}  # fmt: skip
