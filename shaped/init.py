"""Initialisers: how a parameter gets its first values.

    class MLP(ParamList):
        w: Float[Tensor, "pixels hidden"] = init.normal(std=0.02)
        b: Float[Tensor, " hidden"] = init.zeros()

An initialiser is a function of shape and generator, so `Cls.init(seed=0)` is the same on every device: values are
drawn on the CPU in float32 or float64 and then moved. Without one, an entry of rank 2 or more is drawn by `fan_in()`
and a vector or scalar is zero.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from shaped.arguments import checked

Draw = Callable[[tuple[int, ...], Generator, torch.dtype], Tensor]


class Initializer:
    """A named way to draw values; made by the functions of this module."""

    def __init__(self, name: str, draw: Draw) -> None:
        self.name = name
        self.draw = draw

    def __repr__(self) -> str:
        return f"init.{self.name}"


# They return Any so that `w: Float[Tensor, "a b"] = init.zeros()` passes a type checker, as dataclass fields do.


def zeros() -> Any:
    """All zeros."""
    return constant(0.0, name="zeros()")


def ones() -> Any:
    """All ones."""
    return constant(1.0, name="ones()")


@checked
def constant(value: float, *, name: str = "") -> Any:
    """All `value`."""
    _finite("value", value)
    return Initializer(name or f"constant({value})", lambda shape, _, dtype: torch.full(shape, value, dtype=dtype))


@checked
def normal(std: float = 0.02, mean: float = 0.0) -> Any:
    """Independent normal values. 0.02 is GPT-2's."""
    _finite("std", std, 0)
    _finite("mean", mean)
    return Initializer(
        f"normal({std})", lambda shape, g, dtype: torch.empty(shape, dtype=dtype).normal_(mean, std, generator=g)
    )


@checked
def uniform(bound: float) -> Any:
    """Independent values, uniform in [-bound, bound]."""
    _finite("bound", bound, 0)
    return Initializer(
        f"uniform({bound})",
        lambda shape, g, dtype: torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=g),
    )


@checked
def fan_in(gain: float = 1.0) -> Any:
    """Uniform in +-gain/sqrt(inputs): torch.nn.Linear's default at gain 1.

    The inputs of a matrix are its rows, for `x @ w` with `w : [inputs, outputs]`; those of a higher rank are all axes
    but the first, for a convolution's `[outputs, inputs, height, width]`.
    """

    def draw(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
        inputs = math.prod(shape[1:]) if len(shape) > 2 else shape[0] if shape else 1
        bound = gain / math.sqrt(max(inputs, 1))
        return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)

    return Initializer(f"fan_in({_finite('gain', gain, 0)})", draw)


@checked
def orthogonal(gain: float = 1.0) -> Any:
    """Orthonormal rows or columns, by QR of a normal matrix; axes after the first are flattened.

    Raises:
        ValueError: When it draws a tensor of less than two axes.
    """

    def draw(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
        if len(shape) < 2:
            raise ValueError(f"init.orthogonal needs rank 2 or more, and the shape is {shape}")
        rows, columns = shape[0], math.prod(shape[1:])
        flat = torch.empty(max(rows, columns), min(rows, columns), dtype=dtype).normal_(generator=generator)
        q, r = torch.linalg.qr(flat)
        q = q * r.diagonal().sign()  # makes the draw uniform over orthogonal matrices
        drawn: Tensor = gain * (q.T if rows < columns else q).reshape(shape)
        return drawn

    return Initializer(f"orthogonal({_finite('gain', gain)})", draw)


def _finite(name: str, value: float, least: float = -math.inf) -> float:
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name} is {value!r}; it is a finite number{' of at least 0' if least == 0 else ''}")
    return value
