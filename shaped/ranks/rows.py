"""Which rows of a batch are a rank's: the batch is that of all ranks, whatever their number."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """A share of each batch.

        rows [length*index//parts, length*(index + 1)//parts)

    so that the shares are the batch, in order, and differ by at most one row.

    Attributes:
        index: Of the share, from 0.
        parts: How many shares there are.
        name: The dimension along which batches are shared out.
    """

    index: int
    parts: int
    name: str = "batch"

    def of(self, length: int) -> slice:
        """The rows of a batch of so many; none where there are fewer rows than shares and these are others'."""
        return slice(length * self.index // self.parts, length * (self.index + 1) // self.parts)
