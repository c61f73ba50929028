"""Rows that are windows of one series: neighbours hold the same moments, and folds must not share them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CANDIDATES = 1000  # shifts that are tried; a table has as many as its first row has repeated values


def reach_of_windows(tensor: Tensor) -> int:
    """How many rows further on a row still holds what this one does, where rows are windows in order; otherwise 0.

    Rows are windows where each is the one before, moved on by some entries: `x[i+1, :-s] == x[i, s:]` for all i, or the
    same with the newest moment first. Values tell, so windows count too that were copied, flattened or made elsewhere.
    """
    if tensor.dim() < 2 or len(tensor) < 3:
        return 0
    rows = tensor.detach().flatten(1)
    return max(_reach(rows), _reach(rows.flip(1)))


def _reach(rows: Tensor) -> int:
    """The same of windows with the oldest moment first."""
    width = rows.shape[1]
    starts = _same(rows[0], rows[1, 0]).nonzero().flatten().tolist() if width > 1 else []
    for shift in starts[:_CANDIDATES]:
        if shift and bool(_same(rows[0, shift:], rows[1, : width - shift]).all()):
            old, new = rows[:-1, shift:], rows[1:, : width - shift]
            if bool((old != old[0, 0]).any()) and bool(_same(old, new).all()):
                return math.ceil(width / shift) - 1
    return 0


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a != a) & (b != b))


def sharing(reach: int, train: Sequence[int] | Tensor, test: Sequence[int] | Tensor) -> int:
    """How many training rows lie within reach of a test row."""
    rows, tested = torch.as_tensor(train), torch.as_tensor(test).sort().values
    if not reach or not len(rows) or not len(tested):
        return 0
    after = torch.searchsorted(tested, rows)
    nearest = torch.minimum(
        (tested[after.clamp(max=len(tested) - 1)] - rows).abs(), (tested[(after - 1).clamp(min=0)] - rows).abs()
    )
    return int((nearest <= reach).sum())
