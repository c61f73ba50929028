"""Losses of a whole series at once: correlation, and return per risk."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shaped.losses.checks import (
    accurate,
    check_floating,
    check_number,
    check_options,
    check_rank,
    check_same,
    kept,
    one_step,
)


@one_step
def pearson(
    prediction: Float[Tensor, " batch"],
    target: Float[Tensor, " batch"],
    *,
    eps: float = 1e-8,
    mask: Bool[Tensor, " batch"] | None = None,
    weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Minus Pearson's correlation over the batch: from -1 (perfect) to 1; 0 where one of them is constant.

        r = cov(p, t) / sqrt((var(p) + eps) * (var(t) + eps))      with weighted means

    Args:
        eps: Added to each variance, so in squared units; above 0.

    Raises:
        ShapeError: Shapes differ, or are not [batch].
        ValueError: `eps` is out of range.
    """
    check_number("pearson", "eps", eps, 0)
    check_same("pearson", prediction=prediction, target=target, mask=mask, weights=weights)
    check_rank("pearson", "prediction", prediction, 1, form="[batch]")
    check_floating("pearson", prediction=prediction, target=target)
    check_options("pearson", mask, weights, "mean")
    dtype, (prediction, target) = prediction.dtype, map(accurate, kept(mask, prediction, target))
    share = _shares(prediction, mask, weights)
    p, t = _centred(prediction, share), _centred(target, share)
    covariance = (share * p * t).sum()
    deviations = ((share * p.square()).sum() + eps).sqrt(), ((share * t.square()).sum() + eps).sqrt()
    return -(covariance / deviations[0] / deviations[1]).to(dtype)  # the product of both may overflow


@one_step
def sharpe(
    positions: Float[Tensor, "time *assets"],
    returns: Float[Tensor, "time *assets"],
    *,
    periods: float = 1.0,
    eps: float = 1e-8,
    mask: Bool[Tensor, " time"] | None = None,
    weights: Float[Tensor, " time"] | None = None,
) -> Float[Tensor, ""]:
    """Minus the Sharpe ratio of the return that the positions earn, sqrt(periods)*mean/std over time.

    The return of a period is sum(positions*returns) over assets; std is that of the population, sqrt(var + eps).

    Args:
        positions: Held during each period: [time] or [time, assets].
        returns: Relative change of price over the same period, of the same shape.
        periods: Periods in a year, to annualise (252 for trading days); above 0.
        eps: Added to the variance; above 0.

    Raises:
        ShapeError: Shapes differ, or have another rank.
        ValueError: An option is out of range.

    Source: Sharpe 1966, Journal of Business 39(1), without a riskless rate.
    """
    check_number("sharpe", "periods", periods, 0)
    check_number("sharpe", "eps", eps, 0)
    check_same("sharpe", positions=positions, returns=returns)
    check_rank("sharpe", "positions", positions, 1, 2, form="[time] or [time, assets]")
    check_floating("sharpe", positions=positions, returns=returns)
    time = positions if positions.dim() == 1 else positions[:, 0]
    check_same("sharpe", time=time, mask=mask, weights=weights)
    check_options("sharpe", mask, weights, "mean")
    rows = mask if mask is None or positions.dim() == 1 else mask.unsqueeze(-1)
    dtype, (positions, returns) = positions.dtype, map(accurate, kept(rows, positions, returns))
    earned = positions * returns
    earned = earned if earned.dim() == 1 else earned.sum(1)
    share = _shares(earned, mask, weights)
    mean = (share * earned).sum()
    variance = (share * (earned - mean).square()).sum()
    return (-mean * periods**0.5 / (variance + eps).sqrt()).to(dtype)


def _centred(values: Tensor, share: Tensor) -> Tensor:
    """Less their mean; twice, for the first mean of numbers far from 0 is rounded in their unit."""
    values = values - (share * values).sum()
    return values - (share * values).sum()


def _shares(like: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
    """Weights that sum to 1 over what the mask keeps; all 0 where it keeps nothing."""
    share = torch.ones_like(like) if weights is None else weights.to(like.dtype)
    if mask is not None:
        share = torch.where(mask, share, share.new_zeros(()))
    total = share.sum()
    return share / torch.where(total > 0, total, torch.ones_like(total))
