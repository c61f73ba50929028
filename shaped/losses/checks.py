"""What every loss does first and last: compare shapes, leave out what is masked, reduce.

A loss is one step of a proof. Inside a trace the recorder is handed the loss itself, so an error names the loss and
its operands at the user's line rather than an operation within this library.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Literal, NoReturn, ParamSpec

import torch
from torch import SymInt, Tensor
from torch.overrides import handle_torch_function, has_torch_function

from shaped.arguments import only_tensors
from shaped.errors import ShapeError
from shaped.shapes import dtype_name

P = ParamSpec("P")
Reduction = Literal["mean", "sum", "none"]


def one_step(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let a trace see the call of `loss` as one operation of that name."""

    @wraps(loss)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return loss(*args, **kwargs)

    return call


def refuse(goal: str, said: str, tensors: Sequence[Tensor]) -> NoReturn:
    """Raise for a mismatch: an unsolved goal inside a trace, a ShapeError elsewhere."""
    if any(isinstance(size, SymInt) for tensor in tensors for size in tensor.shape):
        from shaped.proof.calls import Mismatch  # the tracer is imported already, or there were no symbols

        raise Mismatch(goal, said, tensors)
    raise ShapeError(said)


def shape_of(tensor: Tensor) -> str:
    """`[16, 3]`"""
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def check_same(loss: str, **tensors: Tensor | None) -> None:
    """Require tensors of one shape; the first is what the others are compared with.

    Raises:
        ShapeError: Two differ, or something is no tensor.
    """
    only_tensors(loss, **{n: t for n, t in tensors.items() if n not in ("mask", "weights") or t is not None})
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (first, reference), *others = given.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            shapes = f"{first} {shape_of(reference)}", f"{name} {shape_of(tensor)}"
            refuse(
                _goal(reference, tensor),
                f"{loss} needs equal shapes and would broadcast {shapes[0]} against {shapes[1]}",
                [reference, tensor],
            )


def _goal(a: Tensor, b: Tensor) -> str:
    return f"{shape_of(a)} = {shape_of(b)}"


def check_rank(loss: str, name: str, tensor: Tensor, *ranks: int, form: str) -> None:
    """Require one of some ranks."""
    if tensor.dim() not in ranks:
        refuse("", f"{loss}: {name} is {shape_of(tensor)}, expected {form}", [tensor])


def check_floating(loss: str, **tensors: Tensor | None) -> None:
    """Require floating-point tensors."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            dtype = dtype_name(tensor.dtype)
            refuse(f"{dtype} is floating point", f"{loss}: {name} is {dtype}, expected floating point", [tensor])


def check_number(loss: str, name: str, value: float, least: float, most: float = math.inf) -> None:
    """Require a number within open bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < most:
        bounds = f"above {least:g}" + (f" and below {most:g}" if most < math.inf else "")
        raise ValueError(f"{loss}: {name} is {value!r}; it is a number {bounds}")


def check_options(loss: str, mask: Tensor | None, weights: Tensor | None, reduction: str) -> None:
    """Require a bool mask, floating-point weights and a known reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{loss}: reduction is {reduction!r}; it is 'mean', 'sum' or 'none'")
    if mask is not None and mask.dtype != torch.bool:
        dtype = dtype_name(mask.dtype)
        refuse(f"{dtype} = bool", f"{loss}: mask is {dtype}, expected bool", [mask])
    check_floating(loss, weights=weights)


def kept(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with zeros where the mask is False, so that what stands there reaches no gradient."""
    return tensors if mask is None else tuple(torch.where(mask, t, t.new_zeros(())) for t in tensors)


def reduced(losses: Tensor, mask: Tensor | None, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Single losses to one number, as the package's docstring says."""
    if weights is not None:
        losses = losses * (weights if mask is None else torch.where(mask, weights, weights.new_zeros(())))
    elif mask is not None:
        losses = torch.where(mask, losses, losses.new_zeros(()))
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if mask is None and weights is None:
        return losses.mean()
    share = mask if weights is None else weights if mask is None else torch.where(mask, weights, weights.new_zeros(()))
    assert share is not None
    wide = accurate(losses)  # a count of float16 is infinite from 65,520 on
    total = accurate(share).sum().to(wide.dtype)
    return (wide.sum() / torch.where(total > 0, total, torch.ones_like(total))).to(losses.dtype)


def accurate(values: Tensor) -> Tensor:
    """Half-precision numbers as float32, as torch's own reductions take them; others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
