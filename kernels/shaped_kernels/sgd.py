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
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .fusion import Call, take
from .lists import WIDE, TensorLists
from .scalars import Scalar, Store, at_least_zero, divisor, narrow, number


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
    taken = torch.tensor(0.0 if fresh else 1.0, device=lists.device if lists.path == "triton" else "cpu")
    rule = SgdRule(nesterov, maximize)
    take([Call(rule, lists, grads, (*scalars, decay), taken)])


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


@dataclass(frozen=True)
class SgdRule:
    """A variant of SGD, in the forms that `fusion.take` needs; scalars are (lr, momentum, dampening, weight_decay).

    Momentum is on iff the lists have a slot. Step 1 enters the buffer undamped.

    Attributes:
        nesterov: Step along the gradient at the place momentum leads to.
        maximize: Climb instead of descend.
        store: How a parameter is rounded: "nearest", "stochastic" or "split" (see lowmemory.py).
    """

    nesterov: bool = False
    maximize: bool = False
    store: Store = "nearest"
    single: ClassVar[bool] = False

    def fused(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        slots: Sequence[list[Tensor]],
        scalars: Sequence[float],
        step: Tensor,
        factor: float | None,
    ) -> None:
        """Take a step by torch's operator over lists."""
        lr, momentum, dampening, weight_decay = scalars
        torch._fused_sgd_(
            params,
            grads,
            slots[0] if slots else [],
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=dampening if step > 1 else 0.0,  # zero buffers make mu*b + 1*g exactly g
            nesterov=self.nesterov,
            maximize=self.maximize,
            is_first_step=False,
            grad_scale=divisor(factor, params[0].device),
        )

    def plain(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], scalars: Sequence[float], step: float
    ) -> tuple[Tensor | None, ...]:
        """Compute a step of one parameter in plain torch."""
        lr, momentum, dampening, weight_decay = scalars
        numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        damp = 1.0 - dampening if step > 1 else 1.0
        return sgd_reference(
            p, g, slots[0] if slots else None, **numbers, damp=damp, nesterov=self.nesterov, maximize=self.maximize
        )

    def hypers(self, scalars: Sequence[float]) -> list[float]:
        """The scalars as the row kernel reads them."""
        return list(scalars)

    def kernels(self, lists: TensorLists) -> tuple[Any, dict[str, Any], Any, dict[str, Any], int]:
        """The row kernel and its constants, the update kernel and its constants, entries of the row."""
        from .rows_triton import sgd_row_kernel
        from .sgd_triton import sgd_kernel

        constants = {"MOMENTUM": bool(lists.slots), "NESTEROV": self.nesterov, "MAXIMIZE": self.maximize}
        return sgd_row_kernel, {}, sgd_kernel, constants, 4


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
