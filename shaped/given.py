"""The optimizer of a trainer as a user gives it: one of ours, what makes one from a proof, or another library's."""

import warnings
from collections.abc import Callable
from typing import cast

from torch.optim import Optimizer

from shaped.backends import Program
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import Foreign, counterpart, name_of

GivenOptimizer = Optimizer | Callable[[Program], FusedOptimizer]  # or what makes one from a proof: Muon


def _made(maker: Callable[[Program], FusedOptimizer], program: Program) -> FusedOptimizer:
    try:
        return maker(program)
    except TypeError as error:
        name = getattr(maker, "__name__", repr(maker))
        raise ValueError(
            f"optimizer: {name} is called with the proof, as Muon is, and that raised {error}; "
            "of others give the optimizer itself, as in AdamW(params)"
        ) from None


def taken(optimizer: GivenOptimizer, program: Program) -> FusedOptimizer:
    """An optimizer that steps from given gradients.

    Raises:
        ValueError: It is no optimizer, or one whose step computes the loss itself.
    """
    if callable(optimizer):
        optimizer = _made(optimizer, program)
    if isinstance(optimizer, FusedOptimizer):
        return optimizer
    if not isinstance(cast(object, optimizer), Optimizer):
        raise ValueError(
            f"optimizer is a {name_of(optimizer)}; use one of shaped.optim, such as AdamW, or of torch.optim"
        )
    if (ours := counterpart(optimizer)) is not None:
        warnings.warn(
            f"{name_of(optimizer)} steps on the eager backend alone, and what it computes is not proved: {ours} takes "
            "its arguments and its state dicts",
            stacklevel=4,
        )
    return Foreign(optimizer)
