"""The eager backend: the user's function under autograd, operation by operation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shaped.backends.executors import Executors
from shaped.backends.gradients import all_finite, clipped
from shaped.backends.program import Program
from shaped.optim import FusedOptimizer


class Eager:
    """Runs a program with autograd and updates with `shaped_kernels`."""

    name = "eager"

    def __init__(self, program: Program, max_executors: int, max_norm: float | None) -> None:
        self.program = program
        self.executors = Executors(max_executors)  # stays empty
        self._max_norm = max_norm
        self._used = program.used_tensors

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss, without a graph behind it."""
        self._admit(inputs)
        with torch.no_grad():
            return self.program.call(inputs)[0].clone()

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the gradients of `program.used` and the values of `program.writes`, from one pass."""
        self._admit(inputs)
        with torch.enable_grad():  # also under the caller's no_grad
            if self.program.strategy is not None:
                loss, gradients, written = self.program.differentiate(inputs)
            else:
                loss, written = self.program.call(inputs)
                gradients = list(torch.autograd.grad(loss, self._used))
        return loss.detach().clone(), gradients, written  # a loss that is a parameter must not follow its update

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """One step. Where the loss or a gradient is not finite nothing changes and the flag is False."""
        for update in optimizer.updates(self._used):
            update.scalars()  # out of range: an error before any work
        loss, gradients, written = self.loss_and_backward(inputs)
        if not all_finite([loss, *gradients]):
            return loss, False
        self.program.write(written)
        if self._max_norm is not None:
            gradients = clipped(gradients, self._max_norm)
        optimizer.update(gradients, self._used)
        return loss, True

    def _admit(self, inputs: Sequence[Tensor]) -> None:
        self.program.follow_storage()
        if self.program.check:
            self.program.admit(inputs)
