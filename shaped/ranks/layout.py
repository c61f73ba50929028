"""Even flat parts: a tensor flattened, padded with fewer than `size` zeros and cut into `size` parts of one length.

The same shapes on all ranks, whatever the tensor's: one program serves all ranks, and a part is an interval of entries.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shaped.ranks.pieces import Box, boxes


@dataclass(frozen=True)
class Placement:
    """How one tensor lies over the ranks.

    Attributes:
        shape: Of the whole.
        size: How many parts there are.
    """

    shape: tuple[int, ...]
    size: int

    @property
    def numel(self) -> int:
        """Entries of the whole."""
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        """Entries of a part, the padding of the last ones among them."""
        return -(-self.numel // self.size)

    def bounds(self, rank: int) -> tuple[int, int]:
        """Where a rank's part begins and ends in the flattened tensor, without padding; the same twice where empty."""
        return min(rank * self.length, self.numel), min((rank + 1) * self.length, self.numel)

    def padded(self, part: Tensor) -> Tensor:
        """A rank's entries with what pads them."""
        return _filled(part, self.length)

    def flat(self, whole: Tensor) -> Tensor:
        """The whole as all parts one after another."""
        return _filled(whole.reshape(-1), self.length * self.size)

    def cut(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's part, padded: a tensor of its own."""
        start, stop = self.bounds(rank)
        own = whole.reshape(-1)[start:stop]
        filled = _filled(own, self.length)
        return filled.clone() if filled is own else filled

    def boxes(self, part: Tensor, rank: int) -> Iterator[Box]:
        """A rank's part, without padding, as blocks of the whole."""
        start, stop = self.bounds(rank)
        return boxes(part[: stop - start], self.shape, start)

    def whole(self, flat: Tensor) -> Tensor:
        """All parts one after another as the whole: a view."""
        return flat[: self.numel].view(self.shape)


def _filled(flat: Tensor, length: int) -> Tensor:
    """With zeros up to a length; the same tensor where none is missing."""
    missing = length - flat.shape[0]
    if not missing:
        return flat
    return torch.cat([flat, flat.new_zeros(missing)])


def units(parts: Sequence[int], large: int = 2**18) -> list[list[int]]:
    """What moves over the ranks together: a large entry alone, so that nothing of it is copied, and small ones.

    Args:
        parts: How many bytes a rank has of each, in their order.
        large: From how many on an entry moves by itself; small ones are at most as many together.

    Returns:
        Positions, in order; each once.
    """
    found: list[list[int]] = []
    together: list[int] = []
    room = 0
    for i, size in enumerate(parts):
        if size >= large:
            found.append([i])
        elif size <= room:
            together.append(i)
            room -= size
        else:
            together, room = [i], large - size
            found.append(together)
    return found
