"""What steps move beside parameters and optimizer state: counts, and the mean gradient of batches that wait.

A compiled step that skips what is not finite counts on the device, so that no step waits for it; reading `taken` or
`left_out` does. What the host knows is counted on the host. Both are summed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shaped.optim import FusedOptimizer


class Counters:
    """Counts of one run and the gradients that wait for its next update; trainers on two backends share one.

    Args:
        used: The parameters that are updated.
        skips: Whether what is not finite is left out, so that compiled steps count on the device.

    Attributes:
        counts: Updates taken and batches left out, as compiled steps count them: int64 (2,), on the device.
        means: The mean gradient over the samples of all batches that wait, a tensor for each used parameter. Made when
            first asked for, and then kept, so that a captured step finds them where they were.
        weight: How many samples are in it: float64 (), on the device.
        waiting: Calls since the last update.
        waiting_for: The optimizer that they are for.
        calls: How many calls of a step were taken or left out.
        stepped: The optimizer of the last one.
        grad_norm: The global norm of the gradients of the last update, before clipping, where a step takes it.
    """

    def __init__(self, used: Sequence[Tensor], skips: bool) -> None:
        self._used, self._skips = used, skips
        self._taken = 0
        self._left_out = 0
        self.counts = torch.zeros(2, dtype=torch.int64, device=used[0].device)
        self.weight = torch.zeros((), dtype=torch.float64, device=used[0].device)
        self._means: list[Tensor] = []
        self.waiting = 0
        self.waiting_for: FusedOptimizer | None = None
        self.calls = 0
        self.stepped: FusedOptimizer | None = None
        self.grad_norm: Tensor | None = None

    @property
    def means(self) -> list[Tensor]:
        """The mean gradient of the batches that wait, made when first asked for; the same tensors ever after."""
        if not self._means:
            with torch.inference_mode(False):  # written in every later step
                self._means = [torch.zeros_like(p, requires_grad=False) for p in self._used]
        return self._means

    @property
    def taken(self) -> int:
        """Updates taken; waits for the device where compiled steps count there."""
        return self._taken + (int(self.counts[0]) if self._skips else 0)

    @property
    def left_out(self) -> int:
        """Batches left out since something in them was not finite; waits as `taken` does."""
        return self._left_out + (int(self.counts[1]) if self._skips else 0)

    def count(self, optimizer: FusedOptimizer, *, last: bool, taken: bool = False, left_out: bool = False) -> None:
        """Count a call of a step as far as the host knows; the last one of an update leaves nothing waiting."""
        self._taken += taken
        self._left_out += left_out
        self.calls, self.stepped = self.calls + 1, optimizer
        self.waiting, self.waiting_for = (0, None) if last else (self.waiting + 1, optimizer)

    def set_counts(self, taken: int, left_out: int) -> None:
        """Go on from these counts."""
        self._taken, self._left_out = taken, left_out
        self.counts.zero_()

    def blend(self, gradients: Sequence[Tensor], samples: float) -> None:
        """Take a batch into the mean: mean <- mean + share*(g - mean), share = its samples / all samples so far."""
        if not samples:
            return
        weight = float(self.weight) + samples
        torch._foreach_lerp_(self.means, list(gradients), samples / weight)
        self.weight.fill_(weight)

    def clear(self) -> None:
        """Forget gradients that wait."""
        self.weight.zero_()
        self.waiting, self.waiting_for = 0, None

    def restore(self, means: Sequence[Tensor], weight: float, waiting: int, optimizer: FusedOptimizer) -> None:
        """Go on with gradients that waited in a saved run."""
        for mean, saved in zip(self.means, means, strict=True):
            mean.copy_(saved)
        self.weight.fill_(weight)
        self.waiting, self.waiting_for = waiting, optimizer
