"""A record of what was done, one JSON line for each event; each line bears the hash of the one before it.

    {"n": 3, "time": "...", "event": "commit", "data": {...}, "previous": "9f2c...", "hash": "41ab..."}

Lines are appended and flushed to the disk, never changed. A line that is changed, inserted or taken out breaks the
chain, and `verify_log` names it. Lines cut off at the end leave a whole chain: compare `head` with one kept elsewhere.
"""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shaped import files
from shaped.arguments import checked
from shaped.checkpoint.codec import from_json, to_json
from shaped.errors import CheckpointCorrupt, CheckpointError, listing

_FIRST = "0" * 64


class AuditLog:
    """Appends events to a file, and goes on with the chain of one that is there.

    A last line that a crash left half written is cut off, and the event `recovered` says how long it was. A file that
    is no such log stays as it is.

    Args:
        path: The file; its folder is there.
        only: The events that may be in it, besides `recovered`; None for any.

    Raises:
        CheckpointCorrupt: The chain is broken, or the file is no log at all; the message names the line.
        CheckpointError: It is a link, a pipe or a folder, or has other events. Nothing has changed.
    """

    @checked
    def __init__(self, path: str | Path, *, only: Collection[str] | None = None) -> None:
        self.path = Path(path)
        self.count, self.head, self.size = 0, _FIRST, 0
        if not os.path.lexists(self.path):
            return
        try:
            torn = self._take_up(only)
        except files.NotRegular as error:
            raise CheckpointError(f"{self.path}: {error.strerror}") from None
        if torn:
            self.append("recovered", bytes=torn)

    def _take_up(self, only: Collection[str] | None) -> int:
        """Go on with the chain; how many bytes of a torn line were cut off."""
        with files.held(self.path) as descriptor:  # a line that another writes at this moment is not torn
            content = files.read(self.path)
            torn = files.lines(content)[1]
            self.size = len(content) - len(torn)
            for entry in _entries(self.path, content[: self.size]):
                self.count, self.head = self.count + 1, entry["hash"]
                if only is not None and entry["event"] not in (*only, "recovered"):
                    raise CheckpointError(f"{self.path} has the event {entry['event']!r}, so it is another log")
            if torn:
                self._check_torn(torn)
                os.ftruncate(descriptor, self.size)
        return len(torn)

    def _check_torn(self, torn: bytes) -> None:
        """Whether the rest after the last whole line may be one of ours that a crash tore."""
        # The first line is never torn (see `append`), and what is whole JSON was written so by somebody else.
        if self.count == 0 or not torn.startswith(b"{") or _is_json(torn):
            raise CheckpointCorrupt(f"{self.path}, line {self.count + 1}: it is not what was written there")

    @checked
    def append(self, event: str, **data: Any) -> Mapping[str, Any]:
        """Write an event, flushed to the disk, and return its line as data.

        Args:
            event: What happened.
            data: Plain data; numbers are finite.

        Raises:
            ValueError: `data` is no plain data, or holds a number that is not finite.
            CheckpointError: Another log has written to the file since; nothing was appended.
        """
        try:
            to_json(data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{listing(list(data))}: a line holds plain data and finite numbers: {error}") from None
        now = datetime.now(UTC).isoformat()
        body = {"n": self.count, "time": now, "event": event, "data": data, "previous": self.head}
        head = hashlib.sha256(to_json(body)).hexdigest()
        entry = {**body, "hash": head}
        line = to_json(entry) + b"\n"
        try:
            files.append_line(self.path, line, size=self.size)
        except files.Changed:
            raise CheckpointError(f"{self.path} was written to by another since it was opened: open it again") from None
        except files.NotRegular as error:
            raise CheckpointError(f"{self.path}: {error.strerror}") from None
        self.size += len(line)
        self.count, self.head = self.count + 1, head
        return entry

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return events(self.path)


def _is_json(text: bytes) -> bool:
    try:
        from_json(text)
    except (ValueError, RecursionError):
        return False
    return True


def events(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """The events of a log, each verified.

    Raises:
        CheckpointCorrupt: A line is not what was written; the message names it.
    """
    path = Path(path)
    try:
        content = files.read(path)
    except FileNotFoundError:
        return
    except files.NotRegular as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    yield from _entries(path, content)


def _entries(path: Path, content: bytes) -> Iterator[Mapping[str, Any]]:
    (lines, torn), head = files.lines(content), _FIRST
    for number, line in enumerate([*lines, torn] if torn else lines):
        try:
            entry = from_json(line)
            said = entry.pop("hash")
            whole = hashlib.sha256(to_json(entry)).hexdigest() == said
            chained = entry["previous"] == head and entry["n"] == number
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = chained = False
        if not (whole and chained):
            raise CheckpointCorrupt(f"{path}, line {number + 1}: it is not what was written there")
        head = said
        yield {**entry, "hash": said}


@checked
def verify_log(path: str | Path) -> int:
    """Check the whole chain of a log; how many events it has.

    Raises:
        CheckpointCorrupt: As `events`.
    """
    return sum(1 for _ in events(path))
