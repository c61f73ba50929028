"""SGD with momentum: one in-place pass over two or three lists of tensors.

    g <- -g                                if maximize
    g <- g + wd*p                          p <- p - lr*wd*p instead, if the decay is decoupled
    b <- mu*b + damp*g                     damp = 1 - dampening, or 1 on the first step
    d  = g + mu*b  if nesterov else  b     (d = g without momentum)
    p <- p - lr*d

fp32 traffic per element: read p g, write p = 12 bytes; with momentum read p g b, write p b = 20.
Source: torch.optim.SGD, whose order and constants these are; Sutskever et al. 2013 for Nesterov's
form. The Triton kernel is in sgd_triton.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .calls import RuleCall
from .fusion import take
from .lists import WIDE, TensorLists
from .rule import Hyper, Kernels, Rule, State
from .scalars import Scalar, Store, divisor, double, narrow, number, refuse_kinds


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
    refuse_kinds(flags={"nesterov": nesterov, "maximize": maximize, "fresh": fresh})
    rule = SgdRule(nesterov, maximize, buffered=momentum_buffers is not None)
    hypers = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    numbers = rule.numbers(hypers)
    if (numbers[1] > 0) != rule.buffered:
        raise ValueError(f"momentum_buffers must be given iff momentum > 0; momentum is {numbers[1]}")
    lists = TensorLists(params, {} if momentum_buffers is None else {"momentum_buffers": momentum_buffers})
    taken = torch.tensor(0.0 if fresh else 1.0, device=lists.device if lists.path == "triton" else "cpu")
    take([RuleCall(rule, lists, grads, numbers, taken)])


@dataclass(frozen=True)
class SgdRule(Rule):
    """SGD; step 1 enters the momentum undamped.

    Attributes:
        nesterov: Step along the gradient at the place momentum leads to.
        maximize: Climb instead of descend.
        decoupled_weight_decay: Whether the decay is apart from the gradient, p <- p - lr*wd*p.
        buffered: Whether there is momentum, and so a slot.
    """

    name: ClassVar[str] = "SGD"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        Hyper("lr", 1e-3),
        Hyper("momentum", 0.0),
        Hyper("dampening", 0.0, least=-math.inf),
        Hyper("weight_decay", 0.0),
    )
    every_slot: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    counts: ClassVar[bool] = False  # torch.optim.SGD keeps no step either

    nesterov: bool = False
    maximize: bool = False
    decoupled_weight_decay: bool = False
    buffered: bool = field(default=False, kw_only=True, metadata={"group": False})

    @classmethod
    def of(cls, group: Mapping[str, Any], store: Store = "nearest", eight_bit: bool = False) -> Self:
        """The variant that a group asks for: with a buffer iff its momentum is not 0."""
        rule = super().of(group, store, eight_bit)
        return replace(rule, buffered=True) if number("momentum", group["momentum"]) != 0 else rule

    @property
    def slots(self) -> tuple[str, ...]:
        """The momentum, where there is any."""
        return self.every_slot if self.buffered else ()

    @property
    def elementwise(self) -> bool:
        """True."""
        return True

    def check(self, numbers: Sequence[float]) -> None:
        """Refuse what is out of range, and Nesterov's form without momentum or with dampening."""
        super().check(numbers)
        _, momentum, dampening, _ = numbers
        if self.nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(
                f"nesterov needs momentum > 0 and dampening 0, got momentum {momentum} and dampening {dampening}"
            )

    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """Compute a step of one parameter: `sgd_reference`."""
        lr, momentum, dampening, weight_decay = numbers
        dtype = p.dtype
        if isinstance(step, Tensor):
            damp: Scalar = torch.where(step > 1, 1.0 - dampening, torch.ones_like(step, dtype=torch.float64))
        else:
            damp = 1.0 - dampening if step > 1 else 1.0
        if self.decoupled_weight_decay:
            decay = narrow(1 - double(lr) * double(weight_decay), WIDE[p.dtype])
            p, weight_decay = p.to(WIDE[p.dtype]) * decay, 0.0
        hypers = {"lr": lr, "momentum": momentum, "damp": damp, "weight_decay": weight_decay}
        buffer = slots[0] if slots else None
        new, moved = sgd_reference(p, g, buffer, **hypers, nesterov=self.nesterov, maximize=self.maximize)
        return new.to(dtype), () if moved is None else (moved,)

    def fused(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        slots: Sequence[list[Tensor]],
        numbers: Sequence[float],
        step: Tensor,
        factor: float | None,
    ) -> None:
        """Take a step by torch's operator over lists."""
        lr, momentum, dampening, weight_decay = numbers
        if self.decoupled_weight_decay:
            torch._foreach_mul_(params, 1.0 - lr * weight_decay)
            weight_decay = 0.0
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

    def kernels(self) -> Kernels:
        """Those of sgd_triton.py."""
        from .rows_triton import sgd_row
        from .sgd_triton import sgd_chunk

        switches = (self.buffered, self.nesterov, self.maximize, self.decoupled_weight_decay)
        return Kernels(sgd_row, sgd_chunk, switches, 4)


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

    Raises:
        ValueError: An argument is no tensor, no number or no flag.
    """
    numbers = {"lr": lr, "momentum": momentum, "damp": damp, "weight_decay": weight_decay}
    tensors = {"p": p, "g": g, **({} if buf is None else {"buf": buf})}
    refuse_kinds(tensors=tensors, scalars=numbers, flags={"nesterov": nesterov, "maximize": maximize})
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
