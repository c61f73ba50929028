"""Placements along one axis of a mesh, as DTensor's: a value is whole on each rank, in parts, or a sum yet to be taken.

    Replicate          every rank has the value
    Shard(i, before)   axis i, read as [before, the rest], has its rest cut into even parts; before = 1 for a plain cut
    Partial            the value is the sum of what the ranks have

`before` is what lies in front of the cut within the axis: `[batch, heads]` flattened keeps heads cut, with
before = batch. A value so placed is a run of blocks in memory whatever its axes are, which is why views keep it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shaped.ranks.pieces import Box


@dataclass(frozen=True)
class Replicate:
    """Whole on each rank."""

    def __str__(self) -> str:
        return "whole"


@dataclass(frozen=True)
class Shard:
    """In even parts.

    Attributes:
        axis: Which one is cut, from 0.
        before: How many blocks of it are cut alike: a number, or an expression over sizes.
    """

    axis: int
    before: Any = 1

    def __str__(self) -> str:
        return f"axis {self.axis} in parts"


@dataclass(frozen=True)
class Partial:
    """A sum over the ranks that is yet to be taken."""

    def __str__(self) -> str:
        return "a sum to be taken"


Held = Replicate | Shard | Partial
WHOLE, PENDING = Replicate(), Partial()


def part_of(t: Tensor, axis: int, before: Any, rank: int, size: int) -> Tensor:
    """A rank's part of a whole tensor: a view where nothing lies before the cut."""
    if isinstance(before, int) and before == 1:
        length = t.shape[axis] // size
        return t.narrow(axis, rank * length, length)
    rest = t.shape[axis] // before
    blocks = t.unflatten(axis, (before, rest))
    return blocks.narrow(axis + 1, rank * (rest // size), rest // size).flatten(axis, axis + 1)


def whole_of(parts: Tensor, local: Sequence[Any], axis: int, before: Any, size: int) -> Tensor:
    """The whole from all ranks' parts, flattened, one after another; `local` is the shape of a part."""
    stacked = parts.view(size, *local[:axis], before, local[axis] // before, *local[axis + 1 :])
    return stacked.movedim(0, axis + 1).reshape(*local[:axis], local[axis] * size, *local[axis + 1 :])


@dataclass(frozen=True)
class AxisPlacement:
    """How one tensor lies over the ranks of an axis of a mesh.

    Attributes:
        shape: Of the whole.
        size: How many ranks there are.
        shard: Where it is cut; None where it is whole on each.
    """

    shape: tuple[int, ...]
    size: int
    shard: Shard | None

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of a part."""
        if self.shard is None:
            return self.shape
        at = self.shard.axis
        return (*self.shape[:at], self.shape[at] // self.size, *self.shape[at + 1 :])

    @property
    def numel(self) -> int:
        """Entries of a part."""
        return math.prod(self.local)

    def cut(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's part: a tensor of its own where there are parts."""
        if self.shard is None:
            return whole
        return part_of(whole, self.shard.axis, self.shard.before, rank, self.size).clone()

    def boxes(self, part: Tensor, rank: int) -> Iterator[Box]:
        """A rank's part as blocks of the whole."""
        return self.moved(Box((0,) * len(self.shape), part), rank)

    def moved(self, block: Box, rank: int) -> Iterator[Box]:
        """A block of a rank's part as blocks of the whole: one for each that lies before the cut."""
        if self.shard is None:
            yield block
            return
        at = self.shard.axis
        width = self.local[at] // int(self.shard.before)
        done = 0
        while done < block.values.shape[at]:
            group, within = divmod(block.offsets[at] + done, width)
            taken = min(width - within, block.values.shape[at] - done)
            place = (group * self.size + rank) * width + within
            offsets = (*block.offsets[:at], place, *block.offsets[at + 1 :])
            yield Box(offsets, block.values.narrow(at, done, taken))
            done += taken

    def joined(self, parts: Tensor) -> Tensor:
        """The whole from all ranks' parts, flattened, one after another."""
        assert self.shard is not None
        return whole_of(parts, self.local, self.shard.axis, int(self.shard.before), self.size)
