"""Metrics by name: torchmetrics' and your own, over predictions and targets, or in the evaluation of a loop.

    computer = MetricComputer("accuracy", "f1", "auroc")
    computer.compute(logits, classes)                                    # {"accuracy": 0.91, ...}
    Loop(trainer, metrics=computer.scored(predict))                      # predict(params, *batch) -> predictions

Predictions for classes are logits: [..., classes] against whole numbers [...], or one logit for each of two classes, of
the targets' shape. Precision, recall, F1 and AUROC of more than two classes are unweighted means over the classes.
Metrics of numbers take two tensors of one shape. Nothing is broadcast.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shaped.errors import ShapedError, ShapeError
from shaped.metrics import Metric, Scored
from shaped.workflow.registry import metrics as registry


@dataclass(frozen=True)
class Named:
    """A class of torchmetrics by name, with what it is made with.

    Attributes:
        about: What it is, in a line.
        kind: "classes" (predictions are logits) or "numbers".
    """

    about: str
    cls: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Metric:
        """A fresh metric."""
        return _OfClasses(self) if self.kind == "classes" else _OfNumbers(self)

    def torchmetrics(self, **more: Any) -> Any:
        """The object of torchmetrics. Raises ShapedError where torchmetrics is not installed."""
        try:
            import torchmetrics
        except ImportError:
            raise ShapedError(f'{self.cls} is torchmetrics\': pip install "shaped-trainer[metrics]"') from None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all targets", category=UserWarning)
            return getattr(torchmetrics, self.cls)(**self.options, **more)


class _OfClasses:
    """A classification metric whose task and number of classes are read from the first predictions."""

    def __init__(self, named: Named) -> None:
        self._named, self._classes = named, 0
        self._metric: Any = None
        self._nan = False

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        classes = _classes(predictions, targets)
        if not targets.numel():
            return
        if self._metric is None:
            task: dict[str, Any] = (
                {"task": "binary"} if classes == 2 else {"task": "multiclass", "num_classes": classes}
            )
            made = {k: v for k, v in self._named.options.items() if k != "average" or classes > 2}
            self._metric = replace(self._named, options=made).torchmetrics(**task).to(predictions.device)
            self._classes = classes
        elif classes != self._classes:
            raise ShapeError(f"{self._named.cls}: predictions of {classes} classes after some of {self._classes}")
        if not 0 <= targets.min() <= targets.max() < classes:
            said = f"{targets.min().item():g} to {targets.max().item():g}"
            raise ValueError(f"{self._named.cls}: targets are {said}; they are classes from 0 to {classes - 1}")
        if targets.is_floating_point() and bool((targets != targets.round()).any()):
            raise ValueError(f"{self._named.cls}: targets are numbers between the classes; they are classes from 0 on")
        self._nan = self._nan or bool(predictions.isnan().any())
        self._metric.update(*_probabilities(predictions, targets))

    def compute(self) -> Any:
        return self._metric.compute() if self._metric is not None and not self._nan else float("nan")

    def reset(self) -> None:
        self._metric, self._nan = None, False


class _OfNumbers:
    """A regression metric."""

    def __init__(self, named: Named) -> None:
        self._named = named
        self._metric: Any = None
        self._nan = False

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        if predictions.shape != targets.shape:
            raise ShapeError(f"{self._named.cls}: {list(predictions.shape)} against {list(targets.shape)}")
        if self._metric is None:
            self._metric = self._named.torchmetrics().to(predictions.device)
        self._nan = self._nan or bool(predictions.isnan().any() | targets.isnan().any())
        self._metric.update(predictions.flatten().float(), targets.flatten().float())

    def compute(self) -> Any:
        return self._metric.compute() if self._metric is not None and not self._nan else float("nan")

    def reset(self) -> None:
        self._metric, self._nan = None, False


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
        predictions, targets = (torch.cat([part[i] for part in self._parts]) for i in (0, 1))
        return float(self._function(predictions, targets))

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

    def register(self, name: str, metric: Any) -> None:
        """Add a metric, as for `own`.

        Raises:
            ShapedError: The name is used, or it is no metric.
        """
        if name in self._metrics or name == "loss":
            raise ShapedError(f"there is a metric named `{name}` already")
        self._metrics[name] = _maker(name, metric)

    def unregister(self, name: str) -> None:
        """Leave a metric out. Raises ShapedError where there is none of that name."""
        if self._metrics.pop(name, None) is None:
            raise ShapedError(f"no metric `{name}`; there are {', '.join(self._metrics) or 'none'}")

    @torch.no_grad()
    def compute(self, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Every metric over these predictions and targets.

        Args:
            predictions: For classes logits, never probabilities; for numbers numbers. Where one is NaN, torchmetrics'
                metrics are too.
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
        if importlib.util.find_spec("torchmetrics") is None:  # said now, not after an epoch
            raise ShapedError(f'{metric.cls} is torchmetrics\': pip install "shaped-trainer[metrics]"')
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


def _classes(predictions: Tensor, targets: Tensor) -> int:
    if predictions.shape == targets.shape:
        return 2
    if predictions.dim() and predictions.shape[:-1] == targets.shape and predictions.shape[-1] > 1:
        return predictions.shape[-1]
    raise ShapeError(
        f"predictions {list(predictions.shape)} against targets {list(targets.shape)}: expected [..., classes] against "
        "[...], or one logit for each target"
    )


def _probabilities(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, since torchmetrics guesses from the values whether it is given logits."""
    if predictions.shape == targets.shape:
        return predictions.flatten().float().sigmoid(), targets.flatten().long()
    rows = predictions.reshape(-1, predictions.shape[-1]).float().softmax(-1)
    return rows[:, 1] if rows.shape[1] == 2 else rows, targets.flatten().long()


def perplexity(predictions: Tensor, targets: Tensor) -> Tensor:
    """Exponential of the mean cross-entropy of logits [..., classes]."""
    rows = predictions.reshape(-1, predictions.shape[-1]).float()
    return torch.nn.functional.cross_entropy(rows, targets.flatten()).exp()


_MACRO = {"average": "macro"}
accuracy = Named("Share of examples whose class is right", "Accuracy", "classes")
auroc = Named("Area under the ROC curve, one class against the rest", "AUROC", "classes")
average_precision = Named("Area under the curve of precision over recall", "AveragePrecision", "classes")
f1 = Named("Harmonic mean of precision and recall", "F1Score", "classes", _MACRO)
mcc = Named("Matthews' correlation, from -1 to 1", "MatthewsCorrCoef", "classes")
precision = Named("Share of what was taken for a class that is of it", "Precision", "classes", _MACRO)
recall = Named("Share of a class that was taken for it", "Recall", "classes", _MACRO)
mae = Named("Mean absolute error, in the target's unit", "MeanAbsoluteError", "numbers")
mape = Named("Mean absolute error as a share of the target", "MeanAbsolutePercentageError", "numbers")
mse = Named("Mean squared error, in the target's unit squared", "MeanSquaredError", "numbers")
pearson = Named("Pearson's correlation", "PearsonCorrCoef", "numbers")
r2 = Named("Share of the target's variance that is explained", "R2Score", "numbers")
rmse = Named("Root of the mean squared error, in the target's unit", "MeanSquaredError", "numbers", {"squared": False})
spearman = Named("Correlation of the ranks", "SpearmanCorrCoef", "numbers")
