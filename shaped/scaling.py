"""Loss scaling: gradients of a loss that was multiplied, divided again: short formats do not lose small ones."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shaped.arguments import checked, keyed, whole
from shaped.drawing import check_device
from shaped.errors import StateError
from shaped.shapes import worn
from shaped.strategies import Loss, gradients

_LARGEST = torch.finfo(torch.float32).max


class LossScaler:
    """A scale for the loss that grows while gradients are finite, and shrinks where they are not.

        trainer = ScalarTrainer(loss, params, loss_scale=LossScaler(2.0**10), autocast="fp16")

    Small gradients of float16 or E5M2 vanish; those of a loss that is scaled up do not. The scale is an input of the
    step, so it changes without a recompile.

    Args:
        scale: Where it starts.
        interval: Finite steps in a row after which it is multiplied with `growth`, unless it would be infinite then.
        growth, backoff: Factors; `backoff` after a step that was skipped.
        floor: The scale never goes below.
        device: Of the parameters.

    Raises:
        ValueError: A number is out of range.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2, as torch.amp.GradScaler.
    """

    @checked
    def __init__(
        self,
        scale: float = 2.0**16,
        *,
        interval: int = 2000,
        growth: float = 2.0,
        backoff: float = 0.5,
        floor: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        if not (_LARGEST >= scale >= floor > 0 and growth > 1 > backoff > 0):
            raise ValueError(
                f"scale = {scale}, growth = {growth}, backoff = {backoff}, floor = {floor}: the scale is at least the "
                "floor, which is positive, and finite in float32; growth is above 1 and backoff between 0 and 1"
            )
        whole("interval", interval, 1)
        check_device(device)
        self.scale = torch.tensor(float(scale), device=device)
        self.interval, self.growth, self.backoff, self.floor = interval, growth, backoff, floor
        self.good = 0  # finite steps since the scale last changed

    def take(self, step: Callable[..., Tensor], *inputs: Any, **options: Any) -> Float[Tensor, ""]:
        """Take a step of a trainer with the scale, and learn from whether it was skipped.

        Args:
            step: A method of a ScalarTrainer with `nonfinite="skip"`: `trainer.adamw_step`.
            inputs, options: As for the method.

        Raises:
            ValueError: `step` is no method of a trainer.
        """
        trainer: Any = getattr(step, "__self__", None)
        if not hasattr(trainer, "skipped"):
            raise ValueError(f"step is {step!r}; pass a trainer's method, such as trainer.adamw_step")
        before = trainer.skipped
        value = step(*inputs, loss_scale=self.scale, **options)
        self.update(trainer.skipped == before)
        return value

    def update(self, finite: bool) -> None:
        """Tell it how a step went: False where it was skipped.

        Raises:
            ValueError: `finite` is neither True nor False.
        """
        if not isinstance(finite, bool):
            raise ValueError(f"finite is {finite!r}; it is True or False")
        if not finite:
            self.scale = (self.scale * self.backoff).clamp_min(self.floor)
            self.good = 0
            return
        self.good += 1
        if self.good >= self.interval:
            grown = self.scale * self.growth
            self.scale, self.good = torch.where(grown.isfinite(), grown, self.scale), 0

    def state_dict(self) -> dict[str, Any]:
        """The scale and the count, as plain numbers."""
        return {"scale": self.scale.item(), "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            StateError: It is none; nothing has changed.
        """
        keyed("state", state, error=StateError)
        scale, good = state.get("scale"), state.get("good")
        if (
            not isinstance(scale, float)
            or not isinstance(good, int)
            or not (_LARGEST >= scale >= self.floor and good >= 0)
        ):
            raise StateError(
                f"a scaler's state is a finite scale of at least {self.floor} and a count, not {dict(state)}"
            )
        self.scale, self.good = torch.full_like(self.scale, scale), good


@checked
def with_scale(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same loss with one more input, `loss_scale : []`, 1 by default and not used: for the strategy `unscaled`."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = inspect.Parameter("loss_scale", keyword, default=1.0, annotation=Float[Tensor, ""])

    def scaled(*args: Any, loss_scale: Any = 1.0, **named: Any) -> Any:
        return loss(*args, **named)

    return worn(scaled, loss, {"loss_scale": Float[Tensor, ""]}, [extra])


def unscaled(loss: Loss, params: Any, /, *inputs: Tensor) -> tuple[Tensor, Any]:
    """A gradient strategy: the gradients of the loss times its last input, divided by it. The loss is the plain one."""
    value, scale = loss(params, *inputs), inputs[-1]
    found = gradients(value * scale.to(value.dtype), params)
    return value, found.like([gradient / scale.to(gradient.dtype) for gradient in found])


LossScale = Literal["dynamic"] | LossScaler


def made_scaler(given: Any, strategy: Any, device: torch.device) -> LossScaler | None:
    """What scales a trainer's loss, on the device of its parameters; None for nothing.

    Raises:
        ValueError: It is no such thing, or a strategy is given too.
    """
    if given is None:
        return None
    if strategy is not None:
        raise ValueError("loss_scale is a strategy of its own (`unscaled`): leave out strategy=, or loss_scale=")
    if given == "dynamic":
        return LossScaler(device=device)
    if not isinstance(given, LossScaler):
        raise ValueError(f"loss_scale is {given!r}; it is 'dynamic', a LossScaler(...), or None")
    given.scale = given.scale.to(device)
    return given


def scaled_loss(loss: Callable[..., Any], samples: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The loss with its scale as an input, and what else a program needs for it."""

    def counted(*batch: Any, loss_scale: Any = 1.0, **named: Any) -> Any:
        return samples(*batch, **named)

    return with_scale(loss), {"strategy": unscaled, "samples": counted if callable(samples) else samples}
