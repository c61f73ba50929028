"""`tril_indices`, `triu_indices` and `combinations` at symbolic sizes, which torch's kernels take as plain numbers.

Position k of the list lies in the row that the cumulated lengths of the rows say. Square triangles only, from the
diagonal or from beside it.
"""

from typing import Any

import torch
from torch import SymInt, Tensor


def tril_indices(row: Any, col: Any, offset: int = 0, **kwargs: Any) -> Tensor:
    """`torch.tril_indices`: the rows and columns at or below a diagonal."""
    if not _is_square(row, col) or offset not in (0, -1):
        return torch.tril_indices(row, col, offset, **kwargs)
    device = kwargs.get("device")
    rows, position = _rows(torch.arange(row, device=device) + 1 + offset, row * (row + 1 + 2 * offset) // 2)
    return torch.stack([rows, position]).to(kwargs.get("dtype", torch.int64))


def triu_indices(row: Any, col: Any, offset: int = 0, **kwargs: Any) -> Tensor:
    """`torch.triu_indices`: the rows and columns at or above a diagonal."""
    if not _is_square(row, col) or offset not in (0, 1):
        return torch.triu_indices(row, col, offset, **kwargs)
    device = kwargs.get("device")
    rows, position = _rows(row - offset - torch.arange(row, device=device), row * (row + 1 - 2 * offset) // 2)
    return torch.stack([rows, rows + position + offset]).to(kwargs.get("dtype", torch.int64))


def combinations(x: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """`torch.combinations` of pairs."""
    if x.dim() != 1 or r != 2:
        return torch.combinations(x, r, with_replacement)
    first, second = triu_indices(x.shape[0], x.shape[0], int(not with_replacement), device=x.device)
    return torch.stack([x[first], x[second]], 1)


def _is_square(row: Any, col: Any) -> bool:
    return isinstance(row, SymInt) and isinstance(col, SymInt) and bool(row.node.expr == col.node.expr)


def _rows(lengths: Tensor, count: Any) -> tuple[Tensor, Tensor]:
    """For each of `count` entries, its row and its position within the row."""
    ends = lengths.cumsum(0)
    entries = torch.arange(count, device=lengths.device)
    rows = torch.searchsorted(ends, entries, right=True)
    return rows, entries - (ends - lengths)[rows]
