"""Metrics by name, over predictions and targets, or in the evaluation of a loop.

    computer = MetricComputer("accuracy", "f1", "auroc")
    computer.compute(logits, classes)                                    # {"accuracy": 0.91, ...}
    Loop(trainer, metrics=computer.scored(predict))                      # predict(params, *batch) -> predictions

Predictions for classes are logits: [..., classes] against whole numbers [...], or one logit for each of two classes, of
the targets' shape. Precision, recall, F1 and areas of more than two classes are unweighted means over the classes that
occur. Metrics of numbers take two tensors of one shape; of [examples, outputs], R2, RMSE and correlations are the mean
over the outputs. Nothing is broadcast, and all is computed in float64.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shaped.arguments import checked, real
from shaped.errors import ShapedError, ShapeError
from shaped.metrics import Metric, Scored
from shaped.workflow.classes import Areas, Counts, Perplexity
from shaped.workflow.numbers import R2, Errors, OverOutputs, Pearson, Spearman
from shaped.workflow.registry import metrics as registry


@dataclass(frozen=True)
class Named:
    """A metric by name.

    Attributes:
        about: What it is, in a line.
        make: Makes a fresh one.
    """

    about: str
    make: Callable[[], Metric]


class Gathered:
    """A plain function of all predictions and targets at once, whatever the batches were."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._function = function
        self.reset()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Keep a batch, on the CPU."""
        self._parts.append((predictions.detach().cpu(), targets.detach().cpu()))

    def compute(self) -> float:
        """The function's value over all that was kept; NaN where nothing was."""
        if not self._parts:
            return float("nan")
        for side in (0, 1):
            if len(shapes := {tuple(part[side].shape[1:]) for part in self._parts}) > 1:
                raise ShapeError(
                    f"batches of the shapes {sorted(shapes)} without their first axes cannot be put together for a "
                    "function of all examples at once: give an object with update, compute and reset"
                )
        predictions, targets = (torch.cat([part[i] for part in self._parts]) for i in (0, 1))
        return real("what the function of all examples gave", self._function(predictions, targets))

    def reset(self) -> None:
        """Forget all batches."""
        self._parts: list[tuple[Tensor, Tensor]] = []


class MetricComputer:
    """Some metrics by name.

    Args:
        names: In the registry `metrics`; `shaped list metrics` shows them.
        own: Further ones, by name: a function `f(predictions, targets) -> number` over all examples at once, or an
            object with update, compute and reset (torchmetrics' are), which is copied.

    Raises:
        ShapedError: A name is unknown (the nearest is suggested) or used twice, or something is no metric.
    """

    @checked
    def __init__(self, *names: str, **own: Any) -> None:
        self._metrics: dict[str, Callable[[], Metric]] = {}
        for name in names:
            self.register(name, registry.get(name))
        for name, metric in own.items():
            self.register(name, metric)

    @property
    def available(self) -> tuple[str, ...]:
        """The names that `compute` gives."""
        return tuple(self._metrics)

    @checked
    def register(self, name: str, metric: Any) -> None:
        """Add a metric, as for `own`.

        Raises:
            ShapedError: The name is used, or it is no metric.
        """
        if name in self._metrics or name == "loss":
            raise ShapedError(f"there is a metric named `{name}` already")
        self._metrics[name] = _maker(name, metric)

    @checked
    def unregister(self, name: str) -> None:
        """Leave a metric out. Raises ShapedError where there is none of that name."""
        if self._metrics.pop(name, None) is None:
            raise ShapedError(f"no metric `{name}`; there are {', '.join(self._metrics) or 'none'}")

    @torch.no_grad()
    def compute(self, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Every metric over these predictions and targets.

        Args:
            predictions: For classes logits, never probabilities; for numbers numbers. Where one is NaN, the metric is.
            targets: Classes from 0 on, or numbers.

        Raises:
            ShapeError: Their shapes do not go together, or they are no tensors. ValueError: A target is no class.
        """
        kinds = [type(given).__name__ for given in (predictions, targets) if not torch.is_tensor(given)]
        if kinds:
            raise ShapeError(f"predictions and targets are tensors, not {' and '.join(kinds)}")
        found = {}
        for name, make in self._metrics.items():
            metric = make()
            metric.update(predictions, targets)
            found[name] = float(metric.compute())
        return found

    @checked
    def scored(self, predict: Callable[..., Any], targets: int = -1) -> dict[str, Scored]:
        """The metrics for `Loop(metrics=...)`: each batch is predicted once for all of them.

        Args:
            predict: `predict(params, *inputs)` over a batch without its targets.
            targets: Where in the batch the targets are; last by default.
        """
        shared = _Shared(predict, targets)
        return {name: Scored(make(), partial(shared, name)) for name, make in self._metrics.items()}


class _Shared:
    """Predictions of the batch that is being evaluated, computed for the first metric that asks and kept for the rest.

    A metric that asks a second time is at another batch, or at the same one with other parameters.
    """

    def __init__(self, predict: Callable[..., Any], targets: int) -> None:
        self._predict, self._place = predict, targets
        self._batch: tuple[Any, ...] = ()
        self._asked: set[str] = set()
        self._found: Any = None

    def __call__(self, name: str, params: Any, *batch: Tensor) -> tuple[Any, Tensor]:
        place = self._place % len(batch)
        same = len(batch) == len(self._batch) and all(a is b for a, b in zip(batch, self._batch, strict=True))
        if not same or name in self._asked:
            self._batch, self._asked = batch, set()
            self._found = self._predict(params, *batch[:place], *batch[place + 1 :])
        self._asked.add(name)
        return self._found, batch[place]


def _maker(name: str, metric: Any) -> Callable[[], Metric]:
    """A function that makes a fresh metric object."""
    if isinstance(metric, Named):
        return metric.make
    if isinstance(metric, type) and isinstance(metric, Metric):
        made: Callable[[], Metric] = metric
        return made
    if isinstance(metric, Metric):
        return lambda: copy.deepcopy(metric)
    if callable(metric):
        return lambda: Gathered(metric)
    raise ShapedError(
        f"metric `{name}` is a {type(metric).__name__}: pass f(predictions, targets), or an object with update, "
        "compute and reset"
    )


accuracy = Named("Share of examples whose class is right", partial(Counts, "accuracy"))
auroc = Named("Area under the ROC curve, one class against the rest", partial(Areas, "auroc"))
average_precision = Named("Area under the curve of precision over recall", partial(Areas, "average_precision"))
f1 = Named("Harmonic mean of precision and recall", partial(Counts, "f1"))
mcc = Named("Matthews' correlation, from -1 to 1", partial(Counts, "mcc"))
precision = Named("Share of what was taken for a class that is of it", partial(Counts, "precision"))
recall = Named("Share of a class that was taken for it", partial(Counts, "recall"))
mae = Named("Mean absolute error, in the target's unit", partial(Errors, "mae"))
mape = Named("Mean absolute error as a share of the target", partial(Errors, "mape"))
mse = Named("Mean squared error, in the target's unit squared", partial(Errors, "mse"))
pearson = Named("Pearson's correlation", partial(OverOutputs, Pearson))
perplexity = Named("Exponential of the mean cross-entropy; targets of -100 have no part", Perplexity)
r2 = Named("Share of the target's variance that is explained", partial(OverOutputs, R2))
rmse = Named("Root of the mean squared error, in the target's unit", partial(OverOutputs, partial(Errors, "rmse")))
spearman = Named("Correlation of the ranks", partial(OverOutputs, Spearman))
