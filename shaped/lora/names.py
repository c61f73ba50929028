"""Which weights an adapter goes to: by name, by the end of a name, or by a pattern."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from shaped.arguments import whole
from shaped.errors import ShapeError, nearest


def matching(owner: str, names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The names that some target means: `blocks.0.wq`, `wq` (as PEFT's target_modules), or `blocks.*.w?`.

    Raises:
        ShapeError: A target means nothing.
    """
    if not targets:
        raise ShapeError(f"targets is {targets!r}; it is a list of names or patterns, such as ({names[0]!r},)")
    idle = [t for t in targets if not any(_means(t, name) for name in names)]
    if idle:
        raise ShapeError(f"{owner} has no weight `{idle[0]}`{nearest(idle[0], names)}")
    return [name for name in names if any(_means(target, name) for target in targets)]


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)


def adapter_dtype(base: torch.dtype) -> torch.dtype:
    """The dtype of an adapter beside weights: at least float32, as PEFT's."""
    return torch.float32 if base.itemsize < 4 else base


def check_rank(rank: int, alpha: float) -> None:
    """Raise ValueError unless the rank is a positive whole number and alpha a positive number."""
    whole("rank", rank, 1)
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is {alpha!r}; it is a positive number")
