"""The workflow: a configuration in, a trained and validated model out, each part by name or your own.

    with TrainingWorkflow(config) as workflow:      # initialize ... shutdown
        result = workflow.train()
        print(result, workflow.validate())

It stands on the Loop: after each epoch the model is validated, figures are kept, early stopping looks at them, and with
a folder a checkpoint is made. A run that is killed, stopped by a signal or cancelled goes on from there when the same
workflow is made again.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from shaped.arguments import checked
from shaped.checkpoint import Checkpoints
from shaped.checkpoint.files import write_small
from shaped.data import Feed, prefetch
from shaped.data.feed import batch_size
from shaped.errors import NonFiniteError, ShapedError, nearest
from shaped.loop import Curves, JsonLines, Loop
from shaped.metrics import evaluate
from shaped.trainer import ScalarTrainer
from shaped.workflow import registry
from shaped.workflow.assembly import assemble, make_schedule
from shaped.workflow.config import StoppingConfig, WorkflowConfig, check_same, from_dict, to_dict
from shaped.workflow.history import History, TrainingResult, ValidationResult
from shaped.workflow.metrics import MetricComputer
from shaped.workflow.models import Provider
from shaped.workflow.providers import DataProvider, GivenData
from shaped.workflow.stopping import EarlyStopping


class TrainingWorkflow:
    """Initialise, train, validate, measure, shut down.

    Args:
        config: A WorkflowConfig, or plain data that is read strictly.
        model: A model provider, in the place of `config.model`.
        data: A data provider, or a pair of training and validation data, in the place of `config.data`.
        metrics: In the place of `config.metrics`.

    Raises:
        ConfigError: The configuration is wrong; every fault is listed. ShapedError: A name is unknown, or model or data
        are not given.
    """

    @checked
    def __init__(
        self,
        config: WorkflowConfig | dict[str, Any],
        *,
        model: Provider | None = None,
        data: DataProvider | tuple[Any, Any] | None = None,
        metrics: MetricComputer | None = None,
    ) -> None:
        self.config = config if isinstance(config, WorkflowConfig) else from_dict(WorkflowConfig, config)
        for name, given, named in (("model", model, self.config.model), ("data", data, self.config.data)):
            if (given is None) == (named is None):
                both = "given and named in the configuration" if given is not None else "neither given nor named"
                raise ShapedError(f"the {name} is {both}; one of the two says what it is")
        self._computer = metrics if metrics is not None else MetricComputer(*self.config.metrics)
        self._given_model, self._given_data = model, data
        if self.config.model is not None:
            registry.models.get(self.config.model.name)  # a misspelt name is found now
        if self.config.data is not None:
            registry.data.get(self.config.data.name)
        self._clear()

    @classmethod
    @checked
    def from_trainer(
        cls,
        trainer: ScalarTrainer,
        training: Any,
        validation: Any = None,
        *,
        config: WorkflowConfig | dict[str, Any] | None = None,
        predict: Callable[..., Any] | None = None,
        metrics: MetricComputer | None = None,
        step: Callable[..., Any] | None = None,
        schedule: Any = None,
    ) -> "TrainingWorkflow":
        """A workflow over a trainer that is made already, with its optimizer; it is initialised.

        Of the configuration, what concerns epochs, stopping, metrics and folder counts; the trainer brings the rest.

        Args:
            trainer, step, schedule: As for `Loop`.
            training, validation: Data as a loop takes it.
            predict: For metrics: `predict(params, *inputs)`.
        """
        config = config if config is not None else WorkflowConfig()
        made = cls.__new__(cls)
        made.config = config if isinstance(config, WorkflowConfig) else from_dict(WorkflowConfig, config)
        made._computer = metrics if metrics is not None else MetricComputer(*made.config.metrics)
        made._given_model, made._given_data = None, None
        made._clear()
        made._start(trainer, GivenData(training, validation), predict, step, schedule)
        return made

    def _clear(self) -> None:
        self._loop: Loop | None = None
        self._provider: DataProvider | None = None
        self._checkpoints: Checkpoints | None = None
        self._cancelled, self._seconds = "", 0.0
        self.model_provider: Provider | None = None
        self.model: Any = None

    # -- phases ----------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Make data, model, trainer (which proves the loss) and loop; go on from the folder's newest checkpoint.

        Raises:
            ShapedError: A part cannot be made, or the loss is not well-shaped. StateError: The folder is of a run with
            another configuration. Nothing stays open.
        """
        if self._loop is not None:
            raise ShapedError("the workflow is initialised already")
        made = assemble(self.config, self._given_model, self._given_data)
        self.model_provider, self.model = made.provider, made.model
        try:
            self._start(made.trainer, made.data, made.predict)
        except BaseException:
            self.shutdown()
            raise

    def _start(
        self, trainer: ScalarTrainer, data: DataProvider, predict: Any, step: Any = None, schedule: Any = None
    ) -> None:
        config = self.config
        self._provider = data
        if self._computer.available and predict is None:
            names = ", ".join(self._computer.available)
            raise ShapedError(f"metrics {names} need predictions: the model has no `predict`")
        seed = config.seed if config.batches.seed is None else config.batches.seed
        batches = replace(config.batches, seed=seed)
        self._training = self._placed(data.training_data(batches))
        self._validation = self._placed(data.validation_data(batches))
        validated = self._validation is not None or not config.monitor.startswith("validation/")
        self._monitor = config.monitor if validated else "training/loss"
        if config.schedule is not None and schedule is None:
            length = Feed(self._training).length
            total = None if length is None else length * config.epochs // trainer.accumulate
            schedule = make_schedule(config.schedule, trainer.optimizer, total, self._monitor, config.mode)
        listens = hasattr(schedule, "attached")
        loop = Loop(
            trainer,
            step,
            schedule=None if listens else schedule,
            metrics=self._computer.scored(predict) if predict is not None else {},
        )
        self._history = loop.attach(History(self._monitor, config.mode, keep_best=config.restore_best))
        self._stopping = self._early_stopping(config.early_stopping)
        for listener in (self._stopping, schedule if listens else None):
            if listener is not None:
                loop.attach(listener)
        loop.on_start(self._check_cancelled, name="cancelled")
        loop.on_epoch(self._after_epoch, name="validate")
        loop.on_epoch(self._check_monitor, name="monitor", priority=99)  # after all who might record it
        self._loop = loop
        if config.folder is not None:
            self._open_folder(loop, config.folder)

    def _placed(self, data: Any) -> Any:
        return data if data is None or self.config.device == "cpu" else prefetch(data, self.config.device)

    def _check_cancelled(self, loop: Loop) -> None:
        if self._cancelled:
            loop.stop(self._cancelled)

    def _early_stopping(self, config: StoppingConfig | None) -> EarlyStopping | None:
        if config is None:
            return None
        return EarlyStopping(config.patience, monitor=self._monitor, mode=self.config.mode, alpha=config.alpha,
                             min_delta=config.min_delta)  # fmt: skip

    def _open_folder(self, loop: Loop, folder: Path) -> None:
        about = to_dict(self.config)
        self._checkpoints = loop.attach(Checkpoints(folder / "checkpoints", keep=2, best=self._monitor,
                                                    mode=self.config.mode))  # fmt: skip
        if self._checkpoints.steps():
            check_same(folder / "config.json", self.config)
        loop.on_epoch(self._checkpoints.ask, name="checkpoint", priority=50)
        log = loop.attach(JsonLines(folder / "log.jsonl"))
        loop.attach(Curves(log.path))
        self._checkpoints.resume(loop)
        if self._complete(loop) and self.config.restore_best:
            self._history.restore(loop.trainer.params)
        write_small(folder / "config.json", about)

    def train(self) -> TrainingResult:
        """Train until the epochs are complete, early stopping ends it, or it is cancelled.

        Raises:
            NonFiniteError: A loss or gradient is not finite, or the watched figure is NaN. Interrupted: A signal; with
            a folder the run is saved, and goes on when the workflow is made again.
        """
        loop, began = self._ready(), time.perf_counter()
        if not self._complete(loop):
            try:
                loop.run_epochs(self._training, self.config.epochs - (loop.start_epoch if loop.resumed else loop.epoch))
            finally:
                self._seconds += time.perf_counter() - began
        if self.config.restore_best and not self._cancelled:
            self._history.restore(loop.trainer.params)
        checkpoints = self._checkpoints
        newest = checkpoints.steps()[-1:] if checkpoints is not None else []
        place = checkpoints.path(newest[0]) if checkpoints is not None and newest else None
        stopping = self._stopping
        ended = self._cancelled or loop.stopped or (str(stopping) if stopping and stopping.stopped else "all epochs")
        self._cancelled = ""
        return self._history.result(loop, ended, self._seconds, place, self.config.extensions)

    def validate(self, data: Any = None) -> ValidationResult:
        """The loss and metrics of the present parameters over the validation data, or over other data.

        Raises:
            ShapedError: There is no validation data.
        """
        loop = self._ready()
        data = self._validation if data is None else data
        if data is None:
            raise ShapedError("there is no validation data")
        began, counted = time.perf_counter(), _Counted(data)
        found = evaluate(loop.trainer, counted, loop.metrics)
        seconds = time.perf_counter() - began
        return ValidationResult(found.pop("loss"), found, counted.samples, seconds, self.config.extensions)

    @property
    def metrics(self) -> dict[str, float]:
        """The newest figures, by name; `training/loss` and `validation/...` of the last epoch among them."""
        return dict(self._ready().latest)

    @property
    def loop(self) -> Loop:
        """The loop, for hooks and listeners of your own."""
        return self._ready()

    @checked
    def cancel(self, reason: str = "cancelled") -> None:
        """End the training after the step under way, from a hook or any thread; with a folder a checkpoint is made.

        `train` goes on from there, also when the workflow is made again. Where no training is under way, the next one
        ends at once.
        """
        self._cancelled = reason or "cancelled"
        if self._loop is not None:
            self._loop.stop(self._cancelled)

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the model by its provider, with this configuration. Raises ShapedError where there is no provider."""
        self._ready()
        if self.model_provider is None:
            raise ShapedError("the workflow was made from a trainer and has no model provider to save with")
        return self.model_provider.save(self.model, path, about=to_dict(self.config))

    def shutdown(self) -> None:
        """Close data and folder; a second call does nothing."""
        provider, checkpoints = self._provider, self._checkpoints
        self._provider, self._checkpoints, self._loop = None, None, None
        try:
            if provider is not None:
                provider.close()
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def __enter__(self) -> "TrainingWorkflow":
        if self._loop is None:
            self.initialize()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def _complete(self, loop: Loop) -> bool:
        """Whether no epoch is left to train."""
        return loop.epoch >= self.config.epochs or (self._stopping is not None and self._stopping.stopped)

    # -- within ----------------------------------------------------------------------------------------------------

    def _ready(self) -> Loop:
        if self._loop is None:
            raise ShapedError("the workflow is not initialised: `with TrainingWorkflow(config) as workflow:`")
        return self._loop

    def _check_monitor(self, loop: Loop) -> None:
        if self._monitor not in loop.latest:
            known = list(loop.latest)
            close = nearest(self._monitor, known) or f"; there are {', '.join(known)}"
            raise ShapedError(f"no figure `{self._monitor}` is recorded to be watched{close}")
        if math.isnan(loop.latest[self._monitor]):
            raise NonFiniteError(f"{self._monitor} is nan after epoch {loop.epoch}, and no epoch can be the best by it")

    def _after_epoch(self, loop: Loop) -> None:
        self._history.end_epoch(loop)
        if self._validation is not None:
            loop.evaluate(self._validation)
        self._history.complete(loop)


class _Counted:
    """Data with a count of the examples that were taken from it."""

    def __init__(self, data: Any) -> None:
        self._data, self.samples = data, 0

    def iterate(self, epoch: int, start: int = 0) -> Any:
        feed = Feed(self._data, {"epoch": epoch, "index": start, "generators": None})
        while (batch := feed.next()) is not None:
            self.samples += batch_size(batch)
            yield batch
