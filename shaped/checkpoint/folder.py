"""A run's folder: whose it is, which checkpoints are in it, and putting aside what is not to be there."""

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shaped import files
from shaped.checkpoint.codec import from_json
from shaped.checkpoint.files import made_by, read_manifest, remove_checkpoint, write_small
from shaped.checkpoint.lock import Lock
from shaped.errors import CheckpointError
from shaped.ranks import rank_here

_NAME = re.compile(r"step-(\d{8,12})")
_ASIDE = re.compile(r"(superseded|foreign)-step-(\d{8,12})(-[0-9a-f]{4})?")
_BEHIND = ".behind.json"  # what a save is about to put aside
_SMALL = re.compile(r"\.tmp-[0-9a-f]{8}-(run|best|\.behind)\.json")  # of which a kill left a part


class RunFolder:
    """A folder that one run holds, made where it is missing; of several ranks, rank 0 holds it.

    Attributes:
        path: The folder.
        run: The run's id, from `run.json`: what the manifests of its checkpoints say.

    Raises:
        RunLocked: Another process runs here. CheckpointError: A file of the run is a link or a pipe. OSError: No folder
        can be made.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.run = path, ""
        self._lock: Lock | None = None
        if rank_here() == 0:
            self.hold()

    def hold(self) -> None:
        """Be the one that writes here: on a rank other than 0, where it runs by itself after all. Raises as it says."""
        if self._lock is not None:
            return
        self._lock = Lock(self.path)
        try:
            self.run = self._identity()
            self.read_small("best.json")  # a link or a pipe is refused before anything is written
            self._tidy()
        except BaseException:
            self.close()
            raise

    def _identity(self) -> str:
        """The run's id; a new one where `run.json` is missing or no longer readable."""
        run = self.read_small("run.json").get("run")
        if isinstance(run, str) and re.fullmatch(r"[0-9a-f]{16}", run):
            return run
        run = secrets.token_hex(8)
        write_small(self.path / "run.json", {"run": run})
        return run

    def _tidy(self) -> None:
        """Finish what a killed process of this run left: temporary files, and what was replaced or left behind."""
        for entry in sorted(os.listdir(self.path)):
            path = self.path / entry
            if entry.startswith(f".tmp-{self.run}-"):
                shutil.rmtree(path, ignore_errors=True)
            elif _SMALL.fullmatch(entry):
                with suppress(OSError):
                    os.unlink(path)
            elif entry.startswith(".old-") and _NAME.fullmatch(entry.removeprefix(".old-")) and self.made(path):
                final = self.path / entry.removeprefix(".old-")
                if os.path.lexists(final):
                    remove_checkpoint(path)
                else:
                    os.rename(path, final)
        if moved := self.finish():
            warnings.warn(f"a killed save is finished; put aside under new names: {', '.join(moved)}", stacklevel=5)

    def plan(self, step: int, token: str, aside: Mapping[int, Path]) -> None:
        """Note what the save of a step, whose manifest will have the token, leaves behind: with it that is put aside.

        So a process that is killed in between leaves all of it or nothing of it: `finish` reads the note.

        Raises:
            OSError: It cannot be written.
        """
        names = [[at, to.name] for at, to in aside.items()]
        write_small(self.path / _BEHIND, {"step": step, "token": token, "aside": names})

    def finish(self) -> list[str]:
        """Put aside what the last save left behind where its checkpoint is there, or else put back what it moved.

        Returns:
            The new names.

        Raises:
            OSError: Something cannot be renamed; the next start, or the next save, finishes it.
        """
        if not os.path.lexists(self.path / _BEHIND):
            return []
        step, token, aside = _planned(self.read_small(_BEHIND))
        done = self._has_token(step, token)
        moved = []
        for at, name in aside.items():
            here, there = self.step(at), self.path / name
            if not done and at == step and os.path.lexists(there) and not os.path.lexists(here):
                os.rename(there, here)
            elif done and at != step and os.path.lexists(here):
                moved.append(name if not os.path.lexists(there) else self.aside(here, name.partition("-")[0]).name)
                os.rename(here, self.path / moved[-1])
        files.flush(self.path)
        os.unlink(self.path / _BEHIND)
        return moved

    def _has_token(self, step: int, token: str) -> bool:
        try:
            manifest = read_manifest(self.step(step))
        except CheckpointError:
            return False
        return manifest.get("run") == self.run and manifest.get("token") == token

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order; not yet verified."""
        with os.scandir(self.path) as entries:
            return sorted(int(match[1]) for entry in entries if (match := _NAME.fullmatch(entry.name)))

    def step(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"step-{step:08d}"

    def is_ours(self, step: int) -> bool:
        """Whether this run made the checkpoint of a step."""
        return self.made(self.step(step))

    def made(self, path: Path) -> bool:
        """Whether this run made a checkpoint, as its manifest says."""
        return made_by(path, self.run)

    def aside(self, path: Path, why: str) -> Path:
        """A name `why-...` that nothing has."""
        to = self.path / f"{why}-{path.name}"
        while os.path.lexists(to):
            to = self.path / f"{why}-{path.name}-{secrets.token_hex(2)}"
        return to

    def put_aside(self, path: Path, why: str) -> Path:
        """Rename to `why-...`; nothing is lost."""
        to = self.aside(path, why)
        os.rename(path, to)
        return to

    def read_small(self, name: str) -> dict[str, Any]:
        """A small JSON file; an empty table where it is missing or damaged.

        Raises:
            CheckpointError: It is a link, a pipe or a folder.
        """
        try:
            found = from_json(files.read(self.path / name, 2**20))
        except files.NotRegular as error:
            raise CheckpointError(f"{self.path / name}: {error.strerror}") from None
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def _planned(found: Mapping[str, Any]) -> tuple[int, str, dict[int, str]]:
    """A note of `RunFolder.plan`; one that is damaged says nothing."""
    step, token, names = found.get("step"), found.get("token"), found.get("aside")
    if type(step) is int and type(token) is str and isinstance(names, list):
        with suppress(TypeError, ValueError):
            aside = {int(at): str(name) for at, name in names}
            if all(at >= 0 and _ASIDE.fullmatch(name) for at, name in aside.items()):
                return step, token, aside
    return 0, "", {}
