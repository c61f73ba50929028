"""Adam and AdamW: one in-place pass over four lists of tensors (five with AMSGrad).

    g <- -g                           if maximize
    g <- g + wd*p                     Adam: the decay joins the gradient
    p <- p - lr*wd*p                  AdamW: the decay is decoupled from it; where it shrinks too, if cautious_decay
    m <- b1*m + (1 - b1)*g            c1 = 1 - b1**t,  t = 1, 2, ...
    v <- b2*v + (1 - b2)*g*g          c2 = 1 - b2**t
    u <- max(u, v)                    AMSGrad only; otherwise u = v
    p <- p - (lr/c1) * m / (sqrt(u)/sqrt(c2) + eps)

fp32 traffic: read p g m v, write p m v = 28 bytes per element; AMSGrad adds 8.
Sources: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101 (the decay
scaled by lr, as torch does and the paper does not); Reddi et al. 2018 for AMSGrad. Order and
constants are those of torch.optim. The Triton kernel is in adam_triton.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .calls import RuleCall
from .cautious import agreeing, decayed
from .fusion import take
from .lists import WIDE, TensorLists
from .rule import Hyper, Kernels, Rule, State
from .scalars import Scalar, divisor, double, narrow, refuse_kinds


def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    *,
    step: int,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Take one Adam step, in place.

        g <- g + weight_decay*p
        m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = step = 1, 2, ...
        v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
        p <- p - lr*(m/c1) / (sqrt(v/c2) + eps)

    Args:
        params: Tensors to update, all on one device, of any shapes.
        grads: One gradient for each parameter, of its shape and dtype; unchanged.
        exp_avgs: `m`, one for each parameter, in gradient units; zeros before the first step.
        exp_avg_sqs: `v`, one for each parameter, in squared gradient units; zeros at first.
        max_exp_avg_sqs: The largest `v` so far, which then replaces it: AMSGrad iff given.
        step: The number of this step, from 1.
        lr: Step size in parameter units per step (m/sqrt(v) has no unit).
        betas: Decay per step of the two moments; each remembers about 1/(1 - b) steps.
        eps: Floor added to sqrt(v), so in gradient units.
        weight_decay: Gradient units added per parameter unit.
        maximize: Climb instead of descend.

    Raises:
        ValueError: A hyper-parameter is out of range, or the lists do not fit together. Every
            fault is named, and nothing has changed.

    Source: Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1; eps stands where torch.optim.Adam puts it.
    """
    hypers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    rule = AdamRule(False, maximize, max_exp_avg_sqs is not None)
    _take(rule, (params, grads, exp_avgs, exp_avg_sqs), max_exp_avg_sqs, step, hypers)


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    *,
    step: int,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
) -> None:
    """Take one AdamW step, in place.

        p <- p - lr*weight_decay*p
        m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = step = 1, 2, ...
        v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
        p <- p - lr*(m/c1) / (sqrt(v/c2) + eps)

    Args:
        params: Tensors to update, all on one device, of any shapes.
        grads: One gradient for each parameter, of its shape and dtype; unchanged.
        exp_avgs: `m`, one for each parameter, in gradient units; zeros before the first step.
        exp_avg_sqs: `v`, one for each parameter, in squared gradient units; zeros at first.
        max_exp_avg_sqs: The largest `v` so far, which then replaces it: AMSGrad iff given.
        step: The number of this step, from 1.
        lr: Step size in parameter units per step (m/sqrt(v) has no unit).
        betas: Decay per step of the two moments; each remembers about 1/(1 - b) steps.
        eps: Floor added to sqrt(v), so in gradient units.
        weight_decay: Share of `p` removed per step and per unit of `lr`.
        maximize: Climb instead of descend.

    Raises:
        ValueError: A hyper-parameter is out of range, or the lists do not fit together. Every
            fault is named, and nothing has changed.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2; the decay is scaled by `lr`,
    as torch.optim.AdamW does and the paper does not.
    """
    hypers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    rule = AdamRule(True, maximize, max_exp_avg_sqs is not None)
    _take(rule, (params, grads, exp_avgs, exp_avg_sqs), max_exp_avg_sqs, step, hypers)


def _take(
    rule: "AdamRule",
    lists: tuple[Sequence[Tensor], ...],
    tops: Sequence[Tensor] | None,
    step: int,
    hypers: dict[str, Any],
) -> None:
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ValueError(f"step must be an integer >= 1, the number of this step, got {step!r}")
    refuse_kinds(flags={"maximize": rule.maximize})
    numbers = rule.numbers(hypers)
    params, grads, *moments = lists
    names = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
    checked = TensorLists(params, dict(zip(names, [*moments, *([] if tops is None else [tops])], strict=False)))
    taken = torch.tensor(step - 1.0, device=checked.device if checked.path == "triton" else "cpu")
    take([RuleCall(rule, checked, grads, numbers, taken)])


@dataclass(frozen=True)
class AdamRule(Rule):
    """Adam, or AdamW where the decay is decoupled.

    Attributes:
        decoupled_weight_decay: AdamW if true, Adam if not.
        maximize: Climb instead of descend.
        amsgrad: Divide by the largest `v` so far, the third slot.
        cautious: Move only elements whose update agrees with the gradient.
        cautious_decay: Decay only elements that the update shrinks.
    """

    name: ClassVar[str] = "Adam"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        Hyper("lr", 1e-3),
        Hyper("betas", (0.9, 0.999), below=1.0),
        Hyper("eps", 1e-8),
        Hyper("weight_decay", 0.0),
    )
    every_slot: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    codes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8, torch.uint8)

    decoupled_weight_decay: bool = False
    maximize: bool = False
    amsgrad: bool = False
    cautious: bool = False
    cautious_decay: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """Two moments, and with AMSGrad the largest second one."""
        return self.every_slot if self.amsgrad else self.every_slot[:2]

    @property
    def elementwise(self) -> bool:
        """Unless the share of elements that move is asked for."""
        return not self.cautious

    def check(self, numbers: Sequence[float]) -> None:
        """Refuse what is out of range, and AMSGrad with codes."""
        super().check(numbers)
        if self.eight_bit and self.amsgrad:
            raise ValueError("8-bit moments have no AMSGrad: a running maximum of rounded codes only grows")
        if self.cautious_decay and not self.decoupled_weight_decay:
            raise ValueError("cautious_decay needs decoupled_weight_decay: a decay within the gradient has no sign")

    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """Compute a step of one parameter: `adam_reference`."""
        lr, beta1, beta2, eps, weight_decay = numbers
        new: list[Any] = [
            *adam_reference(
                *(p, g, *slots),
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay,
                step=step,
                decoupled=self.decoupled_weight_decay,
                maximize=self.maximize,
                cautious=self.cautious,
                cautious_decay=self.cautious_decay,
            )
        ]
        return new[0], tuple(new[1 : 1 + len(slots)])

    @property
    def has_fused(self) -> bool:
        """torch's operator knows no caution."""
        return not (self.cautious or self.cautious_decay)

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
        lr, beta1, beta2, eps, weight_decay = numbers
        if step.device != params[0].device:  # torch's CUDA operator wants it there
            step = step.to(params[0].device, non_blocking=True)
        operator = torch._fused_adamw_ if self.decoupled_weight_decay else torch._fused_adam_
        operator(
            params,
            grads,
            slots[0],
            slots[1],
            slots[2] if self.amsgrad else [],
            [step] * len(params),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=self.amsgrad,
            maximize=self.maximize,
            grad_scale=divisor(factor, params[0].device),
        )

    @property
    def has_kernels(self) -> bool:
        """Unless 8-bit moments are to be cautious."""
        return not (self.cautious and self.eight_bit)

    def kernels(self) -> Kernels:
        """Those of adam_triton.py, or of adam8_triton.py for codes."""
        from .adam8_triton import adam8_chunk
        from .adam_triton import adam_agreeing, adam_chunk
        from .rows_triton import adam_row

        switches = (self.decoupled_weight_decay, self.cautious_decay, self.maximize, self.amsgrad, self.cautious)
        agrees = adam_agreeing if self.cautious else None
        return Kernels(adam_row, adam8_chunk if self.eight_bit else adam_chunk, switches, 7, agrees)


def _refuse_kinds(given: dict[str, Any]) -> None:
    """Refuse arguments of `adam_reference` that are of another kind."""
    tensors = {name: given[name] for name in ("p", "g", "m", "v", *(["v_max"] if given["v_max"] is not None else []))}
    scalars = {name: given[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "step")}
    flags = {name: given[name] for name in ("decoupled", "maximize", "cautious", "cautious_decay")}
    refuse_kinds(tensors=tensors, scalars=scalars, flags=flags)


def adam_reference(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    v_max: Tensor | None = None,
    *,
    lr: Scalar,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    step: Scalar,
    decoupled: bool,
    maximize: bool = False,
    cautious: bool = False,
    cautious_decay: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute one Adam or AdamW step in plain torch, changing nothing.

        m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = step = 1, 2, ...
        v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
        p <- p - (lr/c1) * m / (sqrt(v)/sqrt(c2) + eps)

    with the decay before it, as at the top. It may be traced: no branch depends on a tensor. 1 - b, b**t, lr/c1 and
    sqrt(c2) are computed in double; bfloat16 and float16 elements in float32, rounded once.

    Args:
        p, g, m, v: A parameter, its gradient and its two moments, of one shape.
        v_max: The largest `v` so far: AMSGrad iff given.
        lr, beta1, beta2, eps, weight_decay, step: As in `adam_`; Python numbers or 0-dim tensors.
        decoupled: AdamW if true, Adam if not.
        maximize, cautious, cautious_decay: As in `AdamRule`; the last needs a decoupled decay.

    Returns:
        New `p`, `m`, `v` and `v_max` (None if it was), in the dtypes they came in.
    """
    _refuse_kinds(locals())
    wide = WIDE[p.dtype]
    lr, beta1, beta2, step = map(double, (lr, beta1, beta2, step))
    step_size = narrow(lr / (1 - beta1**step), wide)
    root_c2 = narrow((1 - beta2**step) ** 0.5, wide)
    w, d = p.to(wide), g.to(wide)
    if maximize:
        d = -d
    if (isinstance(weight_decay, Tensor) or weight_decay != 0) and not cautious_decay:
        if decoupled:
            w = w * narrow(1 - lr * double(weight_decay), wide)
        else:
            d = d + narrow(weight_decay, wide) * w
    first = (before := m.to(wide)) + narrow(1 - beta1, wide) * (d - before)
    second = narrow(beta2, wide) * v.to(wide) + narrow(1 - beta2, wide) * (d * d)
    top = second if v_max is None else torch.maximum(v_max.to(wide), second)
    u = first / (top.sqrt() / root_c2 + narrow(eps, wide))
    if cautious:
        u = agreeing(u, d)
    if cautious_decay:
        w = decayed(w, u, narrow(lr * double(weight_decay), wide))
    w = w - step_size * u
    return w.to(p.dtype), first.to(m.dtype), second.to(v.dtype), None if v_max is None else top.to(v_max.dtype)
