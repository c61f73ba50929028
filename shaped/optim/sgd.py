"""SGD with torch.optim.SGD's arguments, defaults and state dict, over `shaped_kernels`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor

from shaped.arguments import checked
from shaped_kernels.sgd import SgdRule

from .base import FusedOptimizer
from .groups import FLAGS
from .options import Decoupling


class SGD(FusedOptimizer):
    """Stochastic gradient descent with momentum.

        g <- g + weight_decay*p         (g <- -g first, if maximize)
        b <- momentum*b + (1 - dampening)*g,     b = g on the first step
        p <- p - lr*(g + momentum*b  if nesterov else  b)

    Args:
        params: Parameters, named parameters or groups, of float64, float32, bfloat16 or float16.
        lr: Step size in parameter units per gradient unit; a float or a tensor of one element.
        momentum: Share of `b` kept per step; it remembers about 1/(1 - momentum) steps.
        dampening: Share of the gradient that does not enter `b`.
        weight_decay: Gradient units added per parameter unit.
        nesterov: Step along the gradient at the place momentum leads to.
        maximize: Climb instead of descend.
        foreach, fused: Kept in the group for torch's sake; our rule is always fused.
        differentiable: Must be False.
        fusing: What torch's class does not have: `decoupled_weight_decay=True` takes the decay out of the gradient,
            p <- p - lr*weight_decay*p; for the rest see `Options`.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.

    Source: torch.optim.SGD, whose arithmetic and state dict these are.
    """

    rule = SgdRule
    _torchs_keys: ClassVar[Mapping[str, Any]] = {"nesterov": False, "maximize": False, **FLAGS}

    @checked
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float | Tensor = 0,
        dampening: float | Tensor = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **fusing: Unpack[Decoupling],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
            **fusing,
        )
