"""Tensors in memory as shuffled batches whose order is a function of (seed, epoch, index)."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from shaped.arguments import checked, whole
from shaped.errors import ShapeError
from shaped.shapes import describe


class Batches:
    """Examples in batches, shuffled in each epoch by a generator of its own.

    The order depends on `seed` and the epoch alone: not on global generators, nor on what was drawn before. So a run
    that stops at batch k goes on with batch k.

    Args:
        tensors: One or more, all with the examples along the first axis.
        batch_size: Examples in a batch; the last one is smaller unless `drop_last`.
        seed: Of the order.
        shuffle: False keeps the given order in each epoch.
        drop_last: Leave out a smaller last batch.

    Raises:
        ShapeError: The tensors differ in their first axis, or have none.
        ValueError: `batch_size` is below 1, or `drop_last` leaves nothing.
    """

    @checked
    def __init__(
        self, *tensors: Tensor, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        if not tensors or any(not isinstance(t, Tensor) or t.dim() == 0 for t in tensors):
            raise ShapeError("Batches takes tensors with the examples along the first axis")
        if len({len(t) for t in tensors}) > 1 or len(tensors[0]) == 0:
            raise ShapeError(
                f"the first axis is the examples, and differs or is empty: {', '.join(map(describe, tensors))}"
            )
        whole("batch_size", batch_size, 1)
        if drop_last and batch_size > len(tensors[0]):
            raise ValueError(
                f"no batch of {batch_size} can be made of {len(tensors[0])} examples; drop_last leaves nothing"
            )
        self.tensors = tensors
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last

    def __len__(self) -> int:
        count = len(self.tensors[0]) / self.batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.iterate(0)

    @checked
    def iterate(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of an epoch from the `start`-th on."""
        order = self.order(epoch)
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield tuple(t[chosen.to(t.device)] for t in self.tensors)

    @checked
    def order(self, epoch: int) -> Tensor:
        """Numbers of the examples in the order of an epoch."""
        if not self.shuffle:
            return torch.arange(len(self.tensors[0]))
        generator = Generator().manual_seed(mixed(self.seed, epoch))
        return torch.randperm(len(self.tensors[0]), generator=generator)


def mixed(*numbers: int) -> int:
    """One seed from several numbers, so that (0, 1) and (1, 0) are unrelated (splitmix64's finaliser)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state % 2**63
