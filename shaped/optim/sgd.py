"""SGD with torch.optim.SGD's arguments, defaults and state dict, over `shaped_kernels`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor

from shaped_kernels import sgd_reference
from shaped_kernels.scalars import number
from shaped_kernels.sgd import SgdRule, check_sgd

from .base import FusedOptimizer
from .flags import FLAGS, check_flags
from .options import Fusing, options_of
from .updates import Group, Scalars, Update


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
        fusing: What torch's class does not have; see `Options`.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.

    Source: torch.optim.SGD, whose arithmetic and state dict these are.
    """

    _optional_keys: ClassVar[Mapping[str, Any]] = {"nesterov": False, "maximize": False, **FLAGS}
    _state_names = ("momentum_buffer", "ema", "low")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **fusing: Unpack[Fusing],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, options_of({**fusing}))

    def _slot_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _scalars(self, group: Group, fresh: bool) -> Scalars:
        damp = 1.0 if fresh else 1.0 - number("dampening", group["dampening"])
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        return number("lr", lr), number("momentum", momentum), damp, number("weight_decay", decay)

    def _check_group(self, group: Group) -> None:
        check_flags(group)
        lr, momentum, damp, weight_decay = self._scalars(group, fresh=False)
        check_sgd(lr, momentum, 1.0 - damp, weight_decay, nesterov=group["nesterov"])
        if self.options.moments == "8bit":
            raise ValueError(
                "8-bit moments are Adam's and AdamW's; SGD's momentum may be torch.float32 or the parameter's"
            )

    def _rule(self, group: Group) -> SgdRule:
        return SgdRule(group["nesterov"], group["maximize"], self.options.store)

    def _rule_scalars(self, update: Update, scalars: Scalars) -> Scalars:
        lr, momentum, _, weight_decay = scalars
        return lr, momentum, number("dampening", update.group["dampening"]), weight_decay

    def reference(
        self,
        update: Update,
        p: Tensor,
        g: Tensor,
        slots: tuple[Tensor, ...],
        scalars: Sequence[Tensor | float],
        step: Tensor | float | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute one step as a pure function; see `FusedOptimizer.reference`. `step` is not read."""
        lr, momentum, damp, weight_decay = scalars
        new_p, new_buf = sgd_reference(
            p,
            g,
            slots[0] if slots else None,
            lr=lr,
            momentum=momentum,
            damp=damp,
            weight_decay=weight_decay,
            nesterov=update.group["nesterov"],
            maximize=update.group["maximize"],
        )
        return new_p, () if new_buf is None else (new_buf,)
