"""Schedule-free AdamW: no schedule to choose, since an average that is kept beside the run takes its place.

The parameter p is the average, which is what one evaluates and keeps. The run itself is at z = p + e, and gradients are
taken between the two:

    y  = p + (1 - b1)*e                where the gradient g is taken
    s  = lr * min(1, t/warmup)         t = 1, 2, ...
    v <- b2*v + (1 - b2)*g*g           c2 = 1 - b2**t
    z <- z - s*(g / (sqrt(v/c2) + eps) + wd*y)
    p <- p + c*(z - p)                 c = s**2 over the sum of all s**2 so far
    e <- z - p

With one lr, c depends on t and the warm-up alone, so nothing else is kept; a change of lr is not weighed in.
fp32 traffic: read p g e v, write p e v = 28 bytes per element, and 16 more for y where it is written down.
Source: Defazio et al. 2024, arXiv:2405.15682, Algorithm 1, with the weights of its authors' code. They keep y and
z, and p must be asked for. The Triton kernel is in schedule_free_triton.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .lists import WIDE
from .rule import Hyper, Kernels, Rule, State
from .scalars import Scalar, double, narrow


@dataclass(frozen=True)
class ScheduleFreeRule(Rule):
    """Schedule-free AdamW.

    Attributes:
        maximize: Climb instead of descend.
    """

    name: ClassVar[str] = "ScheduleFree"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        Hyper("lr", 2.5e-3),
        Hyper("betas", (0.9, 0.999), below=1.0),
        Hyper("eps", 1e-8),
        Hyper("weight_decay", 0.0),
        Hyper("warmup_steps", 0.0),
    )
    every_slot: ClassVar[tuple[str, ...]] = ("ahead", "exp_avg_sq")
    leads: ClassVar[bool] = True

    maximize: bool = False

    @property
    def elementwise(self) -> bool:
        """True."""
        return True

    def point(self, p: Tensor, slots: State, numbers: Sequence[Scalar]) -> Tensor:
        """Where the gradient is taken: `y`."""
        wide = WIDE[p.dtype]
        return (p.to(wide) + narrow(1 - double(numbers[1]), wide) * slots[0].to(wide)).to(p.dtype)

    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """Compute a step of one parameter in plain torch; `g` is the gradient at `point`."""
        lr, beta1, beta2, eps, weight_decay, warmup = map(double, numbers)
        step, wide, (e, v) = double(step), WIDE[p.dtype], slots
        rate, share = weights(lr, warmup, step)
        w, d, lead, second = p.to(wide), g.to(wide), e.to(wide), v.to(wide)
        if self.maximize:
            d = -d
        second = narrow(beta2, wide) * second + narrow(1 - beta2, wide) * (d * d)
        u = d / (second.sqrt() / narrow((1 - beta2**step) ** 0.5, wide) + narrow(eps, wide))
        y = w + narrow(1 - beta1, wide) * lead
        lead = lead - narrow(rate, wide) * (u + narrow(weight_decay, wide) * y)
        w = w + narrow(share, wide) * lead
        lead = narrow(1 - share, wide) * lead
        return w.to(p.dtype), (lead.to(e.dtype), second.to(v.dtype))

    def kernels(self) -> Kernels:
        """Those of schedule_free_triton.py."""
        from .rows_triton import schedule_free_row
        from .schedule_free_triton import schedule_free_chunk

        return Kernels(schedule_free_row, schedule_free_chunk, (self.maximize,), 8)


def weights(lr: Scalar, warmup: Scalar, step: Scalar) -> tuple[Scalar, Scalar]:
    """The step size after the warm-up's factor, and the share of the newest point in the average.

    The sum of squares 1 + 4 + ... + n*n = n*(n + 1)*(2*n + 1)/6 is that of the warm-up, in units of (lr/warmup)**2.

    Args:
        lr: Step size after the warm-up.
        warmup: How many steps it takes; 0 for none.
        step: The number of this step, from 1.
    """
    whole = torch.clamp(torch.as_tensor(warmup, dtype=torch.float64).ceil(), min=1.0)
    t = torch.as_tensor(step, dtype=torch.float64)
    n = torch.minimum(t, whole)
    part = n / whole
    total = n * (n + 1) * (2 * n + 1) / (6 * whole * whole) + (t - n)
    share = part * part / total
    if isinstance(step, Tensor) or isinstance(lr, Tensor):
        return lr * part, share
    return lr * float(part), float(share)
