"""Metrics of numbers: the same in every unit and from every origin, whatever the batches were.

All is float64. What squares is taken from the first value and scaled by a power of 2 before, so neither a large mean
nor a small unit costs digits; batches are merged by their means. Where a metric is undefined it is NaN: R2 and
correlations of constant data, and the share of an error in a target of 0.

Source: Chan, Golub & LeVeque 1983, The American Statistician 37(3), for merging.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from shaped.errors import ShapeError
from shaped.metrics import Metric

Error = Literal["mae", "mape", "mse", "rmse"]


def pair_of_numbers(metric: str, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both flat on the CPU, in float64; in int64 where both are whole numbers whose differences are exact there.

    Raises:
        ShapeError: Their shapes differ. ValueError: One is no plain tensor of real numbers.
    """
    if predictions.shape != targets.shape:
        raise ShapeError(f"{metric}: {list(predictions.shape)} against {list(targets.shape)}")
    refuse_odd(metric, predictions, targets)
    pair = predictions.detach().flatten().cpu(), targets.detach().flatten().cpu()
    exact = not any(side.is_floating_point() or _is_huge(side) for side in pair)
    wide = torch.int64 if exact else torch.float64
    return pair[0].to(wide), pair[1].to(wide)


def refuse_odd(metric: str, *tensors: Tensor) -> None:
    """Raise ValueError where one is no plain tensor of real numbers."""
    for t in tensors:
        kinds = {"complex": t.is_complex(), "quantized": t.is_quantized, "meta": t.is_meta}
        kinds[str(t.layout).removeprefix("torch.")] = t.layout is not torch.strided
        if odd := [kind for kind, so in kinds.items() if so]:
            raise ValueError(f"{metric}: predictions and targets are dense tensors of real numbers, not {odd[0]} ones")


def _is_huge(whole: Tensor) -> bool:
    """Whether a difference of two such numbers may leave int64."""
    return whole.dtype in (torch.int64, torch.uint64) and bool((whole.double().abs() >= 2.0**62).any())


class Errors:
    """Mean of |p - t|, |p - t|/|t| or (p - t)**2, or the root of the last."""

    def __init__(self, kind: Error) -> None:
        self._kind = kind
        self.reset()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        p, t = pair_of_numbers(self._kind, predictions, targets)
        errors = (p - t).double()
        if self._kind == "mape":
            errors = torch.where(t == 0, torch.nan, errors / t)
        self._sum.add(errors.abs(), squared=self._kind in ("mse", "rmse"))
        self._count += len(p)

    def compute(self) -> float:
        """The mean so far; NaN before the first example."""
        if not self._count:
            return math.nan
        mean, exponent = self._sum.value / self._count, self._sum.exponent
        return scaled(math.sqrt(mean), exponent // 2) if self._kind == "rmse" else scaled(mean, exponent)

    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = PowerSum(), 0


class R2:
    """1 - sum((p - t)**2) / sum((t - mean(t))**2); NaN where all targets are one number."""

    def __init__(self) -> None:
        self.reset()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        p, t = pair_of_numbers("r2", predictions, targets)
        self._errors.add((p - t).double(), squared=True)
        self._targets.add(t)

    def compute(self) -> float:
        """The value so far."""
        spread = self._targets.products[0][0]
        if not spread > 0:
            return math.nan
        return 1.0 - scaled(self._errors.value / spread, self._errors.exponent - 2 * self._targets.exponents[0])

    def reset(self) -> None:
        """Forget all batches."""
        self._errors, self._targets = PowerSum(), Moments(1)


class OverOutputs:
    """The mean of a metric over the outputs: of `[examples, outputs]` each column is one, all else is one output."""

    def __init__(self, make: Callable[[], Metric]) -> None:
        self._make = make
        self._each: list[Metric] = []

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in. Raises ShapeError where it has another number of outputs than the ones before."""
        several = predictions.dim() == 2 and predictions.shape == targets.shape and predictions.shape[1] > 1
        pairs = list(zip(predictions.T, targets.T, strict=True)) if several else [(predictions, targets)]
        each = self._each or [self._make() for _ in pairs]
        if len(each) != len(pairs):
            raise ShapeError(f"a batch of {len(pairs)} outputs after one of {len(each)}")
        for metric, pair in zip(each, pairs, strict=True):
            metric.update(*pair)
        self._each = each

    def compute(self) -> float:
        """The value so far; NaN where it is so of one output."""
        return sum(float(metric.compute()) for metric in self._each) / len(self._each) if self._each else math.nan

    def reset(self) -> None:
        """Forget all batches."""
        self._each = []


class Pearson:
    """Pearson's correlation, from -1 to 1; NaN where one side is constant."""

    def __init__(self) -> None:
        self.reset()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        self._moments.add(*pair_of_numbers("pearson", predictions, targets))

    def compute(self) -> float:
        """The value so far."""
        (pp, pt), (_, tt) = self._moments.products
        if not pp * tt > 0:
            return math.nan
        return max(-1.0, min(1.0, pt / math.sqrt(pp * tt)))

    def reset(self) -> None:
        """Forget all batches."""
        self._moments = Moments(2)


class Spearman:
    """Pearson's correlation of the ranks; equal numbers share their mean rank. Keeps all numbers."""

    def __init__(self) -> None:
        self.reset()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        self._parts.append(pair_of_numbers("spearman", predictions, targets))

    def compute(self) -> float:
        """The value so far."""
        sides = [torch.cat(side) for side in zip(*self._parts, strict=True)]
        if not sides or any(bool(side.isnan().any()) for side in sides):
            return math.nan
        correlation = Pearson()
        correlation.update(*map(mean_ranks, sides))
        return correlation.compute()

    def reset(self) -> None:
        """Forget all batches."""
        self._parts: list[tuple[Tensor, Tensor]] = []


def mean_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, float64; equal values have the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]


def scaled(value: float, exponent: int) -> float:
    """value * 2**exponent, infinite where it is too large."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def exponent_of(values: Tensor) -> int:
    """The power of 2 just above the largest absolute value; 0 where all are 0 or one is not finite."""
    largest = values.abs().max().item() if values.numel() else 0.0
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def shrunk(values: Tensor, exponent: int) -> Tensor:
    """values / 2**exponent, exact unless it underflows; in two factors, since one alone may be out of range."""
    half = exponent // 2
    return values * math.ldexp(1.0, -half) * math.ldexp(1.0, half - exponent)


class PowerSum:
    """A sum as value * 2**exponent, so that squares neither overflow nor vanish."""

    def __init__(self) -> None:
        self.value, self.exponent = 0.0, 0
        self._empty = True

    def add(self, values: Tensor, *, squared: bool) -> None:
        """Add numbers, or their squares."""
        exponent = exponent_of(values)
        small = shrunk(values, exponent)
        total = float((small * small if squared else small).sum())
        self._merge(total, 2 * exponent if squared else exponent)

    def _merge(self, value: float, exponent: int) -> None:
        if self._empty or not self.value:
            self.value, self.exponent, self._empty = value + self.value, exponent, False
        elif value:
            top = max(exponent, self.exponent)
            self.value = scaled(self.value, self.exponent - top) + scaled(value, exponent - top)
            self.exponent = top


class Moments:
    """Sums of products of deviations from the mean, of one quantity or of two.

    Attributes:
        products: The sum of deviations of i times those of j, over 2**(exponents[i] + exponents[j]).
        exponents: The scale of each quantity.
    """

    def __init__(self, width: int) -> None:
        self.exponents = [0] * width
        self.products = [[0.0] * width for _ in range(width)]
        self._count = 0
        self._origin: list[float] = [0.0] * width  # an int of whole numbers
        self._means = [0.0] * width

    def add(self, *values: Tensor) -> None:
        """Merge a batch of each quantity, float64 or int64 and of one length."""
        more = len(values[0])
        if not more:
            return
        if not self._count:
            self._origin = [v[0].item() for v in values]
        moved = [(v - origin).double() for v, origin in zip(values, self._origin, strict=True)]
        self._rescale([exponent_of(m) for m in moved])
        small = [shrunk(m, e) for m, e in zip(moved, self.exponents, strict=True)]
        means = [float(s.mean()) for s in small]
        rest = [s - mean for s, mean in zip(small, means, strict=True)]
        left = [float(r.sum()) for r in rest]  # 0 but for rounding of the mean
        total, steps = self._count + more, [b - a for a, b in zip(self._means, means, strict=True)]
        for i, row in enumerate(self.products):
            for j in range(len(row)):
                own = float((rest[i] * rest[j]).sum()) - left[i] * left[j] / more
                row[j] += own + steps[i] * steps[j] * (self._count * more / total)
        self._means = [a + step * (more / total) for a, step in zip(self._means, steps, strict=True)]
        self._count = total

    def _rescale(self, exponents: Sequence[int]) -> None:
        """Go on in the larger of the present scale and a batch's."""
        new = [max(a, b) if self._count else b for a, b in zip(self.exponents, exponents, strict=True)]
        down = [a - b for a, b in zip(self.exponents, new, strict=True)]
        self._means = [scaled(mean, d) for mean, d in zip(self._means, down, strict=True)]
        self.products = [
            [scaled(product, down[i] + down[j]) for j, product in enumerate(row)] for i, row in enumerate(self.products)
        ]
        self.exponents = new
