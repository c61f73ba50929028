"""A part of a tensor that several ranks hold: a run of its elements, as they lie in the flattened whole."""

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
