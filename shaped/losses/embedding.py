"""Losses of distances between vectors: triplets and pairs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shaped.losses.checks import (
    Reduction,
    accurate,
    check_floating,
    check_number,
    check_options,
    check_rank,
    check_same,
    kept,
    one_step,
    reduced,
    refuse,
)
from shaped.shapes import dtype_name

_EPS = 1e-12  # under the root, in squared units: the distance of equal vectors then has a gradient, and it is 0


@one_step
def triplet(
    anchor: Float[Tensor, "batch dim"],
    positive: Float[Tensor, "batch dim"],
    negative: Float[Tensor, "batch dim"],
    *,
    margin: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    weights: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """max(0, |anchor - positive| - |anchor - negative| + margin) with Euclidean distances.

    Args:
        margin: How much further away a negative should be, in the vectors' unit; above 0.

    Raises:
        ShapeError: The three are not all [batch, dim], or mask or weights are not [batch].
        ValueError: An option is out of range.

    Source: Schroff, Kalenichenko & Philbin 2015, arXiv:1503.03832 (there with squared distances); torch's
    TripletMarginLoss up to the place of its eps. Which triplets to form (mining) is left to the caller.
    """
    check_number("triplet", "margin", margin, 0)
    anchor, positive, negative = _vectors(
        "triplet", mask, weights, reduction, anchor=anchor, positive=positive, negative=negative
    )
    single = (distance(anchor, positive) - distance(anchor, negative) + margin).clamp(min=0)
    return reduced(single, mask, weights, reduction)


@one_step
def contrastive(
    left: Float[Tensor, "batch dim"],
    right: Float[Tensor, "batch dim"],
    same: Bool[Tensor, " batch"],
    *,
    margin: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    weights: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """d**2/2 for pairs that are the same, max(0, margin - d)**2/2 for others, with the Euclidean distance d.

    Raises:
        ShapeError: The vectors are not [batch, dim], or `same` is not bool [batch].
        ValueError: An option is out of range.

    Source: Hadsell, Chopra & LeCun 2006, CVPR, equation 4.
    """
    check_number("contrastive", "margin", margin, 0)
    left, right = _vectors("contrastive", mask, weights, reduction, left=left, right=right)
    check_same("contrastive", **{"left without dim": left[:, 0], "same": same})
    if same.dtype != torch.bool:
        dtype = dtype_name(same.dtype)
        refuse(f"{dtype} = bool", f"contrastive: same is {dtype}, expected bool", [same])
    d = distance(left, right)
    single = 0.5 * torch.where(same, d.square(), (margin - d).clamp(min=0).square())
    return reduced(single, mask, weights, reduction)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of rows; the squares, and the number under the root, are no numbers of float16."""
    return (accurate(a - b).square().sum(-1) + _EPS).sqrt().to(a.dtype)


def _vectors(
    loss: str, mask: Tensor | None, weights: Tensor | None, reduction: str, **vectors: Tensor
) -> tuple[Tensor, ...]:
    check_same(loss, **vectors)
    first, *_ = vectors.values()
    check_rank(loss, next(iter(vectors)), first, 2, form="[batch, dim]")
    check_floating(loss, **vectors)
    check_same(loss, **{"the vectors without dim": first[:, 0], "mask": mask, "weights": weights})
    check_options(loss, mask, weights, reduction)
    return kept(None if mask is None else mask.unsqueeze(-1), *vectors.values())
