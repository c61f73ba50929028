"""A record of what was done, one JSON line for each event; each line bears the hash of the one before it.

    {"n": 3, "time": "...", "event": "commit", "data": {...}, "previous": "9f2c...", "hash": "41ab..."}

Lines are appended and flushed to the disk, never changed. A line that is changed, inserted or taken out breaks the
chain, and `verify_log` names it. Lines cut off at the end leave a whole chain: compare `head` with one kept elsewhere.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shaped.checkpoint.codec import from_json, to_json
from shaped.checkpoint.files import append
from shaped.errors import CheckpointCorrupt, CheckpointError

_FIRST = "0" * 64


class AuditLog:
    """Appends events to a file, and goes on with the chain of one that is there.

    A last line that a crash left half written is cut off, and the event `recovered` says how long it was.

    Args:
        path: The file; its folder is there.

    Raises:
        CheckpointCorrupt: The chain is broken; the message names the line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count, self.head, self.size, torn = 0, _FIRST, 0, 0
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            torn = len(content) - whole
            if torn:
                os.truncate(self.path, whole)
            self.size = whole
            for entry in events(self.path):
                self.count, self.head = self.count + 1, entry["hash"]
        if torn:
            self.append("recovered", bytes=torn)

    def append(self, event: str, **data: Any) -> Mapping[str, Any]:
        """Write an event, flushed to the disk, and return its line as data.

        Args:
            event: What happened.
            data: Plain data; numbers are finite.

        Raises:
            CheckpointError: Another log has written to the file since; nothing was appended.
        """
        now = datetime.now(UTC).isoformat()
        body = {"n": self.count, "time": now, "event": event, "data": data, "previous": self.head}
        head = hashlib.sha256(to_json(body)).hexdigest()
        entry = {**body, "hash": head}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _hold(descriptor)
            if os.fstat(descriptor).st_size != self.size:
                raise CheckpointError(f"{self.path} was written to by another since it was opened: open it again")
            append(descriptor, line := to_json(entry) + b"\n")
            self.size += len(line)
        finally:
            os.close(descriptor)
        self.count, self.head = self.count + 1, head
        return entry

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return events(self.path)


def _hold(descriptor: int) -> None:
    """Keep others from appending until the descriptor is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def events(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """The events of a log, each verified.

    Raises:
        CheckpointCorrupt: A line is not what was written; the message names it.
    """
    path, head = Path(path), _FIRST
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines):
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


def verify_log(path: str | Path) -> int:
    """Check the whole chain of a log; how many events it has.

    Raises:
        CheckpointCorrupt: As `events`.
    """
    return sum(1 for _ in events(path))
