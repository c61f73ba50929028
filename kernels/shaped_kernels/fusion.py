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

import torch
from torch import Tensor

from . import lowmemory
from .calls import NOTHING, ONLY_KEEP, Extras, RuleCall, shared
from .lists import WIDE
from .rule import refuse_misshapen


def take(calls: Sequence[RuleCall], extras: Extras = NOTHING) -> tuple[Tensor | None, bool | Tensor]:
    """Take one step of every call, in place, under one norm and one verdict.

    Args:
        calls: All that moves in this step.
        extras: What is fused around it.

    Returns:
        The norm of all gradients, unscaled and before clipping: 0-dim, None if nothing asked for it.
        Whether the step was skipped: a tensor where a device decided.
    """
    if extras is ONLY_KEEP and len(calls) == 1 and calls[0].lists.path != "triton":
        with torch.no_grad():
            _move(calls[0], extras, None)
        return None, False
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


def _take_on_host(calls: Sequence[RuleCall], extras: Extras) -> tuple[Tensor | None, bool]:
    norm: float | None = None
    skip = extras.found_inf is not None and bool(extras.found_inf.item())
    if extras.measures:
        norm = math.sqrt(sum(_squares(calls))) if extras.norm is None else float(extras.norm)
        if extras.grad_scale is not None:
            norm /= float(extras.grad_scale)
        if extras.skip_nonfinite and not math.isfinite(norm):  # the norm of finite gradients may be infinite
            skip |= extras.norm is not None or not all(bool(g.isfinite().all()) for c in calls for g in c.walked)
    _move_all(calls, extras, _factor(extras, norm), skip)
    return None if norm is None else _told(norm, calls), skip


def _told(norm: float, calls: Sequence[RuleCall]) -> Tensor:
    """A norm as a tensor: where the first parameters are, as wide as the widest are computed in."""
    exact = any(p.dtype == torch.float64 for call in calls for p in _alike(call))
    device = calls[0].lists.device if calls else None
    return torch.tensor(norm, dtype=torch.float64 if exact else torch.float32, device=device)


def _alike(call: RuleCall) -> list[Tensor]:
    """The parameters of a call; one for all where they lie flat, and so have one dtype."""
    return call.lists.params if call.flat is None else [call.flat.params]


def _factor(extras: Extras, norm: float | None) -> float | None:
    """What gradients are multiplied by."""
    factor = None if extras.grad_scale is None else 1.0 / float(extras.grad_scale)
    if extras.max_norm is not None and norm is not None:
        limit = extras.max_norm / (norm + 1e-6)
        if not limit >= 1.0:  # less, or a NaN, which poisons the step as clip_grad_norm_ does
            return limit * (1.0 if factor is None else factor)
    return factor


def _move_all(calls: Sequence[RuleCall], extras: Extras, factor: float | None, skip: bool) -> None:
    for call in calls:
        if not skip:
            _move(call, extras, factor)
        if extras.zero_grads:
            torch._foreach_zero_(call.walked if call.flat is not None and not call.flat.copies else list(call.grads))


def _squares(calls: Sequence[RuleCall]) -> list[float]:
    """The squared norm of each call's gradients."""
    norms = [float(_norm(call.walked)) for call in calls if call.walked]
    return [norm * norm for norm in norms]  # inf where ** would raise


def _norm(grads: list[Tensor]) -> Tensor:
    if len(grads) == 1:
        return torch.linalg.vector_norm(grads[0], dtype=WIDE[grads[0].dtype])
    norms = torch._foreach_norm(grads, 2, torch.float32 if any(g.itemsize < 4 for g in grads) else None)
    return torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))


def _move(call: RuleCall, extras: Extras, factor: float | None) -> None:
    lists, rule, flat, ema_decay = call.lists, call.rule, call.flat, extras.ema_decay
    call.step.add_(1)
    try:
        if flat is not None:
            flat.enter()
            keep = extras.keep and not flat.copies
            _move_exactly(call, [flat.params], call.walked, [[slot] for slot in flat.slots], factor, keep)
            flat.leave()
        elif rule.store != "nearest" or lists.scales is not None:
            for i in range(len(lists)):
                _move_narrowly(call, i, factor)
        elif rule.has_fused:
            fast = lists.fast_params, lists.fast_of(call.walked), lists.fast_slots
            _move_exactly(call, *fast, factor, extras.keep)
            _move_plainly(call, *lists.slow_of(call.grads), factor)
        else:
            _move_plainly(call, lists.params, call.grads, lists.slots, factor)
    except BaseException:  # an operator that refuses does so before it moves anything, so nothing was counted
        call.step.sub_(1)
        raise
    if ema_decay is not None and lists.ema is not None:
        if flat is not None and flat.ema is not None and flat.ema.dtype == flat.params.dtype:
            flat.ema.lerp_(flat.params, 1.0 - ema_decay)
        else:
            for e, p in zip(lists.ema, lists.params, strict=True):
                e.add_(p.detach().to(WIDE[e.dtype]) - e, alpha=1.0 - ema_decay)


def _move_exactly(
    call: RuleCall, params: list[Tensor], grads: list[Tensor], slots: Sequence[list[Tensor]], factor: float | None,
    keep: bool,
) -> None:  # fmt: skip
    """Dense tensors of one dtype, by the rule's operator where there is one."""
    if not params:
        return
    if not call.rule.has_fused:
        _move_plainly(call, params, grads, slots, factor)
        return
    # torch's operator writes g*factor back, twice where two share memory, and rounds the factor to float32
    if factor is not None and (keep or grads[0].dtype == torch.float64 or shared(grads)):
        grads, factor = list(torch._foreach_mul(grads, factor)), None
    call.rule.fused(params, grads, slots, call.scalars, call.step, factor)


def _move_plainly(
    call: RuleCall, params: Sequence[Tensor], grads: Sequence[Tensor], slots: Sequence[Sequence[Tensor]],
    factor: float | None,
) -> None:  # fmt: skip
    """By the rule's reference, whatever the layout: computed for all, then written."""
    if not params:
        return
    rule, old = call.rule, [p.detach() for p in params]
    slopes = [g.detach() if factor is None else g.detach() * factor for g in grads]
    new, state = rule.plain_list(old, slopes, slots, call.scalars, float(call.step))
    kinds: list[tuple[str, Sequence[Tensor], Sequence[Tensor]]]
    kinds = [("parameter", old, new), *zip(rule.slots, slots, state, strict=True)]
    for kind, mine, values in kinds:
        refuse_misshapen(rule, kind, mine, values)
    for _, mine, values in kinds:
        for t, value in zip(mine, values, strict=True):
            t.copy_(value)


def _move_narrowly(call: RuleCall, i: int, factor: float | None) -> None:
    """One parameter that is rounded in another way than to nearest, or whose state is codes."""
    lists, rule = call.lists, call.rule
    g = call.grads[i].detach()
    step = float(call.step)

    def plain(wide: Tensor, gradient: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        new, slots = rule.plain(wide, gradient, tuple(state), call.scalars, step)
        for kind, before, after in zip(("parameter", *rule.slots), (wide, *state), (new, *slots), strict=True):
            refuse_misshapen(rule, kind, [before], [after])
        return new, *slots

    lowmemory.move(
        lists.params[i].detach(),
        g if factor is None else g * factor,
        [slot[i] for slot in lists.slots],
        None if lists.low is None else lists.low[i],
        None if lists.scales is None else [scale[i] for scale in lists.scales],
        plain,
        (i, int(step)),
        stochastic_store=rule.store == "stochastic",
    )
