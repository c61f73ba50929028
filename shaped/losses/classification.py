"""Losses of logits against classes or probabilities. Classes are the last axis; the axes before it are free."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped.losses.checks import (
    Reduction,
    check_floating,
    check_options,
    check_same,
    kept,
    one_step,
    reduced,
    refuse,
    shape_of,
)
from shaped.shapes import dtype_name

_NO_CLASS = -(2**62)  # torch's own, -100, would be a loss of 0 that the mean counts: here a mask leaves classes out


@one_step
def cross_entropy(
    logits: Float[Tensor, "*shape classes"],
    target: Int[Tensor, "*shape"],
    *,
    label_smoothing: float = 0.0,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the target class under softmax(logits), in nats.

    Args:
        logits: Unnormalised log-probabilities; the classes are the last axis (torch has them second).
        target: Class numbers from 0; where the mask is False any number will do.
        label_smoothing: Share of the target spread over all classes, from 0 to below 1.

    Raises:
        ShapeError: `target` is not of the shape of `logits` without its last axis, or not of whole numbers.
        ValueError: An option is out of range.
    """
    name = "cross_entropy"
    if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing!r}; it is a number from 0 to below 1")
    _check_classes(name, logits, target)
    check_same(name, target=target, mask=mask, weights=weights)
    check_options(name, mask, weights, reduction)
    if target.dtype != torch.int64:
        target = target.long()
    if mask is not None:
        (target,) = kept(mask, target)
        (logits,) = kept(mask.unsqueeze(-1), logits)
    classes = logits.shape[-1]
    flat = logits if logits.dim() == 2 else logits.reshape(-1, classes)
    single = F.cross_entropy(
        flat, target.reshape(-1), reduction="none", label_smoothing=label_smoothing, ignore_index=_NO_CLASS
    )
    return reduced(single if target.dim() == 1 else single.reshape(target.shape), mask, weights, reduction)


@one_step
def categorical_cross_entropy(
    logits: Float[Tensor, "*shape classes"],
    target: Float[Tensor, "*shape classes"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Cross-entropy against probabilities, -sum(target*log_softmax(logits)) over the last axis, in nats.

    Raises:
        ShapeError: Shapes differ; mask and weights have them without the last axis.
        ValueError: `reduction` is unknown.
    """
    logits, target = _distributions("categorical_cross_entropy", logits, target, mask, weights, reduction)
    return reduced(-(target * logits.log_softmax(-1)).sum(-1), mask, weights, reduction)


@one_step
def kl_divergence(
    logits: Float[Tensor, "*shape classes"],
    target: Float[Tensor, "*shape classes"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """KL(target || prediction) of the two softmax distributions over the last axis, in nats.

    Args:
        logits: The prediction, unnormalised.
        target: The other distribution, unnormalised too: a teacher's logits.

    Raises:
        ShapeError, ValueError: As `categorical_cross_entropy`.

    Source: Kullback & Leibler 1951; as torch.nn.KLDivLoss(log_target=True) with log_softmax of both, summed over
    classes and averaged over the rest.
    """
    logits, target = _distributions("kl_divergence", logits, target, mask, weights, reduction)
    log_p, log_q = target.log_softmax(-1), logits.log_softmax(-1)
    return reduced((log_p.exp() * (log_p - log_q)).sum(-1), mask, weights, reduction)


@one_step
def binary_cross_entropy(
    logits: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Cross-entropy of independent yes-or-no answers under sigmoid(logits), in nats.

    Args:
        target: The probability of yes, from 0 to 1.

    Raises:
        ShapeError: Shapes differ; nothing is broadcast.
        ValueError: `reduction` is unknown.
    """
    name = "binary_cross_entropy"
    check_same(name, logits=logits, target=target, mask=mask, weights=weights)
    check_floating(name, logits=logits, target=target)
    check_options(name, mask, weights, reduction)
    logits, target = kept(mask, logits, target)
    single = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return reduced(single, mask, weights, reduction)


def _check_classes(loss: str, logits: Tensor, target: Tensor) -> None:
    check_same(loss, logits=logits)
    check_same(loss, target=target)
    check_floating(loss, logits=logits)
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        dtype = dtype_name(target.dtype)
        said = f"{loss}: target is {dtype}, expected class numbers"
        refuse(f"{dtype} is int64", said, [target])
    if logits.dim() < 2 or logits.shape[:-1] != target.shape:
        said = (
            f"{loss}: logits are {shape_of(logits)} and target {shape_of(target)}; classes are the last axis of logits"
        )
        leading = "[" + ", ".join(map(str, logits.shape[:-1])) + "]"
        refuse(f"{leading} = {shape_of(target)}", said, [logits, target])


def _distributions(
    loss: str, logits: Tensor, target: Tensor, mask: Tensor | None, weights: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor]:
    check_same(loss, logits=logits, target=target)
    check_floating(loss, logits=logits, target=target)
    if logits.dim() < 1:
        refuse("", f"{loss}: logits are {shape_of(logits)}; classes are the last axis", [logits])
    check_same(loss, **{"logits without classes": logits[..., 0], "mask": mask, "weights": weights})
    check_options(loss, mask, weights, reduction)
    logits, target = kept(None if mask is None else mask.unsqueeze(-1), logits, target)
    return logits, target
