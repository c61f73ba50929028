"""SGD with momentum: one in-place pass over two or three lists of tensors.

    g <- -g                                if maximize
    g <- g + wd*p
    b <- mu*b + damp*g                     damp = 1 - dampening, or 1 on the first step
    d  = g + mu*b  if nesterov else  b     (d = g without momentum)
    p <- p - lr*d

fp32 traffic per element: read p g, write p = 12 bytes; with momentum read p g b, write p b = 20.
Source: torch.optim.SGD, whose order and constants these are; Sutskever et al. 2013 for Nesterov's
form. The Triton kernel is in sgd_triton.py.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .lists import WIDE, TensorLists
from .scalars import Scalar, at_least_zero, narrow, number


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    fresh: bool = False,
) -> None:
    """Take one SGD step, in place.

        g <- g + weight_decay*p         (g <- -g first, if maximize)
        b <- momentum*b + (1 - dampening)*g
        p <- p - lr*(g + momentum*b  if nesterov else  b)

    Args:
        params: Tensors to update, all on one device, of any shapes.
        grads: One gradient for each parameter, of its shape and dtype; unchanged.
        momentum_buffers: `b`, one for each parameter, in gradient units; needed iff momentum > 0.
        lr: Step size in parameter units per gradient unit.
        momentum: Share of `b` kept per step; it remembers about 1/(1 - momentum) steps.
        dampening: Share of the gradient that does not enter `b`.
        weight_decay: Gradient units added per parameter unit.
        nesterov: Step along the gradient at the place momentum leads to.
        maximize: Climb instead of descend.
        fresh: This is the first step: `b <- g` undamped, as torch does. Pass buffers of zeros.

    Raises:
        ValueError: A hyper-parameter is out of range, or the lists do not fit together. Every
            fault is named, and nothing has changed.

    Source: torch.optim.SGD.
    """
    scalars = number("lr", lr), number("momentum", momentum), number("dampening", dampening)
    decay = number("weight_decay", weight_decay)
    check_sgd(*scalars, decay, nesterov=nesterov)
    if (scalars[1] > 0) != (momentum_buffers is not None):
        raise ValueError(f"momentum_buffers must be given iff momentum > 0; momentum is {scalars[1]}")
    lists = TensorLists(params, {} if momentum_buffers is None else {"momentum_buffers": momentum_buffers})
    damp = 1.0 if fresh else 1.0 - scalars[2]
    update_sgd(lists, lists.admit(grads), (scalars[0], scalars[1], damp, decay), nesterov=nesterov, maximize=maximize)


def check_sgd(lr: float, momentum: float, dampening: float, weight_decay: float, *, nesterov: bool) -> None:
    """Refuse hyper-parameters of SGD that are out of range.

    Args:
        lr, momentum, weight_decay: Must be finite and >= 0.
        dampening: Must be finite.
        nesterov: Needs momentum > 0 and dampening == 0.

    Raises:
        ValueError: Naming the hyper-parameter and its value.
    """
    at_least_zero("lr", lr)
    at_least_zero("momentum", momentum)
    at_least_zero("weight_decay", weight_decay)
    if not math.isfinite(dampening):
        raise ValueError(f"dampening must be finite, got {dampening}")
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"nesterov needs momentum > 0 and dampening 0, got momentum {momentum} and dampening {dampening}"
        )


def update_sgd(
    lists: TensorLists,
    grads: list[Tensor],
    scalars: tuple[float, ...],
    *,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Apply one SGD step to lists that are known to be good: the entry without checks.

    Args:
        lists: Parameters, and momentum buffers as the only slot, or no slot.
        grads: What `lists.admit` returned.
        scalars: (lr, momentum, damp, weight_decay), checked; damp is 1 - dampening, or 1 on a first step.
        nesterov, maximize: As in `sgd_`.
    """
    if lists.fast_params:
        fast = _launch if lists.path == "triton" else _fused
        fast(lists, lists.fast_of(grads), scalars, nesterov, maximize)
    for i in lists.slow:
        _slow_update(lists, i, grads[i], scalars, nesterov, maximize)


def _fused(lists: TensorLists, grads: list[Tensor], scalars: tuple[float, ...], nesterov: bool, maximize: bool) -> None:
    lr, momentum, damp, weight_decay = scalars
    torch._fused_sgd_(
        lists.fast_params,
        grads,
        lists.fast_slots[0] if lists.fast_slots else [],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=1.0 - damp,
        nesterov=nesterov,
        maximize=maximize,
        is_first_step=False,  # damp says it, and zero buffers make mu*b + 1*g exactly g
    )


def _launch(
    lists: TensorLists, grads: list[Tensor], scalars: tuple[float, ...], nesterov: bool, maximize: bool
) -> None:
    from .sgd_triton import launch_sgd

    bufs = lists.fast_slots[0] if lists.fast_slots else None
    launch_sgd(lists.fast_params, grads, bufs, scalars, nesterov=nesterov, maximize=maximize)


def _slow_update(
    lists: TensorLists, i: int, g: Tensor, scalars: tuple[float, ...], nesterov: bool, maximize: bool
) -> None:
    lr, momentum, damp, weight_decay = scalars
    p, buf = lists.params[i], lists.slots[0][i] if lists.slots else None
    rule = {"lr": lr, "momentum": momentum, "damp": damp, "weight_decay": weight_decay}
    with torch.no_grad():
        new_p, new_buf = sgd_reference(p, g, buf, nesterov=nesterov, maximize=maximize, **rule)
        p.copy_(new_p)
        if buf is not None and new_buf is not None:
            buf.copy_(new_buf)


def sgd_reference(
    p: Tensor,
    g: Tensor,
    buf: Tensor | None = None,
    *,
    lr: Scalar,
    momentum: Scalar,
    damp: Scalar,
    weight_decay: Scalar,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute one SGD step in plain torch, changing nothing.

        g <- g + weight_decay*p         (g <- -g first, if maximize)
        b <- momentum*b + damp*g
        p <- p - lr*(g + momentum*b  if nesterov else  b)

    It may be traced: no branch depends on a tensor. bfloat16 and float16 are computed in float32
    and rounded once.

    Args:
        p, g: A parameter and its gradient, of one shape.
        buf: The momentum buffer, or None for plain SGD.
        lr, momentum, weight_decay: As in `sgd_`; Python floats or 0-dim tensors, float64 for full precision.
        damp: 1 - dampening, or 1 on a first step (whose `buf` is zeros).
        nesterov, maximize: As in `sgd_`.

    Returns:
        New `p` and `buf` (None if it was), in the dtypes they came in.
    """
    wide = WIDE[p.dtype]
    w, d = p.to(wide), g.to(wide)
    if maximize:
        d = -d
    if isinstance(weight_decay, Tensor) or weight_decay != 0:
        d = d + narrow(weight_decay, wide) * w
    if buf is None:
        return (w - narrow(lr, wide) * d).to(p.dtype), None
    mu = narrow(momentum, wide)
    b = mu * buf.to(wide) + narrow(damp, wide) * d
    d = d + mu * b if nesterov else b
    return (w - narrow(lr, wide) * d).to(p.dtype), b.to(buf.dtype)
