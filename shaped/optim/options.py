"""What our optimizers do beyond torch's: keyword arguments after torch's own, all off by default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal, TypedDict, cast

import torch
from torch import Tensor

from shaped.arguments import OWN, checked
from shaped_kernels.calls import ONLY_KEEP, Extras
from shaped_kernels.scalars import Store, number

Moments = torch.dtype | Literal["8bit"] | None
# A list too, as files have it; the rule reads and checks it.
Betas = Annotated[tuple[float | Tensor, float | Tensor], OWN]


class Fusing(TypedDict, total=False):
    """The keyword arguments, for a type checker; `Options` says what they mean."""

    max_norm: float | None
    skip_nonfinite: bool
    ema_decay: float | None
    zero_grads: bool
    store: Store
    moments: Moments


class Caution(Fusing, total=False):
    """The same with the flags of Adam and Lion that shaped_kernels/cautious.py explains."""

    cautious: bool
    cautious_decay: bool


class Decoupling(Fusing, total=False):
    """The same with SGD's decay apart from the gradient."""

    decoupled_weight_decay: bool


_KEEP = {"keep": True, "norm": None}


@checked
@dataclass(frozen=True)
class Options:
    """What is fused around an update, and how parameters and moments are stored.

    Attributes:
        max_norm: Gradients are scaled so that the norm of all of them is at most this, as
            `clip_grad_norm_` does before a step; in gradient units. Where a trainer has a `max_norm` too, they are
            scaled once, to the smaller.
        skip_nonfinite: A step with an infinite or NaN gradient changes nothing, bit for bit. A trainer looks at the
            gradients before, and does what its `nonfinite` says.
        ema_decay: Keep an average of each parameter, and this share of it at each step.
        zero_grads: Leave zeros in the gradients, so that `zero_grad(set_to_none=False)` is not needed.
        store: How bfloat16 parameters are rounded: "nearest"; "stochastic", right on average; or
            "split" into two exact halves, the lower one in the state.
        moments: The dtype of Adam's moments and SGD's momentum: None for the parameter's; torch.float32;
            or "8bit" (Adam, AdamW and Lion) for codes under a scale for every 256 neighbours.

    Raises:
        ValueError: One of them is out of range.
    """

    max_norm: float | None = None
    skip_nonfinite: bool = False
    ema_decay: float | None = None
    zero_grads: bool = False
    store: Store = "nearest"
    moments: Moments = None

    def __post_init__(self) -> None:
        if self.max_norm is not None and not 0.0 < number("max_norm", self.max_norm) < math.inf:
            raise ValueError(f"max_norm must be a finite number > 0, or None, got {self.max_norm}")
        if self.ema_decay is not None and not 0.0 <= number("ema_decay", self.ema_decay) < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), or None, got {self.ema_decay}")
        if self.moments not in (None, torch.float32, "8bit"):
            raise ValueError(f"moments must be None, torch.float32 or '8bit', got {self.moments!r}")

    def limit(self, other: float | None) -> float | None:
        """What the norm of all gradients is at most, where another limit stands beside `max_norm`: the smaller."""
        if self.max_norm is None or other is None:
            return other if self.max_norm is None else self.max_norm
        return min(self.max_norm, other)

    def measures(self, other: float | None) -> bool:
        """Whether a step takes the norm of all gradients."""
        return self.skip_nonfinite or self.limit(other) is not None

    @cached_property
    def _bare(self) -> bool:
        """Whether nothing is fused around an update."""
        return not (self.max_norm or self.skip_nonfinite or self.ema_decay is not None or self.zero_grads)

    def around(self, max_norm: float | None = None, found_inf: Tensor | None = None, **given: Any) -> Extras:
        """What is fused around one step, under another limit and verdict too; `given` are further fields of `Extras`.

        Raises:
            ValueError: The limit is no positive number, or the verdict no tensor.
        """
        if max_norm is not None and not 0.0 < number("max_norm", max_norm) < math.inf:
            raise ValueError(f"max_norm must be a finite number > 0, or None, got {max_norm}")
        if found_inf is not None and not isinstance(cast(object, found_inf), Tensor):
            raise ValueError(f"found_inf is of type {type(found_inf).__name__}; it is a tensor of one element")
        if max_norm is None and found_inf is None and given == _KEEP and self._bare:
            return ONLY_KEEP
        return Extras(
            self.limit(max_norm), self.skip_nonfinite, self.ema_decay, self.zero_grads, found_inf=found_inf, **given
        )


def split_options(given: dict[str, Any], known: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """Read keyword arguments: what is fused, and the others.

    Args:
        given: Arguments by name.
        known: The names that others may have.

    Raises:
        TypeError: One is unknown.
        ValueError: One is out of range.
    """
    fused = [field.name for field in fields(Options)]
    unknown = [name for name in given if name not in fused and name not in known]
    if unknown:
        raise TypeError(f"unknown argument {', '.join(unknown)}; beyond torch's there are {', '.join(fused)}")
    others = {name: value for name, value in given.items() if name not in fused}
    return Options(**{name: value for name, value in given.items() if name in fused}), others
