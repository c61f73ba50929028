"""Adam and AdamW with torch.optim's arguments, defaults and state dicts, over `shaped_kernels`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor

from shaped.arguments import checked
from shaped_kernels.adam import AdamRule

from .base import FusedOptimizer
from .groups import FLAGS
from .options import Betas, Caution


class Adam(FusedOptimizer):
    """Adam; with `decoupled_weight_decay`, AdamW.

        g <- g + weight_decay*p         (p <- p - lr*weight_decay*p instead, if decoupled)
        m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = 1, 2, ...
        v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
        p <- p - lr*(m/c1) / (sqrt(v/c2) + eps)

    Args:
        params: Parameters, named parameters or groups, of float64, float32, bfloat16 or float16.
        lr: Step size in parameter units per step (m/sqrt(v) has no unit); a float or a tensor of one element.
        betas: Decay per step of the two moments; each remembers about 1/(1 - b) steps.
        eps: Floor added to sqrt(v), so in gradient units.
        weight_decay: Gradient units added per parameter unit; if decoupled, share of `p` removed
            per step and per unit of `lr`.
        amsgrad: Divide by the largest `v` so far.
        foreach, fused, capturable: Kept in the group for torch's sake; our rule is always fused. A state dict
            has step counts on the CPU, and on the device where `fused` or `capturable` is set.
        maximize: Climb instead of descend.
        differentiable: Must be False.
        decoupled_weight_decay: AdamW's decay.
        fusing: What torch's class does not have: `cautious=True` moves only elements whose update agrees with the
            gradient, `cautious_decay=True` decays only those that the update shrinks; for the rest see `Options`.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.

    Source: Kingma & Ba 2015, arXiv:1412.6980; torch.optim.Adam, whose arithmetic and state dict these are.
    """

    rule = AdamRule
    _torchs_keys: ClassVar[Mapping[str, Any]] = {
        "amsgrad": False,
        "maximize": False,
        "capturable": False,
        "decoupled_weight_decay": False,
        **FLAGS,
    }

    @checked
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **fusing: Unpack[Caution],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
            **fusing,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay; a subclass of Adam because torch's is.

        p <- p - lr*weight_decay*p
        m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = 1, 2, ...
        v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
        p <- p - lr*(m/c1) / (sqrt(v/c2) + eps)

    Args:
        params: Parameters, named parameters or groups, of float64, float32, bfloat16 or float16.
        lr: Step size in parameter units per step (m/sqrt(v) has no unit); a float or a tensor of one element.
        betas: Decay per step of the two moments; each remembers about 1/(1 - b) steps.
        eps: Floor added to sqrt(v), so in gradient units.
        weight_decay: Share of `p` removed per step and per unit of `lr`.
        amsgrad: Divide by the largest `v` so far.
        maximize: Climb instead of descend.
        foreach, fused, capturable: Kept in the group for torch's sake; our rule is always fused. A state dict
            has step counts on the CPU, and on the device where `fused` or `capturable` is set.
        differentiable: Must be False.
        fusing: What torch's class does not have: `cautious=True` moves only elements whose update agrees with the
            gradient, `cautious_decay=True` decays only those that the update shrinks; for the rest see `Options`.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2; the decay is scaled by `lr`,
    as torch.optim.AdamW does and the paper does not.
    """

    @checked
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **fusing: Unpack[Caution],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **fusing,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # whatever was loaded, AdamW stays AdamW; torch does the same
            group["decoupled_weight_decay"] = True
