"""How `ParamList.init` draws an entry: on the CPU, from a generator made from the seed and the entry's path."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Generator, Tensor

from shaped import init
from shaped.errors import SignatureError, listing
from shaped.init import Initializer
from shaped.shapes import Entry

_LARGEST = 2**56  # elements; torch cannot even name a larger tensor


def check_device(device: torch.device | str | None) -> None:
    """Raise ValueError, with torch's reason, unless tensors can be made on `device`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None


def check_dtype(entries: Sequence[Entry], dtype: torch.dtype | None) -> None:
    """Raise an error unless `dtype` is a floating-point one that some entry admits."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"dtype is {dtype!r}; it is a floating-point torch.dtype")
    if not any(dtype in entry.spec.dtypes for entry in entries):
        declared = listing([f"{entry.path}: {entry.spec.quoted}" for entry in entries])
        raise SignatureError(f"dtype is {dtype}, which no entry admits: {declared}")


def draw_entry(
    entry: Entry, initializer: Initializer | None, sizes: Mapping[str, int], seed: int, dtype: torch.dtype | None
) -> Tensor:
    """One entry at these sizes, on the CPU.

    Raises:
        SignatureError: The sizes give no shape, or its initialiser cannot draw it.
    """
    try:
        shape = tuple(int(dim.evaluate(sizes)) for dim in entry.spec.dims)
    except ZeroDivisionError:
        raise SignatureError(f"{entry.path} : {entry.spec} divides by zero at these sizes") from None
    if min(shape, default=1) < 1 or math.prod(shape) > _LARGEST:
        raise SignatureError(f"{entry.path} : {entry.spec} would have the shape {shape}")
    wanted = entry.spec.default_dtype(dtype)
    continuous = wanted.is_floating_point or wanted.is_complex
    if initializer is None:
        initializer = cast(Initializer, init.fan_in() if len(shape) > 1 and continuous else init.zeros())
    generator = Generator().manual_seed(zlib.crc32(f"{seed}:{entry.path}".encode()))
    try:
        drawn = initializer.draw(shape, generator, torch.float64 if wanted == torch.float64 else torch.float32)
        return drawn.to(wanted)
    except (ValueError, RuntimeError) as error:  # a rank that the initialiser refuses, or no memory
        reason = str(error).splitlines()[0]
        raise SignatureError(f"{entry.path} : {entry.spec} = {shape} by {initializer}: {reason}") from None
