"""Metrics of classes over logits: exact counts, and areas under curves of exact ranks.

A class that no target is of has no area, and no part in a mean over classes; where only one class occurs there is none,
and the value is NaN, with a warning. Precision, recall and F1 are 0/0 for a class that neither occurs nor is predicted,
which has no part in their means (NaN for two classes); a class that is never predicted has a precision of 0, and one
that is predicted and never occurs a recall of 0, as in scikit-learn.

Ranks are those of log-odds in float64: probabilities of float32 are 1.0 from logits of 17 on, and equal.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from shaped.errors import ShapeError
from shaped.workflow.numbers import mean_ranks, refuse_odd

Count = Literal["accuracy", "precision", "recall", "f1", "mcc"]
Area = Literal["auroc", "average_precision"]


class OfClasses:
    """Checks what every metric of classes takes; the number of classes is read from the first predictions."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.classes: int
        self.undefined: bool
        self.reset()

    def taken(self, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits as [rows, classes] (or [rows] of two classes) and targets [rows], on the CPU; None of an empty batch.

        Raises:
            ShapeError: Their shapes do not go together, or with those before. ValueError: A target is no class.
        """
        refuse_odd(self._name, predictions, targets)
        classes, one = classes_of(predictions, targets), predictions.shape == targets.shape
        if not targets.numel():
            return None
        if self.classes not in (0, classes):
            raise ShapeError(f"{self._name}: predictions of {classes} classes after some of {self.classes}")
        self.classes = classes
        targets = targets.detach().flatten().cpu()
        if not 0 <= targets.min() <= targets.max() < classes:
            said = f"{targets.min().item():g} to {targets.max().item():g}"
            raise ValueError(f"{self._name}: targets are {said}; they are classes from 0 to {classes - 1}")
        if targets.is_floating_point() and bool((targets != targets.round()).any()):
            raise ValueError(f"{self._name}: targets are numbers between the classes; they are classes from 0 on")
        rows = predictions.detach().cpu()
        rows = (rows.flatten() if one else rows.reshape(-1, classes)).double()
        self.undefined = self.undefined or bool(rows.isnan().any())
        return rows, targets.long()

    def reset(self) -> None:
        """Forget all batches."""
        self.classes = 0
        self.undefined = False


class Counts(OfClasses):
    """What is right, taken for a class, and of it, by class."""

    def __init__(self, name: Count) -> None:
        super().__init__(name)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        taken = self.taken(predictions, targets)
        if taken is None:
            return
        rows, true = taken
        guess = (rows > 0).long() if rows.dim() == 1 else rows.argmax(-1)
        for kept, found in zip(
            (self._right, self._guessed, self._true), (true[guess == true], guess, true), strict=True
        ):
            counts = torch.bincount(found, minlength=self.classes).tolist()
            kept[:] = [a + b for a, b in zip(kept or [0] * self.classes, counts, strict=True)]

    def compute(self) -> float:
        """The value so far; NaN where a prediction was, or where it is undefined."""
        total = sum(self._true)
        if not total or self.undefined:
            return math.nan
        if self._name == "accuracy":
            return sum(self._right) / total
        if self._name == "mcc":
            return self._correlation(total)
        places = [1] if self.classes == 2 else range(self.classes)
        known = [v for i in places if (v := self._of(self._right[i], self._guessed[i], self._true[i])) is not None]
        return math.fsum(known) / len(known) if known else math.nan

    def _of(self, right: int, guessed: int, true: int) -> float | None:
        if not guessed and not true:
            return None
        below = {"precision": guessed, "recall": true}.get(self._name, guessed + true)
        return (2 * right if self._name == "f1" else right) / below if below else 0.0

    def _correlation(self, total: int) -> float:
        """Matthews' correlation; 0 where one class is always predicted, NaN where only one occurs."""
        crossed = sum(a * b for a, b in zip(self._guessed, self._true, strict=True))
        guessed, true = (total * total - sum(n * n for n in counts) for counts in (self._guessed, self._true))
        if not true:
            return math.nan
        above = sum(self._right) * total - crossed
        return above / math.sqrt(guessed * true) if guessed else 0.0

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._right: list[int] = []
        self._guessed: list[int] = []
        self._true: list[int] = []


class Areas(OfClasses):
    """Areas under curves, of one class against the rest; keeps all log-odds."""

    def __init__(self, name: Area) -> None:
        super().__init__(name)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        taken = self.taken(predictions, targets)
        if taken is not None:
            rows, true = taken
            odds = log_odds(rows)
            self.undefined = self.undefined or bool(odds.isnan().any())
            self._parts.append((odds, true))

    def compute(self) -> float:
        """The value so far, a mean over the classes that occur; NaN where only one does."""
        if not self._parts or self.undefined:
            return math.nan
        odds, true = (torch.cat(part) for part in zip(*self._parts, strict=True))
        areas = [*self._areas(odds, true)]
        if areas:
            return math.fsum(areas) / len(areas)
        warnings.warn(
            f"{self._name} is undefined where only one class occurs: all {len(true)} targets are {int(true[0])}",
            stacklevel=2,
        )
        return math.nan

    def _areas(self, odds: Tensor, true: Tensor) -> Iterator[float]:
        area = _roc if self._name == "auroc" else _precision
        for place in [1] if self.classes == 2 else range(self.classes):
            mine = true == place
            if bool(mine.any()) and not bool(mine.all()):
                yield area(odds if odds.dim() == 1 else odds[:, place], mine)

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._parts: list[tuple[Tensor, Tensor]] = []


class Perplexity(OfClasses):
    """Exponential of the mean cross-entropy in nats; targets of -100 have no part, as in torch."""

    def __init__(self) -> None:
        super().__init__("perplexity")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take a batch in."""
        refuse_odd(self._name, predictions, targets)
        classes_of(predictions, targets)
        counts = targets != -100
        taken = self.taken(predictions[counts], targets[counts])
        if taken is None:
            return
        rows, true = taken
        right = rows * (2 * true - 1) if rows.dim() == 1 else rows.log_softmax(1).gather(1, true[:, None])
        self._lost -= float((logsigmoid(right) if rows.dim() == 1 else right).sum())
        self._count += len(true)

    def compute(self) -> float:
        """The value so far; NaN where a prediction was, or before the first target."""
        if not self._count or self.undefined:
            return math.nan
        mean = self._lost / self._count
        return math.exp(mean) if mean < 709 else math.inf

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._lost, self._count = 0.0, 0


def _roc(scores: Tensor, mine: Tensor) -> float:
    """The share of pairs of one and another that are in order; equal ones count half."""
    n = int(mine.sum())
    above = float(mean_ranks(scores)[mine].sum()) - n * (n + 1) / 2
    return above / (n * (len(mine) - n))


def _precision(scores: Tensor, mine: Tensor) -> float:
    """Sum of precision times the gain in recall, over the distinct scores downwards."""
    order = scores.argsort(descending=True)
    scores, found = scores[order], mine[order].cumsum(0).double()
    last = torch.cat([(scores[1:] != scores[:-1]).nonzero().flatten(), torch.tensor([len(scores) - 1])])
    gained = torch.diff(found[last], prepend=torch.zeros(1, dtype=torch.float64))
    return float((gained * found[last] / (last + 1).double()).sum() / found[-1])


def log_odds(logits: Tensor) -> Tensor:
    """log(p/(1 - p)) of each class: [rows], of the second one, for two classes, [rows, classes] for more."""
    if logits.dim() == 1:
        return logits
    if logits.shape[1] == 2:
        return logits[:, 1] - logits[:, 0]
    # Sorted, so that rows whose other classes differ in their order alone are equal to the last bit.
    ordered, place = logits.sort(dim=1)
    none = ordered.new_full((len(ordered), 1), -math.inf)
    before = torch.cat([none, ordered.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([ordered.flip(1).logcumsumexp(1).flip(1)[:, 1:], none], 1)
    return torch.empty_like(logits).scatter_(1, place, ordered - torch.logaddexp(before, after))


def classes_of(predictions: Tensor, targets: Tensor) -> int:
    """How many classes logits are of.

    Raises:
        ShapeError: They do not go with the targets.
    """
    if predictions.shape == targets.shape:
        return 2
    if predictions.dim() and predictions.shape[:-1] == targets.shape and predictions.shape[-1] > 1:
        return predictions.shape[-1]
    raise ShapeError(
        f"predictions {list(predictions.shape)} against targets {list(targets.shape)}: expected [..., classes] against "
        "[...], or one logit for each target"
    )
