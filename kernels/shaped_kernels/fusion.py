"""One step of several rules at once, and what is fused around it.

    factor <- 1 / grad_scale
    factor <- factor * min(1, max_norm / (norm + 1e-6))    norm of all gradients of the step, unscaled
    skip   <- found_inf, or a gradient is not finite       then parameters, state and count stay, bit for bit
    g      <- factor * g, and the rule
    e      <- e + (1 - ema_decay) * (p - e)
    g      <- 0                                            if zero_grads, skipped or not

Each is optional and free when off. `take` runs lists of the triton path by kernels that decide on
the device, and the others by torch's operators, deciding on the host.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import lowmemory
from .flat import flat_view
from .lists import WIDE, TensorLists
from .scalars import Store


@dataclass(frozen=True)
class Extras:
    """What is fused around one step; the defaults are nothing.

    Attributes:
        max_norm: Gradients are scaled down so that the norm of all of them is at most this.
        skip_nonfinite: A step with an infinite or NaN gradient changes nothing.
        ema_decay: Share of each average kept per step; the lists must have averages then.
        zero_grads: Leave zeros in the gradients.
        grad_scale: One element; gradients are divided by it.
        found_inf: One element; the step changes nothing if it is not zero.
        norm: The norm of all gradients as they are, where it is known already: shards on many devices.
    """

    max_norm: float | None = None
    skip_nonfinite: bool = False
    ema_decay: float | None = None
    zero_grads: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    norm: Tensor | None = None

    @property
    def measures(self) -> bool:
        """Whether the gradients must be read before the step."""
        return self.max_norm is not None or self.skip_nonfinite


NOTHING = Extras()


class Rule(Protocol):
    """An update rule and its variant, in the forms that the paths need."""

    @property
    def store(self) -> Store:
        """How a parameter is rounded."""

    @property
    def single(self) -> bool:
        """Whether it takes one parameter at a time, by `plain`."""

    def fused(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        slots: Sequence[list[Tensor]],
        scalars: Sequence[float],
        step: Tensor,
        factor: float | None,
    ) -> None:
        """Take step number `step` by torch's operator; gradients are multiplied by `factor`, perhaps in place."""

    def plain(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], scalars: Sequence[float], step: float
    ) -> tuple[Tensor | None, ...]:
        """The same for one parameter, without changing it: new parameter and state."""

    def hypers(self, scalars: Sequence[float]) -> list[float]:
        """The scalars as the row kernel reads them."""

    def kernels(self, lists: TensorLists) -> tuple[Any, dict[str, Any], Any, dict[str, Any], int]:
        """For the triton path: row kernel and its constants, update kernel and its constants, entries of the row."""


@dataclass
class Call:
    """One rule over lists that are known to be good; making it checks the gradients, and changes nothing.

    Attributes:
        rule: Which.
        lists: Parameters and state.
        grads: One gradient for each parameter; afterwards, laid out as `lists.admit` does.
        flat: The lists as flat tensors, where that pays.
        walked: The gradients as the torch path walks them: `grads`, or one flat tensor.
        scalars: The rule's numbers, checked.
        step: Steps taken so far, 0-dim; advanced by the step. On the parameters' device on the triton path.
        lr: A learning rate on the lists' device, which replaces that of `scalars` without being read by the
            host; on the triton path.
        gather: Copy what does not lie flat together, if it is small. A norm or an average over all tensors repays
            that; the rule alone does not, whose operator takes a list as quickly.

    Raises:
        ValueError: Some gradients do not fit; the message names every index and what is wrong.
    """

    rule: Rule
    lists: TensorLists
    grads: Sequence[Tensor]
    scalars: Sequence[float]
    step: Tensor
    lr: Tensor | None = None
    gather: bool = False

    def __post_init__(self) -> None:
        together = self.rule.store == "nearest" and not self.rule.single
        self.flat = flat_view(self.lists, self.gather) if together else None
        gathered = None if self.flat is None else self.flat.admit(self.grads)
        if gathered is None:
            self.grads = self.lists.admit(self.grads)
            gathered = None if self.flat is None else self.flat.admit(self.grads)
        if gathered is None:
            self.flat = None
        self.walked = list(self.grads) if gathered is None else [gathered]


def take(calls: Sequence[Call], extras: Extras = NOTHING) -> tuple[Tensor | None, bool | Tensor]:
    """Take one step of every call, in place, under one norm and one verdict.

    Args:
        calls: All that moves in this step.
        extras: What is fused around it.

    Returns:
        The norm of all gradients, unscaled and before clipping: 0-dim, None if nothing asked for it.
        Whether the step was skipped: a tensor where a device decided.
    """
    on_device = [call for call in calls if call.lists.path == "triton" and len(call.lists)]
    on_host = [call for call in calls if call.lists.path != "triton"]
    with torch.no_grad():
        if not on_device:
            return _take_on_host(on_host, extras)
        from .launch_triton import launch

        beyond = [torch.tensor(square, dtype=torch.float64) for square in _squares(on_host)] if extras.measures else []
        norm, skipped = launch(on_device, extras, beyond)
        if on_host:  # both paths under one norm: rare, and the one case in which the host waits for a device
            _move_all(on_host, extras, _factor(extras, None if norm is None else float(norm)), bool(skipped))
        return norm, skipped


def _take_on_host(calls: Sequence[Call], extras: Extras) -> tuple[Tensor | None, bool]:
    norm: float | None = None
    skip = extras.found_inf is not None and bool(extras.found_inf.item())
    if extras.measures:
        norm = math.sqrt(sum(_squares(calls))) if extras.norm is None else float(extras.norm)
        if extras.grad_scale is not None:
            norm /= float(extras.grad_scale)
        if extras.skip_nonfinite and not math.isfinite(norm):  # the norm of finite gradients may be infinite
            skip |= extras.norm is not None or not all(bool(g.isfinite().all()) for c in calls for g in c.walked)
    _move_all(calls, extras, _factor(extras, norm), skip)
    return None if norm is None else torch.tensor(norm), skip


def _factor(extras: Extras, norm: float | None) -> float | None:
    """What gradients are multiplied by."""
    factor = None if extras.grad_scale is None else 1.0 / float(extras.grad_scale)
    if extras.max_norm is not None and norm is not None:
        limit = extras.max_norm / (norm + 1e-6)
        if not limit >= 1.0:  # less, or a NaN, which poisons the step as clip_grad_norm_ does
            return limit * (1.0 if factor is None else factor)
    return factor


def _move_all(calls: Sequence[Call], extras: Extras, factor: float | None, skip: bool) -> None:
    for call in calls:
        if not skip:
            _move(call, extras.ema_decay, factor)
        if extras.zero_grads:
            torch._foreach_zero_(call.walked if call.flat is not None and not call.flat.copies else list(call.grads))


def _squares(calls: Sequence[Call]) -> list[float]:
    """The squared norm of each call's gradients."""
    norms = [float(_norm(call.walked)) for call in calls if call.walked]
    return [norm * norm for norm in norms]  # inf where ** would raise


def _norm(grads: list[Tensor]) -> Tensor:
    if len(grads) == 1:
        return torch.linalg.vector_norm(grads[0], dtype=WIDE[grads[0].dtype])
    norms = torch._foreach_norm(grads, 2, torch.float32 if any(g.itemsize < 4 for g in grads) else None)
    return torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))


def _move(call: Call, ema_decay: float | None, factor: float | None) -> None:
    lists, rule, flat = call.lists, call.rule, call.flat
    exact = rule.store == "nearest" and lists.scales is None and not rule.single
    rest = factor
    call.step.add_(1)
    try:
        if flat is not None:
            flat.enter()
            rule.fused([flat.params], call.walked, [[slot] for slot in flat.slots], call.scalars, call.step, factor)
            flat.leave()
        elif lists.fast and exact:
            grads = lists.fast_of(call.walked)
            if factor is not None and shared(grads):  # torch's operator writes g*factor back, and would do so twice
                grads, rest = [g * factor for g in grads], None
            rule.fused(lists.fast_params, grads, lists.fast_slots, call.scalars, call.step, rest)
        for i in lists.slow if exact else range(len(lists)):
            _move_plainly(call, i, factor)
    except BaseException:  # an operator that refuses does so before it moves anything, so nothing was counted
        call.step.sub_(1)
        raise
    if ema_decay is not None and lists.ema is not None:
        if flat is not None and flat.ema is not None and flat.ema.dtype == flat.params.dtype:
            flat.ema.lerp_(flat.params, 1.0 - ema_decay)
        else:
            for e, p in zip(lists.ema, lists.params, strict=True):
                e.add_(p.detach().to(WIDE[e.dtype]) - e, alpha=1.0 - ema_decay)


def shared(grads: Sequence[Tensor]) -> bool:
    """Say whether two gradients lie in the same memory, as those of `a + b` may."""
    pointers = [g.data_ptr() for g in grads if g.numel()]
    return len(set(pointers)) < len(pointers)


def _move_plainly(call: Call, i: int, factor: float | None) -> None:
    """One parameter by the rule's reference, whatever its layout and however it and its state are stored."""
    lists, store = call.lists, call.rule.store
    p = lists.params[i].detach()
    g = call.grads[i].detach()
    g = g if factor is None else g * factor
    slots = [slot[i] for slot in lists.slots]
    if store == "nearest" and lists.scales is None:
        new = call.rule.plain(p, g, slots, call.scalars, float(call.step))
        for mine, value in zip((p, *slots), new, strict=False):  # Adam's ends in None without AMSGrad
            if value is not None:
                mine.copy_(value)
        return
    lowmemory.move(
        p,
        g,
        slots,
        None if lists.low is None else lists.low[i],
        None if lists.scales is None else [scale[i] for scale in lists.scales],
        lambda wide, gradient, state: call.rule.plain(wide, gradient, state, call.scalars, float(call.step)),
        (i, int(call.step)),
        stochastic_store=store == "stochastic",
    )
