"""Lion: one in-place pass over three lists of tensors, with half the state of Adam.

    g <- -g                           if maximize
    u  = sign(b1*m + (1 - b1)*g)
    u <- 0 where u*g <= 0, scaled up  if cautious (see cautious.py)
    p <- p - lr*wd*p                  decoupled, as by default; otherwise  g <- g + wd*p  before all
    p <- p - lr*u
    m <- b2*m + (1 - b2)*g

fp32 traffic: read p g m, write p m = 20 bytes per element. Each element moves by lr, whatever its gradient: an lr of a
third to a tenth of AdamW's, and a decay that is as many times larger.
Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2. The Triton kernel is in lion_triton.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .calls import RuleCall
from .cautious import agreeing, decayed
from .fusion import take
from .lists import WIDE, TensorLists
from .rule import Hyper, Kernels, Rule, State
from .scalars import Scalar, double, narrow, refuse_kinds


def lion_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    cautious: bool = False,
) -> None:
    """Take one Lion step, in place.

        p <- p - lr*weight_decay*p - lr*sign(b1*m + (1 - b1)*g)
        m <- b2*m + (1 - b2)*g

    Args:
        params: Tensors to update, all on one device, of any shapes.
        grads: One gradient for each parameter, of its shape and dtype; unchanged.
        exp_avgs: `m`, one for each parameter, in gradient units; zeros before the first step.
        lr: How far each element moves, in parameter units.
        betas: Share of `m` in the update, and share kept per step.
        weight_decay: Share of `p` removed per step and per unit of `lr`.
        maximize: Climb instead of descend.
        cautious: Move only elements whose update agrees with the gradient.

    Raises:
        ValueError: A hyper-parameter is out of range, or the lists do not fit together. Every
            fault is named, and nothing has changed.

    Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2.
    """
    refuse_kinds(flags={"maximize": maximize, "cautious": cautious})
    rule = LionRule(maximize=maximize, cautious=cautious)
    numbers = rule.numbers({"lr": lr, "betas": betas, "weight_decay": weight_decay})
    lists = TensorLists(params, {"exp_avgs": exp_avgs}, kernels=rule.has_kernels)
    taken = torch.tensor(0.0, device=lists.device if lists.path == "triton" else "cpu")
    take([RuleCall(rule, lists, grads, numbers, taken)])


@dataclass(frozen=True)
class LionRule(Rule):
    """Lion.

    Attributes:
        maximize: Climb instead of descend.
        decoupled_weight_decay: Whether the decay is apart from the gradient.
        cautious: Move only elements whose update agrees with the gradient.
        cautious_decay: Decay only elements that the update shrinks.
    """

    name: ClassVar[str] = "Lion"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        Hyper("lr", 1e-4),
        Hyper("betas", (0.9, 0.99), below=1.0),
        Hyper("weight_decay", 0.0),
    )
    every_slot: ClassVar[tuple[str, ...]] = ("exp_avg",)
    codes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8,)

    maximize: bool = False
    decoupled_weight_decay: bool = True
    cautious: bool = False
    cautious_decay: bool = False

    @property
    def elementwise(self) -> bool:
        """Unless the share of elements that move is asked for."""
        return not self.cautious

    def check(self, numbers: Sequence[float]) -> None:
        """Refuse what is out of range, and a cautious decay within the gradient."""
        super().check(numbers)
        if self.cautious_decay and not self.decoupled_weight_decay:
            raise ValueError("cautious_decay needs decoupled_weight_decay: a decay within the gradient has no sign")

    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """Compute a step of one parameter in plain torch."""
        lr, beta1, beta2, weight_decay = numbers
        wide, (m,) = WIDE[p.dtype], slots
        w, d, first = p.to(wide), g.to(wide), m.to(wide)
        if self.maximize:
            d = -d
        if not self.decoupled_weight_decay:
            d = d + narrow(weight_decay, wide) * w
        u = (narrow(beta1, wide) * first + narrow(1 - double(beta1), wide) * d).sign()
        if self.cautious:
            u = agreeing(u, d)
        decay = double(lr) * double(weight_decay)
        if self.decoupled_weight_decay:
            w = decayed(w, u, narrow(decay, wide)) if self.cautious_decay else w * narrow(1 - decay, wide)
        w = w - narrow(lr, wide) * u
        first = narrow(beta2, wide) * first + narrow(1 - double(beta2), wide) * d
        return w.to(p.dtype), (first.to(m.dtype),)

    @property
    def has_kernels(self) -> bool:
        """Unless 8-bit moments are to be cautious."""
        return not (self.cautious and self.eight_bit)

    def kernels(self) -> Kernels:
        """Those of lion_triton.py, or of lion8_triton.py for codes."""
        from .lion8_triton import lion8_chunk
        from .lion_triton import lion_agreeing, lion_chunk
        from .rows_triton import lion_row

        switches = (self.decoupled_weight_decay, self.cautious_decay, self.maximize, self.cautious)
        agrees = lion_agreeing if self.cautious else None
        return Kernels(lion_row, lion8_chunk if self.eight_bit else lion_chunk, switches, 6, agrees)
