"""Margin losses over classes in terms of elementwise operations, as torch's kernels compute them.

    multi_margin        sum over i != y of max(0, margin - x[y] + x[i])^p * weight[y] / classes
    multilabel_margin   sum over labels y of a row, over i that are no label of it, of max(0, 1 - x[y] + x[i]) / classes

A margin that is NaN or 0 counts as none and has no gradient, which is how the kernels read `z > 0`. torch's own
decompositions of the two say otherwise: see the table in `backends/lowerings.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _reduced(each: Tensor, reduction: str) -> Tensor:
    return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()


def _plain(x: Tensor, target: Tensor, dims: int, others: tuple[Any, ...], reduction: str) -> bool:
    """Whether this form applies: a batch, named options, and not within `vmap`."""
    mapped = torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_batchedtensor(target)
    whole = x.dim() == 2 and target.dim() == dims and target.dtype == torch.int64 and x.is_floating_point()
    return whole and not mapped and all(o is None for o in others) and reduction in ("none", "mean", "sum")


def multi_margin_loss(
    x: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`F.multi_margin_loss` of a batch."""
    if p not in (1, 2) or not _plain(x, target, 1, (size_average, reduce), reduction):
        return F.multi_margin_loss(x, target, p, margin, weight, size_average, reduce, reduction)
    classes = x.shape[1]
    z = margin - x.gather(1, target.unsqueeze(1)) + x
    counts = (z > 0) & (torch.arange(classes, device=x.device) != target.unsqueeze(1))
    z = torch.where(counts, z, 0.0)
    z = z if p == 1 else z * z
    if weight is not None:
        z = z * weight.index_select(0, target).unsqueeze(1)
    return _reduced(z.sum(1) / classes, reduction)


def multilabel_margin_loss(
    x: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`F.multilabel_margin_loss` of a batch; the first -1 of a row ends its labels."""
    if not _plain(x, target, 2, (size_average, reduce), reduction):
        return F.multilabel_margin_loss(x, target, size_average, reduce, reduction)
    classes = x.shape[1]
    right = ((target >= -1) & (target < classes)).all()
    said = "multilabel_margin_loss takes labels from -1 to below the number of classes, and got others"
    torch._assert_async(right, said)  # type: ignore[call-overload]
    given = (target == -1).cumsum(1) == 0
    labels = torch.where(given, target, 0)
    hit = (labels.unsqueeze(2) == torch.arange(classes, device=x.device)) & given.unsqueeze(2)  # [n, labels, classes]
    z = 1 - x.gather(1, labels).unsqueeze(2) + x.unsqueeze(1)
    counts = (z > 0) & given.unsqueeze(2) & ~hit.any(1).unsqueeze(1)
    return _reduced(torch.where(counts, z, 0.0).sum((1, 2)) / classes, reduction)
