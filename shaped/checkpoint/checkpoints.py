"""The checkpoints of a run: when they are made, which are kept, and going on from the newest that is whole."""

import math
import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from shaped.arguments import checked, whole
from shaped.checkpoint.agreed import resumed_by_all, saved_by_all
from shaped.checkpoint.files import (
    Checkpoint,
    is_checkpoint,
    read_checkpoint,
    read_manifest,
    remove_checkpoint,
    write_checkpoint,
    write_small,
)
from shaped.checkpoint.folder import RunFolder
from shaped.checkpoint.programs import RunPrograms
from shaped.checkpoint.resumed import Resumed
from shaped.checkpoint.together import write_together
from shaped.errors import CheckpointCorrupt, CheckpointError, StateError
from shaped.params import ParamList

if TYPE_CHECKING:
    from shaped.loop.loop import Loop

P = TypeVar("P", bound=ParamList)


class Checkpoints:
    """Saves a loop as directories `step-00000042` in a folder, and goes on from them.

        checkpoints = loop.attach(Checkpoints("runs/a", every=100, keep=3, best="validation/loss"))
        print(checkpoints.resume(loop))

    Attached to a loop it saves after every `every` steps, when all hooks of the step have run, at the end of each run,
    where SIGINT or SIGTERM stops it, and at the last whole step where the data, a hook or a NaN ends it.

    Args:
        folder: Of this run alone; it is made. A lock keeps a second process out until this one ends.
        every: Steps between checkpoints; None for the end and the stops only.
        keep: How many of the newest stay; -1 keeps all. Only directories that this run made are removed.
        best: A recorded figure (`validation/loss`); the checkpoint at which it was best stays too.
        mode: "min" or "max": which value of `best` is best. NaN never is.
        on_failure: Where a checkpoint cannot be written during the run: "raise", or "warn" and train on.

    Raises:
        RunLocked: Another process runs here. ValueError: An argument is out of range. OSError: No folder can be made.
    """

    @checked
    def __init__(
        self,
        folder: str | Path,
        *,
        every: int | None = None,
        keep: int = 3,
        best: str | None = None,
        mode: Literal["min", "max"] = "min",
        on_failure: Literal["raise", "warn"] = "raise",
    ) -> None:
        if every is not None:
            whole("every", every, 1)
        if keep != -1:
            whole("keep (-1 keeps all)", keep, 1)
        if best == "":
            raise ValueError(f"best is {best!r}; it is the name of a recorded figure, such as 'validation/loss'")
        self._place = RunFolder(Path(folder))
        self.folder, self._programs = self._place.path, RunPrograms(self._place.path)
        self._every, self._keep, self._best, self._sign = every, keep, best, 1 if mode == "min" else -1
        self._on_failure = on_failure
        self._own: set[int] = set()  # steps of the present state's past whose checkpoints this run made
        self._best_step: int | None = None
        self._best_value = self._sign * math.inf
        self._began = False  # a state was saved or looked for here, so that the figures above are of it
        self._saved = -1  # the step of the newest checkpoint that this object wrote or read, and
        self._updates = -1  # the updates that had been taken, which the end of a run may add to
        self._due = False  # something asked for a checkpoint at this step
        self._better: tuple[int, float] | None = None  # the step and value of a figure that is better than ever

    saves = True  # so that a loop looks at once whether its data can be saved

    @property
    def watches(self) -> str | None:
        """The figure that a loop must record."""
        return self._best

    @property
    def run(self) -> str:
        """The run's id."""
        return self._place.run

    # -- what a loop tells -----------------------------------------------------------------------------------------

    def on_settled(self, loop: "Loop") -> None:
        """All hooks of a moment have run: save what is due."""
        ended = self._every is not None and loop.step % self._every == 0
        if loop.step == 0 or not (self._due or self._better or (ended and loop.step != self._saved)):
            return
        self._save_due(loop)

    def on_finish(self, loop: "Loop") -> None:
        """The run has come to its end, and all its hooks have run."""
        if self._is_new(loop):
            self._save_due(loop)

    def _is_new(self, loop: "Loop") -> bool:
        """Whether the loop is not where the newest checkpoint is."""
        return loop.step != 0 and (self._better is not None or (self._saved, self._updates) != _place(loop))

    def _save_due(self, loop: "Loop") -> None:
        try:
            self._save_better(loop)
        except CheckpointError as error:
            self._due = False
            if self._on_failure == "raise":
                raise
            warnings.warn(f"training goes on without this checkpoint: {error}", stacklevel=3)

    def _save_better(self, loop: "Loop") -> Path:
        """Save; a figure that is better than ever counts once its checkpoint is there."""
        before, better = (self._best_step, self._best_value), self._better
        self._better = None
        if better is not None:
            self._best_step, self._best_value = loop.step, better[1]
        try:
            return self._write(loop)
        except BaseException:
            self._best_step, self._best_value = before
            raise

    def on_record(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Have a checkpoint made, after all hooks of this step, where the watched figure is better than ever."""
        value = values.get(self._best or "", math.nan)
        best = self._better[1] if self._better is not None else self._best_value
        if not math.isnan(value) and self._sign * value < self._sign * best:
            self._better = loop.step, value

    def on_stop(self, loop: "Loop") -> None:
        """A signal ends the run."""
        if self._is_new(loop):
            self._save_better(loop)
        loop.said.append(f"step {loop.step} is saved in {self.folder}; `resume` goes on from there")

    def on_error(self, loop: "Loop", error: Exception) -> None:
        """An error ends the run at a step boundary."""
        if self._is_new(loop):
            error.add_note(f"the run up to here is saved as {self._save_better(loop)}")

    @checked
    def ask(self, loop: "Loop") -> None:
        """Have a checkpoint made after all hooks of this step: a hook itself, `loop.on_epoch(checkpoints.ask)`."""
        self._due = True

    # -- saving ----------------------------------------------------------------------------------------------------

    @checked
    def save(self, loop: "Loop") -> Path:
        """Write a checkpoint of the loop now, whole or not at all, and remove those that need not stay.

        From a hook, it is written once more when all hooks of the step have run. Those of later steps, of a run that
        this one leaves behind, are renamed to `superseded-...`; so are all that were there where `resume` was not
        called.

        Raises:
            CheckpointError: It cannot be written; those before it are as they were.
        """
        path = self._write(loop)
        self._due = loop.running and loop._at is not None
        return path

    def _write(self, loop: "Loop") -> Path:
        return self._write_here(loop) if self._alone(loop) else saved_by_all(self, loop)

    def _alone(self, loop: "Loop") -> bool:
        """Whether one process runs here; one that is some rank and runs by itself holds its folder from now on."""
        if loop.peers.size == 1:
            self._place.hold()
        return loop.peers.size == 1

    def _write_here(self, loop: "Loop") -> Path:
        state = loop.state_dict(parts=True)
        position = state["position"] or {"epoch": 0, "index": 0}
        about = {
            "run": self.run,
            "step": loop.step,
            "position": {"epoch": position["epoch"], "index": position["index"]},
            "signature": dict(state["trainer"]["signature"]),
            "figures": {name: value for name, value in loop.latest.items() if math.isfinite(value)},
            **({"best": self._best_note()} if self._best_step is not None else {}),
        }
        path, token = self.path(loop.step), secrets.token_hex(8)
        try:
            self._place.finish()  # of a save before that could not
            if aside := self._behind(loop.step):
                self._place.plan(loop.step, token, aside)
                about["token"] = token
            if loop.peers.size == 1:
                write_checkpoint(self.folder, path.name, state, about, aside=aside.get(loop.step))
            else:
                write_together(self.folder, path.name, state, about, loop.peers, aside.get(loop.step))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
        why = "goes on from an earlier step" if self._began else "was begun anew, without `resume`"
        self._own -= set(aside)
        self._saved, self._updates = _place(loop)
        self._due, self._began = False, True
        self._own.add(loop.step)
        try:
            self._place.finish()
        except OSError as error:
            what = f"{path} is written, and what it leaves behind cannot be put aside yet"
            raise CheckpointError(f"{what}: {error.strerror or error}") from error
        if aside:
            moved = ", ".join(to.name for to in aside.values())
            warnings.warn(f"the run {why}; put aside under new names: {moved}", stacklevel=5)
        self._write_best()
        self._retain()
        self._programs.keep(loop)
        return path

    def _behind(self, step: int) -> dict[int, Path]:
        """What is not of the past of the state at a step, and where each is to be put aside."""
        why = {}
        for at in self.steps():
            if at > step or (at < step and at not in self._own and self._place.is_ours(at)):
                why[at] = "superseded"
            elif at == step and not (at in self._own and is_checkpoint(self.path(at))):
                why[at] = "superseded" if self._place.is_ours(at) else "foreign"
        return {at: self._place.aside(self.path(at), kind) for at, kind in why.items()}

    def _best_note(self) -> dict[str, Any]:
        return {"step": self._best_step, "value": self._best_value, "figure": self._best}

    def _write_best(self) -> None:
        """`best.json` names what is best of the state that was saved last."""
        path = self.folder / "best.json"
        try:
            if self._best_step is not None:
                if self._place.read_small("best.json") != self._best_note():
                    write_small(path, self._best_note())
            elif self._best is not None and path.exists():
                os.unlink(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error

    def _retain(self) -> None:
        """Remove what this run made and need not keep; never the newest, and never the best."""
        if self._keep < 0:
            return
        for step in sorted(self._own)[: -self._keep]:
            if step != self._best_step:
                ours = self._place.is_ours(step)
                if ours:
                    remove_checkpoint(self.path(step))
                if not (ours and os.path.lexists(self.path(step))):  # one with a user's files in it stays, and is ours
                    self._own.discard(step)

    # -- reading ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order; not yet verified."""
        return self._place.steps()

    @checked
    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self._place.step(step)

    @property
    def best_step(self) -> int | None:
        """The step at which the watched figure was best: of the state that was saved or loaded last, here or ever."""
        if self._began or not (steps := self.steps()):
            return self._best_step
        manifest: Mapping[str, Any] = {}
        with suppress(CheckpointError):
            manifest = read_manifest(self.path(steps[-1]))
        return self._noted_best(steps[-1], manifest)[0]

    @checked
    def read(self, step: int) -> Checkpoint:
        """A checkpoint, verified.

        Raises:
            CheckpointCorrupt: It is missing or not as it was written. CheckpointError: It cannot be read.
        """
        return read_checkpoint(self.path(step))

    @checked
    def resume(self, loop: "Loop", *, step: int | None = None, strict: bool = False) -> Resumed:
        """Load the newest checkpoint into a loop, or nothing where there is none yet.

        A corrupt one is named in a warning, renamed to `corrupt-...`, and the next older whole one is taken.

        Args:
            loop: As it was made for the saved run: the same model, optimizer, schedule and kept objects.
            step: Take this one; a corrupt one is then an error.
            strict: A corrupt one is an error.

        Raises:
            CheckpointCorrupt: One is corrupt and `step` or `strict` was given, or none is whole. CheckpointError: It
            fits another loop (every difference is listed), or a newer version wrote it. The loop is as it was.
        """
        if not self._alone(loop):
            return resumed_by_all(self, loop, step, strict)
        aside: list[Path] = []
        for at in self._found(step):
            try:
                checkpoint = self.read(at)
            except CheckpointCorrupt as error:
                if strict or step is not None:
                    raise
                aside.append(self._set_aside(at, error))
                continue
            try:
                loop.load_state_dict(checkpoint.state)
            except StateError as error:
                raise CheckpointError(f"{checkpoint.path} is of another run: {error}") from error
            self._went_on(at, checkpoint, loop)
            self._programs.join(loop)
            return Resumed(at, checkpoint.path, tuple(aside))
        if aside:
            raise CheckpointCorrupt(f"no checkpoint in {self.folder} is whole: {', '.join(p.name for p in aside)}")
        self._began = True
        return Resumed(0, None)

    def _found(self, step: int | None) -> list[int]:
        """The steps to go on from, the newest first; what a save left behind is put right before."""
        try:
            self._place.finish()
        except OSError as error:
            raise CheckpointError(f"{self.folder}: what a save left behind cannot be put aside: {error}") from error
        return [step] if step is not None else self.steps()[::-1]

    def _went_on(self, at: int, checkpoint: Checkpoint, loop: "Loop") -> None:
        """The loop has a checkpoint's state."""
        self._take_over(at, checkpoint)
        self._updates = loop.trainer.steps
        self._write_best()

    def _kept_best(self, found: Any) -> tuple[int | None, float]:
        """Step and value of a note of the best, where it is of the watched figure."""
        if isinstance(found, Mapping) and self._best and found.get("figure") == self._best:
            step, value = found.get("step"), found.get("value")
            if type(step) is int and isinstance(value, float | int):
                return step, float(value)
        return None, self._sign * math.inf

    def _noted_best(self, at: int, manifest: Mapping[str, Any]) -> tuple[int | None, float]:
        """Step and value of what was best in the past of a checkpoint."""
        note = manifest.get("best")
        if note is None:  # of a version that did not write it there
            note = self._place.read_small("best.json")
        step, value = self._kept_best(note)
        return (step, value) if step is not None and step <= at else (None, self._sign * math.inf)

    def _take_over(self, at: int, checkpoint: Checkpoint) -> None:
        """What is the past of a state that was loaded, and what was best in it."""
        self._saved, self._began, self._due, self._better = at, True, False, None
        self._own = {step for step in self.steps() if step <= at and self._place.is_ours(step)}
        self._best_step, self._best_value = None, self._sign * math.inf
        if self._best is None:
            return
        step, value = self._noted_best(at, checkpoint.manifest)
        if step is None:
            return
        try:
            if step != at:
                self.read(step)
        except CheckpointCorrupt as error:
            if os.path.lexists(self.path(step)):
                self._set_aside(step, error)
            step, value = self._next_best(at)
        self._best_step, self._best_value = step, value

    def _next_best(self, at: int) -> tuple[int | None, float]:
        """The best of those that are left, by what each says of itself."""
        found: list[tuple[float, int]] = []
        for step in sorted(self._own):
            with suppress(CheckpointError):
                note = self._kept_best(read_manifest(self.path(step)).get("best"))
                if note[0] == step:
                    self.read(step)
                    found.append((self._sign * note[1], step))
        return (min(found)[1], self._sign * min(found)[0]) if found else (None, self._sign * math.inf)

    def _set_aside(self, step: int, error: CheckpointCorrupt) -> Path:
        self._own.discard(step)
        to = self._place.put_aside(self.path(step), "corrupt")
        warnings.warn(f"a corrupt checkpoint is set aside as {to.name}: {error}", stacklevel=3)
        return to

    @checked
    def mean(self, like: P, n: int = 3) -> P:
        """The mean of the parameters over the newest n checkpoints that are whole, as a list of `like`'s class.

        Floating-point entries are averaged in float64; others are those of the newest.

        Raises:
            CheckpointError: There are fewer than n, or they do not fit `like`.
        """
        whole("n", n, 1)
        found: list[Mapping[str, Tensor]] = []
        for step in reversed(self.steps()):
            with suppress(CheckpointCorrupt):
                found.append(self.read(step).state["trainer"]["params"])
            if len(found) == n:
                break
        if len(found) < n:
            raise CheckpointError(
                f"{self.folder} has {len(found)} whole checkpoints, and the mean of {n} was asked for"
            )
        result = like.values()
        try:
            result.set_values([_mean([params[name] for params in found]) for name in like.names])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoints in {self.folder} do not fit: {error}") from error
        return result

    def close(self) -> None:
        """Let another run have the folder; the process's end does so too."""
        self._place.close()


def _place(loop: "Loop") -> tuple[int, int]:
    return loop.step, loop.trainer.steps


def _mean(tensors: list[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
