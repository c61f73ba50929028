"""Metrics, and the evaluation of a loss over data.

A metric is anything with `update`, `compute` and `reset` (torchmetrics' objects are), or a plain function
`metric(params, *batch) -> number`, whose mean is over the samples that the trainer counts, as that of the loss is.
Where a trainer is over an nn.Module, `params` is the module.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from shaped.arguments import OWN, checked, keyed, only_tensors, real
from shaped.checkpoint.generators import generators_kept
from shaped.data.feed import Feed, by_position
from shaped.data.sharing import Share, SharedFeed, cut, feed_of
from shaped.errors import ShapedError, ShapeError, StateError
from shaped.ranks import ALONE, Peers
from shaped.trainer import ScalarTrainer


@runtime_checkable
class Metric(Protocol):
    """What torchmetrics calls a metric."""

    def update(self, *values: Any) -> Any: ...

    def compute(self) -> Any: ...

    def reset(self) -> Any: ...


class Mean:
    """A weighted mean of numbers; NaN before the first.

    Attributes:
        total: The sum of the numbers, each times its weight.
        weight: The sum of the weights.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, value: float | Tensor, weight: float = 1.0) -> None:
        """Add a number; a weight of 0 leaves it out."""
        value, weight = real("value", value), real("weight", weight)
        if weight:
            self.total += value * weight
            self.weight += weight

    def compute(self) -> float:
        """The mean so far."""
        return self.total / self.weight if self.weight else float("nan")

    def reset(self) -> None:
        """Forget all numbers."""
        self.total, self.weight = 0.0, 0.0


class MovingAverage:
    """An exponential moving average that begins as a plain mean: the n-th number weighs max(weight, 1/n).

    Args:
        weight: Of the newest number in the long run, above 0 and at most 1; it remembers about 1/weight numbers.

    Raises:
        ValueError: `weight` is out of range.
    """

    @checked
    def __init__(self, weight: float = 0.01) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"weight is {weight!r}; it is a number above 0 and at most 1")
        self.weight = weight
        self.reset()

    def update(self, value: float | Tensor) -> None:
        """Add a number."""
        value = real("value", value)
        self._count += 1
        self._value += (value - self._value) * max(self.weight, 1 / self._count)

    def compute(self) -> float:
        """The average; NaN before the first number."""
        return self._value if self._count else float("nan")

    def reset(self) -> None:
        """Forget all numbers."""
        self._value, self._count = 0.0, 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"value": self._value, "count": self._count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a saved state. Raises StateError where it is none."""
        keyed("state", state, "value", "count", error=StateError)
        self._value, self._count = float(state["value"]), int(state["count"])


class Scored:
    """A metric object over predictions: `predict(params, *batch)` gives what its `update` takes.

        Scored(torchmetrics.Accuracy(task="multiclass", num_classes=10), lambda p, x, y: (logits(p, x), y))

    Args:
        metric: An object with update, compute and reset.
        predict: From parameters and a batch to the arguments of `update`, a tensor or a tuple.
    """

    @checked
    def __init__(self, metric: Metric, predict: Callable[..., Any]) -> None:
        self._metric, self._predict = metric, predict

    def add(self, params: Any, inputs: tuple[Any, ...], samples: float | None, peers: Peers = ALONE) -> None:
        """Let the metric see a batch: on several ranks that of each, in their order; None says that it does not count.

        A metric of torchmetrics sees this rank's alone, since it sums over the ranks itself.
        """
        failed, values = None, None
        try:
            if samples is not None:
                values = self._predict(params, *inputs)
                values = values if isinstance(values, tuple) else (values,)
        except Exception as error:
            failed = error
        if peers.size == 1 or getattr(self._metric, "sync_on_compute", False):
            if failed is not None:
                raise failed
            every = [values]
        else:
            every = peers.tell("a metric", pytree.tree_map_only(Tensor, Tensor.cpu, values), failed=failed)
        for seen in every:
            if seen is not None:
                self._metric.update(*seen)

    def compute(self) -> float:
        """The metric's value."""
        return float(self._metric.compute())

    def reset(self) -> None:
        """Forget all batches."""
        self._metric.reset()


class _Averaged:
    """A plain function, averaged over samples."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.mean = function, Mean()

    def add(self, params: Any, inputs: tuple[Any, ...], samples: float | None) -> None:
        if samples is not None:
            self.mean.update(self._function(params, *inputs), samples)

    def compute(self) -> float:
        return self.mean.compute()


@checked
@torch.no_grad()
def evaluate(
    trainer: ScalarTrainer,
    data: Any,
    metrics: Annotated[Mapping[str, Callable[..., Any] | Scored] | None, OWN] = None,
    *,
    between: Callable[..., None] = lambda: None,
    ignore: bool | Collection[str] = (),
) -> dict[str, float]:
    """The loss and metrics over one epoch of data, in eval mode, changing nothing.

    Args:
        trainer: Whose loss and parameters count.
        data: As a loop takes it; its first epoch is gone over.
        metrics: By name: a function `metric(params, *batch) -> number`, or `Scored(torchmetrics_object, predict)`.
        between: Called before each batch; what it raises ends the evaluation.
        ignore: Entries of batches that are mappings which no input has, and are left out; True for all such.

    Returns:
        `loss`, the mean over the samples of all batches as `trainer.count` has them, and each metric by name. A batch
        without samples counts for nothing; where no batch has any, the mean is NaN.

    Raises:
        DataError: There is no batch. ShapedError: A metric is none, or is named `loss`. ShapeError: A batch does not
        fit.
    """
    prepared = {name: _prepared(name, m) for name, m in keyed("metrics", {} if metrics is None else metrics).items()}
    signature, loss = trainer.proof.setting.signature, Mean()
    peers = trainer.peers
    _refuse_doubled(trainer, prepared)
    feed = feed_of(trainer, data, fit=lambda b: by_position(b, signature, ignore))
    model = _model(trainer, bool(prepared))
    training = [module for module in trainer.modules if module.training]

    def add(inputs: tuple[Any, ...], samples: float | None) -> None:
        loss.update(trainer.forward(*inputs), samples or 0.0)
        for metric in prepared.values():
            if isinstance(metric, Scored):
                metric.add(model, inputs, samples, peers)
            else:
                metric.add(model, inputs, samples)

    with generators_kept():
        try:
            for module in training:
                module.training = False
            _go_over(feed, trainer, between, add)
            means = [loss, *(metric.mean for metric in prepared.values() if isinstance(metric, _Averaged))]
            _sum(means, peers)
        finally:
            for module in training:
                module.training = True
            feed.close()
    return {"loss": loss.compute(), **{name: metric.compute() for name, metric in prepared.items()}}


def _go_over(
    feed: Feed,
    trainer: ScalarTrainer,
    between: Callable[..., None],
    add: Callable[[tuple[Any, ...], float | None], None],
) -> None:
    """Add each batch with its samples; on several ranks this one's rows, or with None a row that does not count."""
    if not isinstance(feed, SharedFeed):
        while (batch := feed.next()) is not None:
            between()
            add(batch.inputs, trainer.count(*batch.inputs))
        return
    signature, failed = trainer.proof.setting.signature, None
    asks: Callable[[], int] | None = getattr(between, "asks", None)
    while True:
        try:
            if asks is None and failed is None:
                between()
        except Exception as error:
            failed = error
        batch, asked = feed.take("a batch of an evaluation", asks() if asks is not None else 0, failed=failed)
        if signal := max(row[0] for row in asked):
            between(signal)
        if batch is None:
            return
        try:
            share = Share(batch, 1) if feed.local else cut(batch, signature, feed.rows)
            inputs = share.batch.inputs
            add(inputs, trainer.count(*inputs) if share.own else None)
        except Exception as error:  # told where the next batch is met for
            failed = error


def _sum(means: Sequence[Mean], peers: Peers) -> None:
    """Have each mean be over all ranks."""
    if peers.size > 1:
        told = peers.tell("the end of an evaluation", [(mean.total, mean.weight) for mean in means])
        for mean, parts in zip(means, zip(*told, strict=True), strict=True):
            mean.total, mean.weight = (math.fsum(part) for part in zip(*parts, strict=True))


def _refuse_doubled(trainer: ScalarTrainer, metrics: Mapping[str, Any]) -> None:
    """Refuse metrics over the predictions of all ranks where several make the same ones."""
    several = trainer.rows is not None and trainer.rows.parts < trainer.peers.size
    if several and any(isinstance(metric, Scored) for metric in metrics.values()):
        raise ShapedError(
            "Scored metrics take each rank's predictions, and ranks that have parts of one model make the same ones: "
            "evaluate them in one process from a checkpoint"
        )


def _model(trainer: ScalarTrainer, wanted: bool) -> Any:
    """What metrics are given beside a batch: parameters, or the module; whole ones where ranks hold parts."""
    if not trainer.parted:
        return trainer.modules[0] if trainer.modules else trainer.params
    if trainer.modules and wanted:
        raise ShapedError(
            "metrics over a module whose parameters are in parts over ranks are not done: train it with zero=0, or "
            "evaluate it in one process from a checkpoint"
        )
    return trainer.get_params() if wanted else None


def _prepared(name: str, metric: Any) -> Scored | _Averaged:
    if name == "loss":
        raise ShapedError("a metric is named `loss`, which evaluation gives already; choose another name")
    if isinstance(metric, Scored):
        metric.reset()
        return metric
    if isinstance(metric, Metric):
        kind = type(metric).__name__
        raise ShapedError(
            f"metric `{name}` is a {kind}, which is updated with predictions: pass "
            f"shaped.metrics.Scored({kind}(...), predict), with predict(params, *batch) giving its arguments"
        )
    if not callable(metric):
        raise ShapedError(f"metric `{name}` is a {type(metric).__name__}: pass a function metric(params, *batch)")
    return _Averaged(metric)


def accuracy(
    logits: Float[Tensor, "*shape classes"],
    target: Int[Tensor, "*shape"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Share of rows whose largest logit is that of the target class; a mask leaves rows out.

    Raises:
        ShapeError: `target` or `mask` is not of the shape of `logits` without its last axis.
    """
    only_tensors("accuracy", logits=logits, target=target, **({} if mask is None else {"mask": mask}))
    if logits.dim() < 1 or logits.shape[:-1] != target.shape or (mask is not None and mask.shape != target.shape):
        given = {"logits": logits, "target": target, "mask": mask}
        shapes = " against ".join(f"{name} {list(t.shape)}" for name, t in given.items() if t is not None)
        raise ShapeError(f"accuracy: {shapes}; classes are the last axis of logits")
    right = logits.argmax(-1) == target
    return right.float().mean() if mask is None else right[mask].float().mean()
