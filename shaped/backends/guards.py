"""Whether tensors are as they were, in two loops of C: what a step asks of all its parameters, and of its batch.

torch has such a look for its own compiled code: type, dispatch keys, dtype, device, requires_grad, shape and strides of
each. Where it is not there, or says no, the longer way is gone, which knows what to say.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_address: Callable[[Tensor], int] = Tensor.data_ptr


class Guards:
    """Tensors as they are now.

    Args:
        tensors: Some; none is kept alive.

    Attributes:
        known: Whether there is anything to compare with.
    """

    __slots__ = ("_addresses", "_alike", "_count", "known")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._count, self._addresses = len(tensors), list[int]()
        self._alike: Callable[..., bool] = _never
        try:
            made: Any = torch._C._dynamo.guards.TensorGuards  # whose sizes torch declares as those of one tensor
            shapes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
            self._alike = made(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check
            self._addresses = list(map(_address, tensors))
        except Exception:  # another torch, or tensors without strides or memory
            self._alike = _never
        self.known = self._alike is not _never

    def alike(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors are of the same kind, shape and strides, wherever they lie."""
        return len(tensors) == self._count and self._alike(*tensors)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether they lie where they lay, too."""
        return self.alike(tensors) and list(map(_address, tensors)) == self._addresses


def _never(*tensors: Tensor) -> bool:
    return False
