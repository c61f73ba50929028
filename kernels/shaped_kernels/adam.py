"""Adam and AdamW: one in-place pass over four lists of tensors (five with AMSGrad).

    g <- -g                           if maximize
    g <- g + wd*p                     Adam: the decay joins the gradient
    p <- p - lr*wd*p                  AdamW: the decay is decoupled from it
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

from .fusion import Call, take
from .lists import WIDE, TensorLists
from .scalars import Scalar, Store, at_least_zero, divisor, narrow, number


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
    slots = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    _checked_update(params, grads, slots, step, lr, betas, eps, weight_decay, decoupled=False, maximize=maximize)


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
    slots = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    _checked_update(params, grads, slots, step, lr, betas, eps, weight_decay, decoupled=True, maximize=maximize)


def _checked_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: dict[str, Sequence[Tensor] | None],
    step: int,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    *,
    decoupled: bool,
    maximize: bool,
) -> None:
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"step must be an integer >= 1, the number of this step, got {step!r}")
    scalars = adam_scalars(lr, betas, eps, weight_decay)
    check_adam(*scalars)
    lists = TensorLists(params, {name: slot for name, slot in slots.items() if slot is not None})
    taken = torch.tensor(step - 1.0, device=lists.device if lists.path == "triton" else "cpu")
    rule = AdamRule(decoupled, maximize, amsgrad=len(lists.slots) == 3)
    take([Call(rule, lists, grads, scalars, taken)])


def adam_scalars(lr: object, betas: object, eps: object, weight_decay: object) -> tuple[float, ...]:
    """Read Adam's hyper-parameters as floats: (lr, beta1, beta2, eps, weight_decay).

    Args:
        lr, eps, weight_decay: Numbers or tensors of one element.
        betas: Two of them.

    Returns:
        The five floats, not yet checked against their ranges.

    Raises:
        ValueError: One of them is no number, or `betas` is no pair.
    """
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
    beta1, beta2 = number("betas[0]", betas[0]), number("betas[1]", betas[1])
    return number("lr", lr), beta1, beta2, number("eps", eps), number("weight_decay", weight_decay)


def check_adam(lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
    """Refuse hyper-parameters of Adam and AdamW that are out of range.

    Args:
        lr, eps, weight_decay: Must be finite and >= 0.
        beta1, beta2: Must be in [0, 1).

    Raises:
        ValueError: Naming the hyper-parameter and its value.
    """
    at_least_zero("lr", lr)
    at_least_zero("eps", eps)
    at_least_zero("weight_decay", weight_decay)
    for i, beta in enumerate((beta1, beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"betas[{i}] must be in [0, 1), got {beta}")


@dataclass(frozen=True)
class AdamRule:
    """A variant of Adam, in the forms that `fusion.take` needs; its scalars are those of `adam_scalars`.

    Attributes:
        decoupled: AdamW if true, Adam if not.
        maximize: Climb instead of descend.
        amsgrad: Divide by the largest `v` so far, the third slot.
        store: How a parameter is rounded: "nearest", "stochastic" or "split" (see lowmemory.py).
    """

    decoupled: bool
    maximize: bool = False
    amsgrad: bool = False
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
        lr, beta1, beta2, eps, weight_decay = scalars
        if step.device != params[0].device:  # torch's CUDA operator wants it there
            step = step.to(params[0].device, non_blocking=True)
        rule = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        rule(
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

    def plain(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], scalars: Sequence[float], step: float
    ) -> tuple[Tensor | None, ...]:
        """Compute a step of one parameter in plain torch."""
        lr, beta1, beta2, eps, weight_decay = scalars
        numbers: dict[str, Any] = {
            **{"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay},
            **{"step": step, "decoupled": self.decoupled, "maximize": self.maximize},
        }
        return adam_reference(p, g, *slots, **numbers)

    def hypers(self, scalars: Sequence[float]) -> list[float]:
        """The scalars as the row kernel reads them."""
        return list(scalars)

    def kernels(self, lists: TensorLists) -> tuple[Any, dict[str, Any], Any, dict[str, Any], int]:
        """The row kernel and its constants, the update kernel and its constants, entries of the row."""
        from .adam8_triton import adam8_kernel
        from .adam_triton import adam_kernel
        from .rows_triton import adam_row_kernel

        if lists.scales is not None:
            variant = {"DECOUPLED": self.decoupled, "MAXIMIZE": self.maximize}
            return adam_row_kernel, {"DECOUPLED": self.decoupled}, adam8_kernel, variant, 7
        constants = {"DECOUPLED": self.decoupled, "AMSGRAD": self.amsgrad, "MAXIMIZE": self.maximize}
        return adam_row_kernel, {"DECOUPLED": self.decoupled}, adam_kernel, constants, 7


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute one Adam or AdamW step in plain torch, changing nothing.

        m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = step = 1, 2, ...
        v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
        p <- p - (lr/c1) * m / (sqrt(v)/sqrt(c2) + eps)

    with the decay before it, as at the top of this file. It may be traced: no branch depends on a
    tensor. 1 - b, b**t, lr/c1 and sqrt(c2) are computed in double; bfloat16 and float16 elements
    in float32, rounded once.

    Args:
        p, g, m, v: A parameter, its gradient and its two moments, of one shape.
        v_max: The largest `v` so far: AMSGrad iff given.
        lr, beta1, beta2, eps, weight_decay, step: As in `adam_`; Python numbers or 0-dim tensors.
        decoupled: AdamW if true, Adam if not.
        maximize: Climb instead of descend.

    Returns:
        New `p`, `m`, `v` and `v_max` (None if it was), in the dtypes they came in.
    """
    wide = WIDE[p.dtype]
    lr, beta1, beta2, step = map(_double, (lr, beta1, beta2, step))
    step_size = narrow(lr / (1 - beta1**step), wide)
    root_c2 = narrow((1 - beta2**step) ** 0.5, wide)
    w, d = p.to(wide), g.to(wide)
    if maximize:
        d = -d
    if isinstance(weight_decay, Tensor) or weight_decay != 0:
        if decoupled:
            w = w * narrow(1 - lr * _double(weight_decay), wide)
        else:
            d = d + narrow(weight_decay, wide) * w
    first = m.to(wide)
    first = first + narrow(1 - beta1, wide) * (d - first)
    second = narrow(beta2, wide) * v.to(wide) + narrow(1 - beta2, wide) * (d * d)
    top = second if v_max is None else torch.maximum(v_max.to(wide), second)
    w = w - step_size * (first / (top.sqrt() / root_c2 + narrow(eps, wide)))
    return w.to(p.dtype), first.to(m.dtype), second.to(v.dtype), None if v_max is None else top.to(v_max.dtype)


def _double(scalar: Scalar) -> Scalar:
    return scalar.to(torch.float64) if isinstance(scalar, Tensor) else scalar
