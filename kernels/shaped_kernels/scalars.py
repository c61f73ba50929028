"""Hyper-parameters: read as Python floats, refused with their name and range.

Update rules receive floats that were checked here. A non-finite or negative number never reaches
a parameter.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

Scalar = float | Tensor  # a Python number, or a tensor of one element
Store = Literal["nearest", "stochastic", "split"]  # how a parameter is rounded when it is stored: see lowmemory.py


def number(name: str, value: object) -> float:
    """Read a hyper-parameter as a Python float.

    Args:
        name: What the error message calls it.
        value: A Python number or a tensor of one element; a tensor on a GPU waits for the device.

    Returns:
        The value as a float, finite or not.

    Raises:
        ValueError: `value` is no number, or a tensor of more elements.
    """
    if type(value) is float:  # the hot path
        return value
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one element, got a tensor of shape {tuple(value.shape)}")
        return float(value.item())
    if isinstance(value, bool) or not isinstance(value, Real):  # a string, although float() would read it
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def refuse_kinds(
    lists: Mapping[str, object] | None = None,
    *,
    tensors: Mapping[str, object] | None = None,
    scalars: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
) -> None:
    """Refuse arguments that are of another kind, each by its name.

    Args:
        lists: What is a sequence of tensors; what is in it is looked at elsewhere.
        tensors: What is a floating-point tensor.
        scalars: What is a number or a tensor.
        flags: What is True or False.

    Raises:
        ValueError: Naming each that is something else.
    """
    faults = []
    for name, value in (lists or {}).items():
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            faults.append(f"{name} must be a sequence of tensors, got {_shown(value)}")
    for name, value in (tensors or {}).items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            faults.append(f"{name} must be a floating-point tensor, got {_shown(value)}")
    for name, value in (scalars or {}).items():
        if isinstance(value, bool) or not isinstance(value, Real | Tensor):
            faults.append(f"{name} must be a number or a tensor, got {_shown(value)}")
    for name, value in (flags or {}).items():
        if not isinstance(value, bool):
            faults.append(f"{name} must be True or False, got {_shown(value)}")
    if faults:
        raise ValueError("\n".join(faults))


def _shown(value: object) -> str:
    plain = value is None or isinstance(value, bool | int | float | str)
    return f"{value!r}" if plain else f"one of type {type(value).__name__}"


def at_least_zero(name: str, value: float) -> None:
    """Refuse a number that is negative, infinite or NaN.

    Args:
        name: What the error message calls it.
        value: The number.

    Raises:
        ValueError: `value` is outside [0, inf).
    """
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")


def narrow(scalar: Scalar, dtype: torch.dtype) -> Scalar:
    """Round a tensor scalar to the dtype of the elements it meets; a float is left to torch.

    Without it a 0-dim float64 scalar would promote a 0-dim float32 parameter to float64.
    """
    return scalar.to(dtype) if isinstance(scalar, Tensor) else scalar


def divisor(factor: float | None, device: torch.device) -> Tensor | None:
    """What torch's fused operators divide gradients by, for gradients to be multiplied by `factor`.

    Args:
        factor: A number, or None for nothing.
        device: Where the gradients are.

    Returns:
        A float32 tensor of one element, or None.
    """
    return None if factor is None else torch.tensor(factor, dtype=torch.float64).reciprocal().float().to(device)


def double(scalar: Scalar) -> Scalar:
    """A tensor scalar in float64; a Python float is one."""
    return scalar.to(torch.float64) if isinstance(scalar, Tensor) else scalar
