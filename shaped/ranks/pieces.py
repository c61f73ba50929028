"""Parts of a tensor that several ranks hold: a run of its elements as they lie in the whole, or blocks of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """What stands in a state dict in the place of a tensor whose parts lie on several ranks.

    Attributes:
        tensor: This rank's elements, of one axis and without padding; none where its part is all padding.
        shape: Of the whole.
        start: Where they begin in the flattened whole.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """Where they end."""
        return self.start + self.tensor.numel()


@dataclass(frozen=True, eq=False)
class Box:
    """A block of a tensor: what `whole[o0 : o0 + n0, o1 : o1 + n1, ...]` is.

    Attributes:
        offsets: Where it begins, along each axis.
        values: A tensor of its sizes.
    """

    offsets: tuple[int, ...]
    values: Tensor


def boxes(flat: Tensor, shape: tuple[int, ...], start: int) -> Iterator[Box]:
    """A run of the flattened tensor as blocks of it: the rest of a row, rows that are whole, the beginning of a row.

    Args:
        flat: Its elements, of one axis.
        shape: Of the whole.
        start: Where they begin in the flattened whole.

    Yields:
        Views, at most two and one more for each axis but the first.
    """
    if len(shape) <= 1:
        if flat.numel():
            yield Box((start,) * len(shape), flat.view([flat.numel()] * len(shape)))
        return
    row = math.prod(shape[1:])
    while flat.numel():
        at, within = divmod(start, row)
        rows = 0 if within else flat.numel() // row
        taken = rows * row or min(row - within, flat.numel())
        if rows:
            yield Box((at, *[0] * len(shape[1:])), flat[:taken].view(rows, *shape[1:]))
        else:
            for inner in boxes(flat[:taken], shape[1:], within):
                yield Box((at, *inner.offsets), inner.values[None])
        start, flat = start + taken, flat[taken:]
