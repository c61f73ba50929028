"""Versions of a model: checkpoints that are read back and verified before they count, and before they are used."""

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shaped.arguments import checked, whole
from shaped.checkpoint.files import Checkpoint, made_by, read_checkpoint, remove_checkpoint, write_checkpoint
from shaped.checkpoint.lock import Lock
from shaped.errors import CheckpointCorrupt, CheckpointError

_NAME = re.compile(r"version-(\d{6,12})")


@dataclass(frozen=True)
class Version:
    """A verified version: its number, why it was made, and its state."""

    number: int
    reason: str
    path: Path
    state: Any

    def __repr__(self) -> str:
        return f"Version({self.number}, {self.reason!r})"


class Versions:
    """The versions in a folder, `version-000001` and on. Numbers only grow; the oldest are removed.

    Args:
        folder: Of this model alone; it is made. A lock keeps a second process out.
        keep: How many of the newest stay.

    Raises:
        RunLocked: Another process works here. ValueError: `keep` is below 1.
    """

    @checked
    def __init__(self, folder: str | Path, *, keep: int = 5) -> None:
        self.folder, self.keep = Path(folder), whole("keep", keep, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder)
        for entry in os.listdir(self.folder):
            if entry.startswith(".tmp-versions-"):  # a process was killed while it wrote
                shutil.rmtree(self.folder / entry, ignore_errors=True)

    def numbers(self) -> list[int]:
        """The versions that are there, in order; not yet verified."""
        names = (_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(match[1]) for match in names if match)

    @checked
    def save(self, state: Mapping[str, Any], reason: str) -> Version:
        """Write a state as the next version, read it back, and remove those that need not stay.

        Raises:
            CheckpointError: It cannot be written, or what was read back is not whole; the versions are as they were.
        """
        number = max(self._highest(), 0) + 1
        name = f"version-{number:06d}"
        path = write_checkpoint(self.folder, name, state, {"run": "versions", "version": number, "reason": reason})
        try:
            made = self.read(number)
        except CheckpointError:
            remove_checkpoint(path)
            raise
        for old in self.numbers()[: -self.keep]:
            if made_by(self.folder / f"version-{old:06d}", "versions"):
                remove_checkpoint(self.folder / f"version-{old:06d}")
        return made

    def _highest(self) -> int:
        """The largest number ever used here that can still be seen, those set aside included."""
        found = (re.search(r"version-(\d{6,12})", name) for name in os.listdir(self.folder))
        return max((int(match[1]) for match in found if match), default=0)

    @checked
    def read(self, number: int) -> Version:
        """A version, verified.

        Raises:
            CheckpointCorrupt: It is missing or not as it was written. CheckpointError: It cannot be read.
        """
        found: Checkpoint = read_checkpoint(self.folder / f"version-{number:06d}")
        return Version(number, str(found.manifest.get("reason", "")), found.path, found.state)

    @checked
    def newest(self, before: int | None = None) -> Version | None:
        """The newest version that is whole, or None where there is none.

        A corrupt one is named in a warning and renamed to `corrupt-...`.

        Args:
            before: Look at those with a smaller number only.

        Raises:
            CheckpointCorrupt: There are some, and none is whole.
        """
        numbers = [n for n in reversed(self.numbers()) if before is None or n < before]
        for number in numbers:
            try:
                return self.read(number)
            except CheckpointCorrupt as error:
                path = self.folder / f"version-{number:06d}"
                to = self.folder / f"corrupt-{path.name}-{secrets.token_hex(2)}"
                os.rename(path, to)
                warnings.warn(f"a corrupt version is set aside as {to.name}: {error}", stacklevel=2)
        if numbers:
            raise CheckpointCorrupt(f"no version in {self.folder} is whole")
        return None

    def close(self) -> None:
        """Let another process have the folder; the process's end does so too."""
        self._lock.release()
