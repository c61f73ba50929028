"""Lion, over `shaped_kernels`."""

from typing import Any, Unpack

from torch import Tensor

from shaped.arguments import checked
from shaped_kernels.lion import LionRule

from .base import FusedOptimizer
from .options import Betas, Caution


class Lion(FusedOptimizer):
    """Lion: every element moves by lr, along the sign of a moving average; half the state of Adam.

        p <- p - lr*weight_decay*p - lr*sign(b1*m + (1 - b1)*g)
        m <- b2*m + (1 - b2)*g

    Args:
        params: Parameters, named parameters or groups, of float64, float32, bfloat16 or float16.
        lr: How far each element moves, in parameter units; a third to a tenth of AdamW's is usual.
        betas: Share of `m` in the update, and share kept per step.
        weight_decay: Share of `p` removed per step and per unit of `lr`; as many times AdamW's as lr is smaller.
        maximize: Climb instead of descend.
        decoupled_weight_decay: Whether the decay is apart from the gradient, as in the paper.
        fusing: `cautious=True` moves only elements whose update agrees with the gradient, `cautious_decay=True` decays
            only those that the update shrinks; for the rest see `Options`.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.

    Source: Chen et al. 2023, arXiv:2302.06675, Algorithm 2.
    """

    rule = LionRule

    @checked
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        **fusing: Unpack[Caution],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
            **fusing,
        )
