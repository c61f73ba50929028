"""Schedule-free AdamW, over `shaped_kernels`."""

from typing import Any, Unpack

from torch import Tensor

from shaped.arguments import checked
from shaped_kernels.schedule_free import ScheduleFreeRule

from .base import FusedOptimizer
from .options import Betas, Fusing


class ScheduleFree(FusedOptimizer):
    """AdamW at one learning rate, with an average that takes the place of a schedule.

        y  = p + (1 - b1)*e             where the gradient is taken
        z <- p + e - s*(g/(sqrt(v/c2) + eps) + weight_decay*y)
        p <- p + c*(z - p)              c: the newest point's share in the average
        e <- z - p

    The parameters are the average: what is evaluated, saved and averaged further is right without being told. A
    trainer takes gradients at `y` by itself. In a loop of your own, take them within `optimizer.ahead()`, or hand
    `step` a closure.

    Args:
        params: Parameters, named parameters or groups, of float64, float32, bfloat16 or float16.
        lr: Step size in parameter units per step, after the warm-up; leave it as it is during a run.
        betas: How far the gradient is taken from the average towards the newest point's, and decay per step of the
            squares.
        eps: Floor added to sqrt(v), so in gradient units.
        weight_decay: Share of `y` removed per step and per unit of `lr`.
        warmup_steps: Over how many steps lr rises to what it is.
        maximize: Climb instead of descend.
        fusing: See `Options`. 8-bit moments are Adam's.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.

    Source: Defazio et al. 2024, arXiv:2405.15682.
    """

    rule = ScheduleFreeRule

    @checked
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2.5e-3,
        betas: Betas = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0.0,
        warmup_steps: int | Tensor = 0,
        *,
        maximize: bool = False,
        **fusing: Unpack[Fusing],
    ) -> None:
        given = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__(params, lr=lr, **given, maximize=maximize, **fusing)
