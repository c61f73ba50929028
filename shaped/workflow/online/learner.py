"""Learning from a stream: each batch is first predicted, then learned from, in updates that are taken whole or not.

    observe        loss before learning -> signal -> trigger -> perhaps an update
    update         steps over the recent batches -> validator on those held out -> a new version, or all as it was
    rollback       an earlier version becomes the newest one

An update that fails, or is refused, leaves parameters, optimizer state and counts as they were. A process that dies
leaves the last verified version; the next one goes on from it, at observation number `observed`.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from shaped.arguments import checked, whole
from shaped.checkpoint import generator_states, set_generator_states
from shaped.errors import NonFiniteError, StateError
from shaped.metrics import evaluate
from shaped.trainer import ScalarTrainer
from shaped.workflow.online.audit import AuditLog
from shaped.workflow.online.drift import Trigger
from shaped.workflow.online.validators import Candidate, LossDelta, Validator
from shaped.workflow.online.versions import Version, Versions

Inputs = tuple[Tensor, ...]
_KEYS = ("trainer", "trigger", "recent", "due", "counts", "origin", "generators")
_COUNTS = ("observed", "accepted", "refused")


@dataclass(frozen=True)
class Update:
    """One update: why it was tried, what came of it, and the loss on the held-out batches before and after."""

    reason: str
    accepted: bool
    why: str  # what the validator said, where it was refused
    loss_before: float
    loss_after: float
    version: int  # the newest one after it


@dataclass(frozen=True)
class Observation:
    """One batch of the stream: its loss before anything was learned from it, and what it set off."""

    number: int  # from 1
    loss: float
    drift: bool
    update: Update | None


class OnlineLearner:
    """Predicts, notices, updates, and keeps versions.

        learner = OnlineLearner(trainer, "runs/live", trigger=Trigger(ADWIN(), every=50, cooldown=20))
        for batch in stream:
            print(learner.observe(*batch).loss)

    In a folder with versions it goes on from the newest that is whole: all that `state_dict` has is as it was when that
    one was made, so give it the stream from `observed` on.

    Args:
        trainer: Over the present parameters; an empty folder gets them as version 1.
        folder: For versions and the audit log (`audit.jsonl`).
        step: Takes a step on a batch; by default `trainer.train_step`.
        trigger: When an update is due; None for `update()` by hand alone.
        validator: Judges each update.
        signal: `signal(params, *batch)`, the number that the trigger looks at; by default the batch's loss.
        recent: How many of the newest batches an update learns from.
        holdout: Share of these, the newest ones, that it is judged by instead; at least one batch.
        passes: How often an update goes over its batches.
        fresh: After a drift, forget older batches, and update when so many have come, the one that showed it included;
            0 updates at once from all recent ones. Where that update is refused, it is tried again after as many more.
        keep: Versions that stay.

    Raises:
        RunLocked: Another process works in the folder. StateError: Its versions are of another model.
        CheckpointCorrupt: None of them is whole, or the log is broken. ValueError: An argument is out of range.
    """

    @checked
    def __init__(
        self,
        trainer: ScalarTrainer,
        folder: str | Path,
        *,
        step: Callable[..., Tensor] | None = None,
        trigger: Trigger | None = None,
        validator: Validator | None = None,
        signal: Callable[..., Any] | None = None,
        recent: int = 32,
        holdout: float = 0.25,
        passes: int = 1,
        fresh: int = 0,
        keep: int = 5,
    ) -> None:
        if step is None and trainer.optimizer is None:
            raise ValueError("the trainer has no optimizer: give it one, or pass step=lambda *batch: trainer.step(...)")
        whole("recent", recent, 2)
        whole("passes", passes, 1)
        whole("fresh", fresh, 0)
        if fresh > recent or not 0 < holdout < 1:
            raise ValueError(f"fresh is {fresh} (at most recent, {recent}), holdout {holdout} (a share, as 0.25)")
        self.trainer, self._step = trainer, step or trainer.train_step
        self.validator: Validator = LossDelta() if validator is None else validator
        self.trigger, self.signal = trigger, signal
        self.holdout, self.passes, self.fresh = holdout, passes, fresh
        self._recent: deque[Inputs] = deque(maxlen=recent)
        self._due: tuple[str, int] | None = None  # why an update waits, and for which observation
        self.observed, self.accepted, self.refused = 0, 0, 0
        self._origin: int | None = None  # the version whose parameters these are; None for the newest
        self._closed = False
        self.versions = Versions(folder, keep=keep)
        try:
            self.log = AuditLog(self.versions.folder / "audit.jsonl")
            self.version = self._open()  # the newest one's number
        except BaseException:
            self.versions.close()
            raise

    def _open(self) -> int:
        found = self.versions.newest()
        if found is None:
            made = self.versions.save(self.state_dict(), "start")
            self.log.append("start", version=made.number)
            return made.number
        self.load_state_dict(found.state)
        self.log.append("resume", version=found.number, observed=self.observed)
        return found.number

    # -- the stream ------------------------------------------------------------------------------------------------

    def observe(self, *inputs: Shaped[Tensor, "batch ..."]) -> Observation:
        """Measure a batch before anything is learned from it, and update where that is due.

        Raises:
            ShapeError: The batch breaks the loss's signature. NonFiniteError: Its loss is not finite. Nothing has
            changed in either case. CheckpointError: An update could not be written, and was taken back.
        """
        self._check_open()
        loss = evaluate(self.trainer, [inputs])["loss"]
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss of observation {self.observed + 1} is {loss}; nothing was learned from it")
        value = loss if self.signal is None else float(self.signal(self.trainer.params, *inputs))
        reason = None if self.trigger is None else self.trigger.update(value)
        self._recent.append(tuple(x.detach().clone() for x in inputs))
        self.observed += 1
        if reason == "drift":
            self._notice(value)
        elif reason is not None and self._due is None:
            self._due = (reason, self.observed)
        update = None
        if self._due is not None and self.observed >= self._due[1] and len(self._recent) > 1:
            update = self.update(self._due[0])
        return Observation(self.observed, loss, reason == "drift", update)

    def _notice(self, value: float) -> None:
        self.log.append("drift", observed=self.observed, value=value)
        if self._due is not None and self._due[0] == "drift":
            return  # the one that waits already, or it would be put off for ever
        self._due = ("drift", self.observed + max(self.fresh - 1, 0))
        while self.fresh and len(self._recent) > 1:
            self._recent.popleft()

    @checked
    def update(self, reason: str = "manual") -> Update:
        """Learn from the recent batches, as one transaction. After one for a drift the detector begins anew.

        Returns:
            What came of it. Where the validator refuses, or a step is not finite, all is as it was.

        Raises:
            ValueError: There are fewer than two recent batches. Whatever a step raises, and CheckpointError where the
            version cannot be written: all is as it was.
        """
        self._check_open()
        if len(self._recent) < 2:
            raise ValueError(f"an update needs two recent batches, one to be judged by; there are {len(self._recent)}")
        batches, before = list(self._recent), self.state_dict()
        cut = len(batches) - max(1, round(self.holdout * len(batches)))
        known, held = batches[: max(cut, 1)], batches[max(cut, 1) :]
        previous, loss_before = self.trainer.get_params(), evaluate(self.trainer, held)["loss"]
        self._due = None
        try:
            loss_after, why = self._learn(known, held)
            why = why or self.validator(Candidate(previous, self.trainer.params, loss_before, loss_after))
            if why is not None and not isinstance(why, str):
                raise ValueError(f"the validator returned {why!r}; it returns None, or a text that says why not")
            if why is None:
                self.accepted, self._origin = self.accepted + 1, None
                if reason == "drift" and self.trigger is not None:
                    self.trigger.restart()
                self.version = self.versions.save(self.state_dict(), reason).number
        except BaseException as error:
            self.load_state_dict(before)
            self.log.append("failed", reason=reason, error=f"{type(error).__name__}: {error}")
            raise
        if why is not None:
            self.trainer.load_state_dict(before["trainer"])
            self.refused += 1
            if reason == "drift":  # it has not gone away
                self._due = ("drift", self.observed + max(self.fresh, 1))
        made = Update(reason, why is None, why or "", loss_before, loss_after, self.version)
        figures = {"loss_before": loss_before, **({"loss_after": loss_after} if math.isfinite(loss_after) else {})}
        where = {"reason": reason, "observed": self.observed, "version": made.version, "why": made.why}
        self.log.append("commit" if made.accepted else "refuse", **where, **figures)
        return made

    def _learn(self, known: list[Inputs], held: list[Inputs]) -> tuple[float, str | None]:
        """Take the steps; the loss afterwards, and what was not finite."""
        try:
            for _ in range(self.passes):
                for batch in known:
                    self._step(*batch)
        except NonFiniteError as error:
            return math.nan, str(error)
        loss = evaluate(self.trainer, held)["loss"]
        return loss, None if math.isfinite(loss) else f"the loss on held-out batches is {loss}"

    # -- versions --------------------------------------------------------------------------------------------------

    @checked
    def rollback(self, to: int | None = None) -> Version:
        """Go back to an earlier version: its parameters, optimizer state and counts of steps.

        It becomes a new version, so nothing is lost; what was observed since stays observed.

        Args:
            to: Its number; by default the newest whole one before the present parameters'.

        Raises:
            ValueError: There is no earlier one. CheckpointCorrupt: Version `to` is missing or not whole; nothing has
            changed.
        """
        self._check_open()
        present = self.version if self._origin is None else self._origin
        target = self.versions.newest(before=present) if to is None else self.versions.read(to)
        if target is None:
            raise ValueError(f"there is no version before {present}; there are {self.versions.numbers()}")
        before, origin = self.state_dict(), target.state["origin"]
        try:
            self.trainer.load_state_dict(target.state["trainer"])
            self._origin = target.number if origin is None else origin
            made = self.versions.save(self.state_dict(), f"rollback to {target.number}")
        except BaseException:
            self.load_state_dict(before)
            raise
        self.version = made.number
        self.log.append("rollback", to=target.number, version=made.number, observed=self.observed)
        return made

    @checked
    def save(self, reason: str = "saved") -> Version:
        """Make a version of all that is, so that a new process goes on from this observation."""
        self._check_open()
        made = self.versions.save(self.state_dict(), reason)
        self.version = made.number
        self.log.append("save", version=made.number, observed=self.observed)
        return made

    def close(self) -> None:
        """Let another process have the folder; this learner takes nothing more."""
        self._closed = True
        self.versions.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the learner is closed, and its folder may be another's: make it anew")

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Trainer, trigger, recent batches, counts and generators; a copy."""
        return {
            "trainer": self.trainer.state_dict(),
            "trigger": None if self.trigger is None else self.trigger.state_dict(),
            "recent": list(self._recent),
            "due": self._due,
            "counts": {"observed": self.observed, "accepted": self.accepted, "refused": self.refused},
            "origin": self._origin,
            "generators": generator_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, all or nothing.

        Raises:
            StateError: It is of another model or trigger; nothing has changed.
        """
        if not isinstance(state, Mapping) or not set(state) >= {*_KEYS} or not set(state["counts"]) >= {*_COUNTS}:
            raise StateError(f"a learner's state has {', '.join(_KEYS)}")
        if (state["trigger"] is None) != (self.trigger is None):
            raise StateError("the state has a trigger and this learner has none, or the other way round")
        if self.trigger is not None:
            before = self.trigger.state_dict()
            self.trigger.load_state_dict(state["trigger"])
        try:
            self.trainer.load_state_dict(state["trainer"])
        except BaseException:
            if self.trigger is not None:
                self.trigger.load_state_dict(before)
            raise
        device = self.trainer.params.device
        self._recent = deque((tuple(x.to(device) for x in b) for b in state["recent"]), maxlen=self._recent.maxlen)
        self._due, self._origin = state["due"], state["origin"]
        counts = state["counts"]
        self.observed, self.accepted, self.refused = counts["observed"], counts["accepted"], counts["refused"]
        set_generator_states(state["generators"])
