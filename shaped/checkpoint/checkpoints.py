"""The checkpoints of a run: when they are made, which are kept, and going on from the newest that is whole."""

import math
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from shaped.arguments import whole
from shaped.checkpoint.codec import from_json
from shaped.checkpoint.files import Checkpoint, read_checkpoint, read_manifest, write_checkpoint, write_small
from shaped.checkpoint.lock import Lock
from shaped.errors import CheckpointCorrupt, CheckpointError, StateError
from shaped.params import ParamList

if TYPE_CHECKING:
    from shaped.loop.loop import Loop

_NAME = re.compile(r"step-(\d{8,12})")
P = TypeVar("P", bound=ParamList)


@dataclass(frozen=True)
class Resumed:
    """What `resume` found.

    Attributes:
        step: Where the run goes on; 0 for a new run.
        path: The checkpoint that was loaded, or None for a new run.
        set_aside: Corrupt ones that were newer; each was renamed to `corrupt-...`.
    """

    step: int
    path: Path | None
    set_aside: tuple[Path, ...] = ()

    @property
    def fell_back(self) -> bool:
        """Whether a newer checkpoint was corrupt."""
        return bool(self.set_aside)

    def __str__(self) -> str:
        if self.path is None:
            return "a new run"
        aside = f"; set aside as corrupt: {', '.join(p.name for p in self.set_aside)}" if self.set_aside else ""
        return f"goes on from {self.path} at step {self.step}{aside}"


class Checkpoints:
    """Saves a loop as directories `step-00000042` in a folder, and goes on from them.

        checkpoints = loop.attach(Checkpoints("runs/a", every=100, keep=3, best="validation/loss"))
        print(checkpoints.resume(loop))

    Attached to a loop it saves after every `every` steps, at the end of each run, where SIGINT or SIGTERM stops it, and
    at the last whole step where the data, a hook or a NaN ends it.

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
        if mode not in ("min", "max") or on_failure not in ("raise", "warn"):
            raise ValueError(f"mode is {mode!r} ('min' or 'max'), on_failure {on_failure!r} ('raise' or 'warn')")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder)
        self._every, self._keep, self._best, self._sign = every, keep, best, 1 if mode == "min" else -1
        self._on_failure = on_failure
        self.run = self._identity()
        self._tidy()
        self._own = {step for step in self.steps() if self._is_ours(step)}
        self._best_step, self._best_value = self._read_best()
        self._saved = -1  # the step of the newest checkpoint that this object wrote or read

    # -- what a loop tells -----------------------------------------------------------------------------------------

    def attached(self, loop: "Loop") -> None:
        """Save as the loop runs."""
        if self._every is not None:
            loop.every_n_steps(self._every, self._save_due, name=loop.free_name("Checkpoints"), priority=50)
        loop.on_end(self._save_due, name=loop.free_name("Checkpoints at the end"), priority=50)

    def _save_due(self, loop: "Loop") -> None:
        if loop.step == self._saved or loop.step == 0:
            return
        try:
            self.save(loop)
        except CheckpointError as error:
            self._failed(error)

    def _failed(self, error: CheckpointError) -> None:
        if self._on_failure == "raise":
            raise error
        warnings.warn(f"training goes on without this checkpoint: {error}", stacklevel=3)

    def on_record(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Save where the watched figure is better than ever."""
        value = values.get(self._best or "", math.nan)
        if math.isnan(value) or not self._sign * value < self._sign * self._best_value:
            return
        previous = self._best_step, self._best_value
        self._best_step, self._best_value = loop.step, value
        try:
            self._save_due(loop)
            if loop.step not in self._own:  # it could not be saved, and that was only to be a warning
                self._best_step, self._best_value = previous
                return
            write_small(self.folder / "best.json", {"step": loop.step, "value": value, "figure": self._best})
        except BaseException as error:
            self._best_step, self._best_value = previous
            if not isinstance(error, OSError):
                raise
            self._failed(CheckpointError(f"{self.folder / 'best.json'} cannot be written: {error.strerror}"))
        self._retain()

    def on_stop(self, loop: "Loop") -> None:
        """A signal ends the run."""
        if loop.step not in (self._saved, 0):
            self.save(loop)

    def on_error(self, loop: "Loop", error: Exception) -> None:
        """An error ends the run at a step boundary."""
        if loop.step not in (self._saved, 0):
            error.add_note(f"the run up to here is saved as {self.save(loop)}")

    # -- saving ----------------------------------------------------------------------------------------------------

    def save(self, loop: "Loop") -> Path:
        """Write a checkpoint of the loop now, whole or not at all, and remove those that need not stay.

        Those of later steps, of a run that this one leaves behind, are renamed to `superseded-...`.

        Raises:
            CheckpointError: It cannot be written; those before it are as they were.
        """
        state = loop.state_dict()
        position = state["position"] or {"epoch": 0, "index": 0}
        about = {
            "run": self.run,
            "step": loop.step,
            "position": {"epoch": position["epoch"], "index": position["index"]},
            "signature": dict(state["trainer"]["signature"]),
            "figures": {name: value for name, value in loop.latest.items() if math.isfinite(value)},
        }
        path = write_checkpoint(self.folder, self.path(loop.step).name, state, about)
        self._saved = loop.step
        self._own.add(loop.step)
        for newer in [step for step in self.steps() if step > loop.step]:
            to = self._put_aside(newer, "superseded")
            warnings.warn(f"the run goes on from before {to.name}, which is put aside under that name", stacklevel=3)
        self._retain()
        return path

    def _retain(self) -> None:
        """Remove what this run made and need not keep; never the newest, and never the best."""
        if self._keep < 0:
            return
        for step in sorted(self._own)[: -self._keep]:
            if step != self._best_step:
                shutil.rmtree(self.path(step), ignore_errors=True)
                self._own.discard(step)

    # -- reading ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order; not yet verified."""
        with os.scandir(self.folder) as entries:
            return sorted(int(match[1]) for entry in entries if (match := _NAME.fullmatch(entry.name)))

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    @property
    def best_step(self) -> int | None:
        """The step at which the watched figure was best."""
        return self._best_step

    def read(self, step: int) -> Checkpoint:
        """A checkpoint, verified.

        Raises:
            CheckpointCorrupt: It is missing or not as it was written. CheckpointError: It cannot be read.
        """
        return read_checkpoint(self.path(step))

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
        aside: list[Path] = []
        for at in [step] if step is not None else reversed(self.steps()):
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
            self._saved = at
            return Resumed(at, checkpoint.path, tuple(aside))
        if aside:
            raise CheckpointCorrupt(f"no checkpoint in {self.folder} is whole: {', '.join(p.name for p in aside)}")
        return Resumed(0, None)

    def _set_aside(self, step: int, error: CheckpointCorrupt) -> Path:
        to = self._put_aside(step, "corrupt")
        warnings.warn(f"a corrupt checkpoint is set aside as {to.name}: {error}", stacklevel=3)
        return to

    def _put_aside(self, step: int, why: str) -> Path:
        path = self.path(step)
        to = self.folder / f"{why}-{path.name}"
        while to.exists() or to.is_symlink():
            to = self.folder / f"{why}-{path.name}-{secrets.token_hex(2)}"
        os.rename(path, to)
        self._own.discard(step)
        return to

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
        self._lock.release()

    # -- what else is in the folder --------------------------------------------------------------------------------

    def _identity(self) -> str:
        """The run's id, from `run.json`; a new one where that is missing or no longer readable."""
        run = self._read_small("run.json").get("run")
        if isinstance(run, str) and re.fullmatch(r"[0-9a-f]{16}", run):
            return run
        run = secrets.token_hex(8)
        write_small(self.folder / "run.json", {"run": run})
        return run

    def _read_best(self) -> tuple[int | None, float]:
        found = self._read_small("best.json")
        step, value = found.get("step"), found.get("value")
        if (
            self._best
            and found.get("figure") == self._best
            and isinstance(step, int)
            and isinstance(value, float | int)
        ):
            return step, float(value)
        return None, self._sign * math.inf

    def _read_small(self, name: str) -> dict[str, Any]:
        try:
            found = from_json((self.folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _tidy(self) -> None:
        """Finish what a killed process of this run left: its temporary directories, and a replacement half done."""
        for entry in sorted(os.listdir(self.folder)):
            if entry.startswith(f".tmp-{self.run}-"):
                shutil.rmtree(self.folder / entry, ignore_errors=True)
            elif _NAME.fullmatch(entry.removeprefix(".old-")) and entry.startswith(".old-"):
                final = self.folder / entry.removeprefix(".old-")
                if final.exists():
                    shutil.rmtree(self.folder / entry, ignore_errors=True)
                else:
                    os.rename(self.folder / entry, final)

    def _is_ours(self, step: int) -> bool:
        try:
            return bool(read_manifest(self.path(step)).get("run") == self.run)
        except CheckpointError:
            return False


def _mean(tensors: list[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
