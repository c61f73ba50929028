"""A subclass's own rule, where it says `reference` and no kernel: one parameter at a time, on the CPU.

The compiled step traces `reference`, so the eager step of such a class must be that of its `reference` too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from shaped_kernels.lists import TensorLists
from shaped_kernels.scalars import Store

from .updates import Scalars, Update

if TYPE_CHECKING:
    from .base import FusedOptimizer


@cache
def says_own_reference(cls: type) -> bool:
    """Whether a class gives `reference` anew, below the class that gives `_rule`."""
    order = [vars(base).keys() for base in cls.__mro__]
    first = {name: next(i for i, names in enumerate(order) if name in names) for name in ("reference", "_rule")}
    return first["reference"] < first["_rule"]


@dataclass(frozen=True)
class ByReference:
    """`optimizer.reference` as a rule."""

    optimizer: "FusedOptimizer"
    update: Update
    scalars: Scalars
    single = True

    @property
    def store(self) -> Store:
        """How a parameter is rounded."""
        return self.optimizer.options.store

    def plain(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], scalars: Sequence[float], step: float
    ) -> tuple[Tensor | None, ...]:
        """One step of one parameter, without changing it: new parameter and state."""
        number = None if self.update.step is None else step
        new, state = self.optimizer.reference(self.update, p, g, tuple(slots), self.scalars, number)
        return new, *state

    def fused(self, *arguments: Any, **named: Any) -> NoReturn:
        """There is none."""
        raise AssertionError("a rule that takes one parameter at a time has no fused form")

    def hypers(self, scalars: Sequence[float]) -> list[float]:
        """There is no kernel."""
        raise AssertionError("a rule that takes one parameter at a time has no kernel")

    def kernels(self, lists: TensorLists) -> NoReturn:
        """There is none."""
        raise AssertionError("a rule that takes one parameter at a time has no kernel")
