"""Losses of numbers against numbers. Prediction and target have one shape, whatever it is."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shaped.losses.checks import (
    Reduction,
    check_floating,
    check_number,
    check_options,
    check_same,
    kept,
    one_step,
    reduced,
)


@one_step
def mse(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Mean squared error, (prediction - target)**2, in the target's unit squared.

    Raises:
        ShapeError: Shapes or dtypes differ; nothing is broadcast. In a proof: ProofError.
        ValueError: `reduction` is unknown.
    """
    prediction, target = _ready("mse", prediction, target, mask, weights, reduction)
    return reduced((prediction - target).square(), mask, weights, reduction)


@one_step
def mae(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Mean absolute error, |prediction - target|, in the target's unit. Raises as `mse`."""
    prediction, target = _ready("mae", prediction, target, mask, weights, reduction)
    return reduced((prediction - target).abs(), mask, weights, reduction)


@one_step
def huber(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    delta: float = 1.0,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Huber's loss: e**2/2 where |e| <= delta, delta*(|e| - delta/2) beyond, with e = prediction - target.

    Args:
        delta: Where the square becomes a line, in the target's unit; above 0.

    Raises:
        ShapeError, ValueError: As `mse`.

    Source: Huber 1964, Annals of Mathematical Statistics 35(1); as torch.nn.HuberLoss.
    """
    check_number("huber", "delta", delta, 0)
    prediction, target = _ready("huber", prediction, target, mask, weights, reduction)
    error = (prediction - target).abs()
    inner = error.clamp(max=delta)
    return reduced(inner * (error - 0.5 * inner), mask, weights, reduction)


@one_step
def quantile(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    q: float = 0.5,
    mask: Bool[Tensor, "*shape"] | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""]:
    """Pinball loss, whose minimum is the q-th quantile: q*e where e = target - prediction is positive, (q - 1)*e else.

    Args:
        q: The quantile, above 0 and below 1; at 0.5 it is half of `mae`.

    Raises:
        ShapeError, ValueError: As `mse`.

    Source: Koenker & Bassett 1978, Econometrica 46(1).
    """
    check_number("quantile", "q", q, 0, 1)
    prediction, target = _ready("quantile", prediction, target, mask, weights, reduction)
    error = target - prediction
    return reduced(torch.maximum(q * error, (q - 1) * error), mask, weights, reduction)


def _ready(
    loss: str, prediction: Tensor, target: Tensor, mask: Tensor | None, weights: Tensor | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Prediction and target, checked, with zeros where the mask is False."""
    check_same(loss, prediction=prediction, target=target, mask=mask, weights=weights)
    check_floating(loss, prediction=prediction, target=target)
    check_options(loss, mask, weights, reduction)
    prediction, target = kept(mask, prediction, target)
    return prediction, target
