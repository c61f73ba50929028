"""The backend that compiles if it can: the compiled one, until the compiler refuses, and the eager one from then on."""

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from shaped.backends.compiled import Compiled
from shaped.backends.eager import Eager
from shaped.backends.executors import CompileError, Executors
from shaped.backends.program import Program
from shaped.optim import FusedOptimizer

T = TypeVar("T")


class Auto:
    """Compiled, or eager with one warning and the reason in `executors`.

    Args:
        eager, compiled: The two, over one program.
    """

    def __init__(self, eager: Eager, compiled: Compiled) -> None:
        self._eager, self._compiled = eager, compiled
        self._refused = False

    @property
    def name(self) -> str:
        """The one that runs now."""
        return self._eager.name if self._refused else self._compiled.name

    @property
    def program(self) -> Program:
        """What both run."""
        return self._compiled.program

    @property
    def executors(self) -> Executors:
        """Those of the compiled backend; `note` says why it was left."""
        return self._compiled.executors

    @property
    def compiled(self) -> Compiled | None:
        """The compiled backend, unless it was left."""
        return None if self._refused else self._compiled

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss."""
        return self._run(lambda backend: backend.forward(inputs))

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the gradients and the values that a forward would write."""
        return self._run(lambda backend: backend.loss_and_backward(inputs))

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]:
        """Take a step, or gather a batch for one."""
        return self._run(lambda backend: backend.update(inputs, optimizer, last))

    def _run(self, call: Callable[[Eager | Compiled], T]) -> T:
        if not self._refused:
            try:
                return call(self._compiled)
            except CompileError as error:  # raised before anything has run
                self.leave(error)
        return call(self._eager)

    def leave(self, error: CompileError) -> None:
        """Go on with the eager backend."""
        self._refused = True
        self.executors.note = f"eager from here on: {error}"
        warnings.warn(f"backend='auto' goes on with the eager backend: {error}", RuntimeWarning, stacklevel=2)
