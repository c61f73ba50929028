"""The eager backend: the user's function under autograd, operation by operation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shaped.backends.executors import Executors
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
            return self.program.call(inputs)

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss and the gradients of `program.used`, from one pass."""
        self._admit(inputs)
        loss = self.program.call(inputs)
        gradients = torch.autograd.grad(loss, self._used)
        return loss.detach(), list(gradients)

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """One step. Where the loss or a gradient is not finite nothing changes and the flag is False."""
        for update in optimizer.updates(self._used):
            update.scalars()  # out of range: an error before any work
        loss, gradients = self.loss_and_backward(inputs)
        if not all_finite([loss, *gradients]):
            return loss, False
        if self._max_norm is not None:
            clip_(gradients, self._max_norm)
        optimizer.update(gradients, self._used)
        return loss, True

    def _admit(self, inputs: Sequence[Tensor]) -> None:
        if self.program.check:
            self.program.admit(inputs)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element is finite; waits for the device once if so."""
    norms = torch._foreach_norm(list(tensors))  # 5 us for a small network, where isfinite takes 33
    if math.isfinite(sum(norm.item() for norm in norms) if norms[0].device.type == "cpu" else _total(norms)):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)  # a norm may overflow where no element does


def _total(norms: Sequence[Tensor]) -> float:
    return torch.stack([norm.double() for norm in norms]).sum().item()


def clip_(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale gradients in place so that their global 2-norm is at most `max_norm`, as clip_grad_norm_ does."""
    norm = torch.linalg.vector_norm(torch.stack([n.float() for n in torch._foreach_norm(list(gradients))]))
    torch._foreach_mul_(list(gradients), torch.clamp(max_norm / (norm + 1e-6), max=1.0))
