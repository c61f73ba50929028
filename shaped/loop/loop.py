"""The loop: takes steps over data, runs hooks after each, stops where it should, and can go on from any step."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from shaped.arguments import checked, whole
from shaped.data.feed import Batch, DataError, Feed, by_position
from shaped.data.sharing import feed_of
from shaped.errors import NonFiniteError, ShapedError
from shaped.loop.checks import checked_specs, scheduler
from shaped.loop.hooks import Hooks
from shaped.loop.listening import Listeners
from shaped.loop.resuming import load_state, saved_state
from shaped.loop.signals import Interrupted, Watch, Workers
from shaped.loop.together import LoopRanks, Stopped
from shaped.metrics import MovingAverage, Scored, evaluate
from shaped.params import ParamList
from shaped.ranks import together
from shaped.trainer import ScalarTrainer

_RECENT = 101  # step durations for the median; sorting more at each record would show in the step


class Loop(Hooks, Listeners, LoopRanks):
    """Runs a trainer over data; on several ranks where the trainer is.

    Args:
        trainer: Whose `train_step` is taken; it needs `optimizer=`.
        step: Instead of it: `lambda *batch: trainer.adamw_step(*batch, lr=1e-3)`.
        schedule: A torch LR scheduler over the trainer's optimizer, or a function from the step to lr, as those of
            `shaped.optim.schedules`; stepped after each update, saved with the state.
        metrics: For `evaluate`, by name: functions `metric(params, *batch)`, or `shaped.metrics.Scored(...)`.
        specs: Trainers for batches with a spec (`Batch(inputs, spec)`), by spec: other losses with inputs and executors
            of their own, over the same parameters and the same optimizer.
        ignore: Of batches that are mappings by name, the entries that no input has and that are left out; True for all
            such. Without it they are an error.
        max_skips: With the trainer's nonfinite="skip": this many skipped steps in a row are an error.
        leftover: With the trainer's accumulate=n: what becomes of fewer than n batches that wait where a run ends.
            "warn" says so and keeps them for the next run, "keep" keeps them, "step" takes the update with these.
        signals: Let SIGINT and SIGTERM stop a run at the end of its step.

    Raises:
        ValueError: There is no way to take a step, or an argument is out of range.
    """

    @checked
    def __init__(
        self,
        trainer: ScalarTrainer,
        step: Callable[..., Tensor] | None = None,
        *,
        schedule: Any = None,
        metrics: Mapping[str, Callable[..., Any] | Scored] | None = None,
        specs: Mapping[Hashable, ScalarTrainer] | None = None,
        ignore: bool | Collection[str] = (),
        max_skips: int = 10,
        leftover: Literal["warn", "step", "keep"] = "warn",
        signals: bool = True,
    ) -> None:
        if step is None and trainer.optimizer is None:
            raise ValueError(
                "the trainer has no optimizer: ScalarTrainer(..., optimizer=shaped.optim.AdamW(params)), or "
                "Loop(trainer, lambda *batch: trainer.adamw_step(*batch, lr=1e-3))"
            )
        whole("max_skips", max_skips, 1)
        Hooks.__init__(self)
        Listeners.__init__(self)
        LoopRanks.__init__(self, trainer)
        self.trainer, self.schedule, self.metrics = trainer, scheduler(trainer, step, schedule), dict(metrics or {})
        self.specs = {None: trainer, **checked_specs(trainer, step, specs or {})}
        taken = {} if step is None else {None: step}
        self._steps = {spec: other.train_step for spec, other in self.specs.items()} | taken
        self.step, self.start_step = 0, 0
        self.end_step: int | None = None  # one past the last step of the run; None while it is not known
        self.shared: dict[str, Any] = {}  # for hooks to leave things for each other; not saved
        self.loss = math.nan  # of the last step that was not skipped
        self.average = MovingAverage()
        self.batch: Batch | None = None
        self.resumed = False  # this run goes on with the one that a loaded state interrupted
        self.said: list[str] = []  # by listeners, where a signal ends the run
        self.stopped = ""  # why `stop` ended the run, or is about to
        self.durations: deque[float] = deque(maxlen=_RECENT)  # seconds of each step, data and hooks apart
        self.start_epoch, self._max_skips, self._skips = 0, max_skips, 0
        self._leftover, self._ignore = leftover, ignore
        self._whole = True  # no step is half taken
        self._listen, self._watch, self._workers = signals, Watch(False), Workers()
        self._feed: Feed | None = None
        self._position: Mapping[str, Any] | None = None  # loaded, for the next data
        self._updates: dict[str, Callable[[ParamList], Any]] = {}
        self.running = False  # hooks may be under way
        self._at: tuple[str, int] | None = None  # the kind and place of the hook that runs now
        self._broken = False  # the hook at `_at` did not come to its end
        self._left: tuple[str, tuple[tuple[int, str], ...]] | None = None  # loaded: hooks of the step that did not run
        self._keepers: dict[str, Any] = {}  # objects whose state is saved with ours, by name
        self._schedules: dict[str, dict[str, float]] = {}  # loaded hook states, by hook name
        if schedule is not None:
            self.keep("schedule", self.schedule)

    # -- runs ------------------------------------------------------------------------------------------------------

    @checked
    def run_steps(self, data: Any, n: int) -> None:
        """Take n steps, from where the data was left; after a resume, until the interrupted call's n are complete.

        Raises:
            DataError: The data ended before; `run_epochs` and `run_to_step` go over it again.
            NonFiniteError: A step's loss or gradient is not finite; the message names the first operation. Interrupted:
            SIGINT or SIGTERM. What a hook or the data raises comes with a note that names it.
        """
        self._begin(data, "n", n)
        self.end_step = self.start_step + n
        self._run(epochs=None, wraps=False)

    @checked
    def run_to_step(self, data: Any, n: int) -> None:
        """Take steps until `step` is n, going over the data as often as needed. Raises as `run_steps`."""
        self._begin(data, "n", n)
        self.end_step = n
        self._run(epochs=None, wraps=True)

    @checked
    def run_epochs(self, data: Any, n: int) -> None:
        """Go over the data n times; after a resume, until the interrupted call's n are complete.

        Raises as `run_steps`.
        """
        self._begin(data, "n", n)
        assert self._feed is not None
        last, length = self.start_epoch + n, self._feed.length
        left = last - self._feed.epoch
        self.end_step = None if length is None else self.step + left * length - self._feed.index
        self._run(epochs=last, wraps=True)

    def _begin(self, data: Any, name: str, n: int) -> None:
        whole(name, n, 0)
        if self._feed is None or self._feed.given is not data:
            feed = feed_of(self.trainer, data, self._position, fit=self._fit)
            if self._feed is not None:
                self._feed.close()
                feed.epoch = self._feed.epoch + (self._feed.index > 0)
            self._feed, self._position = feed, None
        if any(getattr(listener, "saves", False) for listener in self._attached):
            self._feed.check_savable()  # now, and not after the first steps
        if not self.resumed:
            self.start_step, self.start_epoch = self.step, self._feed.epoch

    def _run(self, epochs: int | None, wraps: bool) -> None:
        self._watch, self.stopped, self.said = self._new_watch(), "", []
        self._recorded, self._warned, self._at, self._broken, self.running = set(), set(), None, False, True
        with self._watch, self._workers:
            try:
                for hook in chain(*self.hooks.values()):
                    hook.schedule.begin(self)
                    if hook.name in self._schedules:
                        hook.schedule.load(self._schedules.pop(hook.name))
                with self._phase("the beginning"):
                    self._fire("start")
                    self._run_left()
                self._take_steps(epochs, wraps)
                with self._phase("the end"):
                    self._settle()
                    self._at_end()
                    self._fire("end")
                    self._tell_settled()
                    self._tell("on_finish")
                    self._check_unseen()
            except Stopped:
                self._broken = True
                self._tell("on_stop")
            except Exception as error:
                self._broken = True
                self._save_after(error)
                raise
            finally:
                self.resumed = self.running = False
                self._at = None
                self._tell("on_close")
        if number := self._heard():
            raise Interrupted(number, self.step, self.said, quiet=not self.peers.leads)

    def _take_steps(self, epochs: int | None, wraps: bool) -> None:
        feed = self._feed
        assert feed is not None
        fresh = True  # an epoch that had been gone over to its end when the call began is followed by the next
        while feed.epoch < epochs if epochs is not None else self.step < (self.end_step or 0):
            if self._boundary():
                break
            batch = self._fetch(feed)
            if batch is not None:
                self._take(batch, feed)
                self._hold(self._run_due)
            elif wraps or fresh:
                self._hold(self._end_epoch, feed, epochs)
            else:
                count = feed.index
                feed.next_epoch()
                raise DataError(
                    f"the data ended after {count} batches, at step {self.step} of {self.end_step}; "
                    "run_epochs(data, n) goes over it again, and run_to_step(data, n) until step n"
                )
            fresh = False
        self._boundary()

    def _run_due(self) -> None:
        for place, hook in enumerate(self.hooks["step"]):
            if hook.schedule.due(self):
                self._at = "step", place
                hook.run(self)
        self._tell_settled()

    def _end_epoch(self, feed: Feed, epochs: int | None) -> None:
        length = feed.index
        feed.next_epoch()
        if epochs is not None:  # the data may have another length than it said, or have said nothing
            self.end_step = self.step + (epochs - feed.epoch) * length
        self._fire("epoch")
        self._tell_settled()
        self._warn_unseen()

    def _tell_settled(self) -> None:
        """All hooks of a moment have run: what is saved now is a whole step."""
        self._at = None
        for listener in self._settling:
            try:
                listener.on_settled(self)
            except Exception as error:
                error.add_note(f"in the listener {type(listener).__name__} after step {self.step}")
                raise

    def _run_left(self) -> None:
        """The hooks that an interruption or an error left, where the state was saved between them."""
        kind, left = self._left or ("", ())
        self._left = None
        for place, hook in enumerate(self.hooks.get(kind, ())):
            if (place, hook.name) in left:
                self._at = kind, place
                hook.run(self)
        if left:
            self._tell_settled()

    @checked
    def stop(self, reason: str = "asked to stop") -> None:
        """End the run after this step and its hooks, as if it were the last; from any hook, or from another thread.

        The run can be completed: after `Checkpoints.resume` the same call takes the steps that are left.
        """
        self.stopped = reason or "asked to stop"

    def _fetch(self, feed: Feed) -> Batch | None:
        try:
            self._workers.look()
            batch = self._next(feed)
            self._workers.take_over(feed)
            return batch
        except Exception as error:
            if self._watch.received and self.peers.size == 1:  # Ctrl-C reaches a loader's workers too, and they end
                raise Stopped from None
            error.add_note(f"in the data, at batch {feed.index} of epoch {feed.epoch} (step {self.step + 1})")
            raise

    def _fit(self, batch: Batch) -> Batch:
        """The batch as the loss that it is for takes it."""
        trainer = self.specs.get(batch.spec, self.trainer)
        return by_position(batch, trainer.proof.setting.signature, self._ignore)

    def _take(self, batch: Batch, feed: Feed) -> None:
        take = self._steps.get(batch.spec)
        trainer = self.specs.get(batch.spec, self.trainer)
        if take is None:
            feed.back()
            raise DataError(
                f"a batch has the spec {batch.spec!r}, and the loop has {list(self._steps)}: Loop(specs=...)"
            )
        updates, skipped = trainer.steps, trainer.skipped
        self._whole = False
        began = time.perf_counter()
        try:
            batch, loss = self._taken(take, batch, feed)
            value = loss.item()
        except Exception as error:
            feed.back()
            self._whole = isinstance(error, ShapedError)  # refused before anything changed
            if isinstance(error, NonFiniteError):
                raise self._located(error, trainer, batch) from None
            raise
        self.durations.append(time.perf_counter() - began)
        self.batch = batch
        self.step += 1
        if trainer.skipped != skipped:
            self._skip()
            return
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss of step {self.step} is {value}, and the step was taken outside the trainer")
        self._skips, self.loss = 0, value
        self.average.update(value)
        if trainer.steps != updates:
            self._after_update()
        self._whole = True

    def _after_update(self) -> None:
        if self._updates:
            with torch.no_grad():
                for name, update in self._updates.items():
                    try:
                        update(self.trainer.params)
                    except Exception as error:
                        error.add_note(f"in update `{name}` after step {self.step}")
                        raise
        if self.schedule is not None:
            self.schedule.step()

    def _settle(self) -> None:
        """Where a run ends, step with the gradients that wait, or say that they do."""
        for trainer in self.specs.values():
            waiting = trainer.waiting
            if waiting and self._leftover == "step":
                self._whole = False
                if trainer.step_waiting():
                    self._after_update()
                self._whole = True
            elif waiting and self._leftover == "warn":
                warnings.warn(
                    f"{waiting} of {trainer.accumulate} batches wait for an update where the run ends, and no "
                    "parameter has moved for them. The next run goes on with them; Loop(leftover='step') takes the "
                    "update with these, leftover='keep' keeps them without a word",
                    stacklevel=4,
                )

    def _skip(self) -> None:
        self._whole = True
        self._skips += 1
        if self._skips >= self._max_skips:
            assert self.batch is not None
            error = NonFiniteError(
                f"{self._skips} steps in a row were not finite and were skipped, the last at {self.step}"
            )
            raise self._located(error, self.trainer, self.batch)

    def _located(self, error: NonFiniteError, trainer: ScalarTrainer, batch: Batch) -> NonFiniteError:
        from shaped.loop.tracer import located

        return located(error, trainer, batch.inputs)

    # -- what comes along ------------------------------------------------------------------------------------------

    @checked
    def after_update(self, name: str, function: Callable[[ParamList], Any]) -> None:
        """Change parameters in place after each update (a constraint), before any hook sees them.

        Args:
            name: Each has one of its own.
            function: Takes the parameters; gradients are off. Not called where a step made no update.

        Raises:
            ValueError: There is one of this name.
        """
        if name in self._updates:
            raise ValueError(f"there is an update named `{name}` already")
        self._updates[name] = function

    def _save_after(self, error: Exception) -> None:
        """At a step boundary nothing is half done: what failed was the data, a hook, or a check before the update."""
        if self._whole and (self.peers.size == 1 or together(error)):
            try:
                self._tell("on_error", error)
            except Exception as second:  # the first is the one to see
                error.add_note(f"and the run up to here could not be saved: {second}")

    # -- measures --------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs of the data that are complete."""
        return self._feed.epoch if self._feed is not None else int((self._position or {"epoch": 0})["epoch"])

    @property
    def median_step(self) -> float:
        """Median duration of the recent steps in seconds, without data and hooks; NaN before the first."""
        from statistics import median  # brings decimal and fractions, which `import shaped` need not

        return median(self.durations) if self.durations else math.nan

    @property
    def lr(self) -> float:
        """The learning rate of the optimizer's first group; NaN where the step brings its own."""
        optimizer = self.trainer.optimizer
        return float(optimizer.param_groups[0]["lr"]) if optimizer is not None else math.nan

    @checked
    def evaluate(self, data: Any, name: str = "validation") -> dict[str, float]:
        """The loss and the loop's metrics over data, recorded as `validation/loss` and so on. Changes no generator.

        Raises:
            As `shaped.metrics.evaluate`.
        """

        found = evaluate(self.trainer, data, self.metrics, between=self._between(), ignore=self._ignore)
        found = {f"{name}/{key}": value for key, value in found.items()}
        self.record(found)
        return found

    def terms(self) -> dict[str, float]:
        """The terms of the loss apart, on the last batch at the present parameters; see `shaped.losses.with_terms`."""
        from shaped.losses import loss_terms

        if self.batch is None:
            return {}
        trainer = self.specs[self.batch.spec]
        inputs = trainer._program.arrange(self.batch.inputs, {})
        terms = loss_terms(lambda: trainer.proof.setting.run([*trainer.params, *inputs])[0])
        return {name: float(value) for name, value in terms.items()}

    # -- state -----------------------------------------------------------------------------------------------------

    @checked
    def keep(self, name: str, thing: Any) -> None:
        """Save and load an object's state with the loop's: anything with `state_dict` and `load_state_dict`.

        Raises:
            ValueError: It has not both, or something is kept under this name.
        """
        if name in self._keepers:
            raise ValueError(f"`{name}` is kept already")
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise ValueError(f"`{name}` is a {type(thing).__name__} without state_dict and load_state_dict")
        self._keepers[name] = thing

    @checked
    def state_dict(self, *, parts: bool = False) -> dict[str, Any]:
        """All that a resumed run needs: trainer, position in the data, generators, schedule, hooks; a copy.

        With `parts`, a tensor that ranks hold parts of is a `shaped.ranks.Piece`; otherwise it is whole.
        """
        return saved_state(self, parts=parts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, all or nothing, so that the next run goes on with the one that was interrupted.

        Raises:
            StateError: It does not fit; nothing has changed.
        """
        load_state(self, state)
