"""What a trainer asks of its backends beside the program: how much, how strict, how compiled."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from shaped.arguments import whole

Sizes = Literal["static", "dynamic", "auto"]
Nonfinite = Literal["raise", "skip"]


@dataclass(frozen=True)
class TrainerOptions:
    """Options that both backends read; `ScalarTrainer` says what each means, and holds them to their kinds.

    Raises:
        ValueError: One is out of range; the message names it.
    """

    max_executors: int = 20
    max_norm: float | None = None
    nonfinite: Nonfinite = "raise"
    accumulate: int = 1
    sizes: Sizes = "auto"
    capture: bool = True
    verify: bool = True

    def __post_init__(self) -> None:
        whole("accumulate", self.accumulate, 1)
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise ValueError(f"max_norm is {self.max_norm!r}; it is a positive number, or None")
        whole("max_executors", self.max_executors, 1)

    @property
    def skips(self) -> bool:
        """Whether what is not finite is left out and counted, and not an error."""
        return self.nonfinite == "skip"


_SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "half": torch.float16}


def floating(autocast: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype of `autocast`: itself, or by its name (`"bfloat16"`) or the usual short one (`"bf16"`).

    Raises:
        ValueError: It is no floating-point dtype.
    """
    dtype = autocast
    if isinstance(autocast, str):
        dtype = _SHORT.get(autocast) or getattr(torch, autocast.removeprefix("torch."), None)
    if dtype is not None and isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if autocast is None:
        return None
    said = "it is a floating-point dtype such as torch.bfloat16, its name such as 'bf16', or None"
    raise ValueError(f"autocast is {autocast!r}; {said}")
