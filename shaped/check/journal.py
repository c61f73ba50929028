"""What the process of a file writes of each function before and after it: who reads it knows which one ended it."""

import json
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shaped.check.verdicts import Shape, Verdict
from shaped.errors import Source

Place = tuple[str, str, int]  # name of a function, its file and line
_SHARE = 3  # a function that hangs may take one part in so many of the time that its file has left


@dataclass
class Journal:
    """The verdicts that are known, in a file that grows with them.

    Attributes:
        known: By the names of their functions; what is here is not asked again.
        under_way: The function that was begun and not ended.
        until: When the file's time is over, as `time.monotonic` counts it; None where nobody says.
    """

    place: Path
    known: dict[str, Verdict] = field(default_factory=dict)
    under_way: Place | None = None
    until: float | None = None

    @classmethod
    def read(cls, place: Path) -> "Journal":
        """What an earlier process wrote; a last line that is torn is none."""
        journal = cls(place)
        for line in place.read_text().splitlines() if place.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, list):
                journal.under_way = entry[0], entry[1], entry[2]
            else:
                journal._keep(verdict_of(entry))
        return journal

    def begin(self, place: Place, is_last: bool = True) -> None:
        """Write that a function is looked at now. This process ends where one that is not the last takes too long."""
        self.under_way = place
        self._write(list(place))
        if self.until is not None and not is_last:
            _end_after(max((self.until - time.monotonic()) / _SHARE, 0.1))

    def end(self, verdict: Verdict) -> None:
        """Write what was found of it."""
        if self.until is not None:
            _end_after(0)
        self._keep(verdict)
        self._write(asdict(verdict))

    def _keep(self, verdict: Verdict) -> None:
        self.known[verdict.function] = verdict
        self.under_way = None

    def _write(self, entry: Any) -> None:
        with self.place.open("a") as file:  # closed at once: the next function may end the process
            file.write(json.dumps(entry) + "\n")


def _end_after(seconds: float) -> None:
    """Let the system end this process, whatever it is at: who reads the journal goes on behind. 0 takes that back."""
    with suppress(AttributeError, ValueError):  # Windows, or not the main thread
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def verdict_of(data: Mapping[str, Any]) -> Verdict:
    """A verdict as `dataclasses.asdict` wrote it."""
    source = Source(**data["source"]) if data["source"] else None
    lists = {name: tuple(data[name]) for name in ("conditions", "steps", "dims", "factories")}
    shapes = tuple(Shape(*shape) for shape in data["shapes"])
    context = tuple((name, shape, where) for name, shape, where in data["context"])
    return Verdict(**{**data, **lists, "source": source, "shapes": shapes, "context": context})
