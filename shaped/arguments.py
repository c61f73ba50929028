"""Numbers that a call is given: what is no number, or out of range, is refused by name."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def whole(name: str, value: Any, least: int | None = None, error: type[Exception] = ValueError) -> int:
    """A whole number, of at least `least`; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name} is {value!r}; it is a whole number{bound}")
    return value


def number(name: str, value: Any) -> float:
    """A finite number of at least 0, as a float; a tensor of one element is read."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; it is a finite number of at least 0")
    return float(value)


def pair(name: str, value: Any) -> tuple[float, float]:
    """Two such numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; it is a pair of numbers in [0, 1)")
    return number(f"{name}[0]", value[0]), number(f"{name}[1]", value[1])


def flat(value: Any) -> Sequence[Any]:
    """A pair as it is, a number as a sequence of one."""
    return value if isinstance(value, (tuple, list)) else (value,)
