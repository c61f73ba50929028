"""A run's folder: whose it is, which checkpoints are in it, and putting aside what is not to be there."""

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from shaped import files
from shaped.checkpoint.codec import from_json
from shaped.checkpoint.files import made_by, remove_checkpoint, write_small
from shaped.checkpoint.lock import Lock
from shaped.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8,12})")


class RunFolder:
    """A folder that one run holds, made where it is missing.

    Attributes:
        path: The folder.
        run: The run's id, from `run.json`: what the manifests of its checkpoints say.

    Raises:
        RunLocked: Another process runs here. CheckpointError: A file of the run is a link or a pipe. OSError: No folder
        can be made.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, Lock(path)
        try:
            self.run = self._identity()
            self._tidy()
        except BaseException:
            self._lock.release()
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
        """Finish what a killed process of this run left: its temporary directories, and a replacement half done."""
        for entry in sorted(os.listdir(self.path)):
            path = self.path / entry
            if entry.startswith(f".tmp-{self.run}-"):
                shutil.rmtree(path, ignore_errors=True)
            elif entry.startswith(".old-") and _NAME.fullmatch(entry.removeprefix(".old-")) and self.made(path):
                final = self.path / entry.removeprefix(".old-")
                if os.path.lexists(final):
                    remove_checkpoint(path)
                else:
                    os.rename(path, final)

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
        self._lock.release()
