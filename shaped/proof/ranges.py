"""`torch.arange` with ends or steps that are fractions, whose length torch leaves as a rounded quotient; `linspace`."""

from fractions import Fraction
from typing import Any

import torch
from torch import SymInt, Tensor

_LARGEST = 2**10  # denominators up to this one; what is no such fraction (0.1) stays torch's own affair


def arange(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.arange`: start + step*i for i below ceil((end - start)/step), in whole numbers.

    Values are those of torch: its kernel too computes them in double precision and rounds once.
    """
    ends = _ends(args, kwargs)
    others = {name: value for name, value in kwargs.items() if name not in ("start", "end", "step")}
    numbers = [size for size in ends or () if not isinstance(size, SymInt)]
    exact = [Fraction(number) for number in numbers if isinstance(number, int | float) and abs(number) < 2**31]
    plain = len(exact) == len(numbers) and all(number.denominator <= _LARGEST for number in exact)
    floats = any(isinstance(number, float) for number in numbers)
    if ends is None or len(numbers) == len(ends) or not floats or not plain or others.get("out") is not None:
        return torch.arange(*args, **kwargs)  # type: ignore[no-any-return, call-overload]
    start, end, step = (size if isinstance(size, SymInt) else Fraction(size) for size in ends)
    if isinstance(step, SymInt) or step == 0:
        return torch.arange(*args, **kwargs)  # type: ignore[no-any-return, call-overload]
    dtype = others.pop("dtype", None) or torch.get_default_dtype()
    scale = max(number.denominator for number in (*exact, Fraction(1)))  # powers of two, so the common one
    first, last, by = (size * scale if isinstance(size, SymInt) else int(size * scale) for size in (start, end, step))
    length = -((first - last) // by)
    if not length >= 0:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    counted: Tensor = torch.arange(length, dtype=torch.float64, device=others.pop("device", None))
    offset: Any = start if isinstance(start, SymInt) else float(start)
    moved: Tensor = counted * float(step) + offset
    return moved.to(dtype)


def _ends(args: Any, kwargs: Any) -> tuple[Any, Any, Any] | None:
    """Start, end and step, however they were given."""
    given = dict(zip(("end",) if len(args) == 1 else ("start", "end", "step"), args, strict=False))
    given |= {name: kwargs[name] for name in ("start", "end", "step") if name in kwargs}
    if len(args) > 3 or "end" not in given:
        return None
    return given.get("start", 0), given["end"], given.get("step", 1)


def linspace(start: Any, end: Any, steps: Any, **kwargs: Any) -> Tensor:
    """`torch.linspace`, whose kernel takes the number of steps as a plain number."""
    numbers = isinstance(start, int | float) and isinstance(end, int | float)
    if not isinstance(steps, SymInt) or not numbers or set(kwargs) - {"device", "dtype"}:
        return torch.linspace(start, end, steps, **kwargs)
    dtype = kwargs.pop("dtype", None) or torch.get_default_dtype()
    counted: Tensor = torch.arange(steps, dtype=dtype, **kwargs)  # type: ignore[call-overload]
    return start + counted * ((end - start) / torch.sym_max(steps - 1, 1))
