"""The optimizer of a trainer as a user gives it: one of ours, what makes one from a proof, or another library's."""

import warnings
from collections.abc import Callable, Sequence
from typing import cast

from torch.optim import Optimizer

from shaped.backends import Program
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import Foreign, counterpart, name_of
from shaped.optim.multi import MultiOptimizer, without
from shaped.optim.updates import parameters_of

OneOptimizer = Optimizer | Callable[[Program], FusedOptimizer]  # or what makes one from a proof: Muon
GivenOptimizer = OneOptimizer | Sequence[OneOptimizer]  # or several, each over parameters of its own


def _made(maker: Callable[[Program], FusedOptimizer], program: Program) -> FusedOptimizer:
    try:
        return maker(program)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and f"of type {type(program).__name__}" not in str(error):
            raise  # what it says of the parameters
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
    if isinstance(optimizer, list | tuple):
        return _several(optimizer, program)
    optimizer = cast(OneOptimizer, optimizer)
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


def _several(given: Sequence[OneOptimizer], program: Program) -> MultiOptimizer:
    """A list of optimizers as one; what is made from a proof leaves to the others what they have."""
    parts: list[FusedOptimizer] = []
    for i, one in enumerate(given):
        part = _made(one, program) if callable(one) else one
        if not isinstance(part, FusedOptimizer):
            raise ValueError(
                f"optimizer[{i}] is a {name_of(part)}; several in one step are of shaped.optim, and one of another "
                "library is given alone"
            )
        parts.append(part)
    fixed = [
        p for one, part in zip(given, parts, strict=True) if not callable(one) for p in parameters_of(part.param_groups)
    ]
    for one, part in zip(given, parts, strict=True):
        if callable(one):
            without(part, fixed)
    return MultiOptimizer(parts)
