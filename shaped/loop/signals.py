"""SIGINT and SIGTERM while a loop runs: the first asks it to stop at the end of its step, the second ends at once."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaped.data.feed import Feed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ended the run at a step boundary; checkpoints are made. The exit status is 128 + its number.

    What became of the run is said on standard error when it is raised, since a SystemExit ends a script without a word.
    """

    def __init__(self, number: int, step: int = 0, said: Sequence[str] = (), *, quiet: bool = False) -> None:
        super().__init__(128 + number)
        self.signal, self._step, self._said = signal.Signals(number), step, tuple(said)
        if quiet:  # on ranks other than 0
            return
        with suppress(OSError, ValueError, AttributeError):  # output that is gone must not hide how the run ended
            print(f"shaped: {self}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        saved = "; ".join(self._said) or "nothing is saved, since no Checkpoints are attached"
        return f"stopped by {self.signal.name} after step {self._step}: {saved}"


class Workers:
    """Keeps torch from raising in the middle of a step that a data worker died.

    torch's handler of SIGCHLD raises wherever the main thread is, so that a step may be left half taken. While this is
    entered, it raises only where the loop waits for a batch.
    """

    def __init__(self) -> None:
        self.feed: Feed | None = None
        self._theirs: Any = None  # torch's handler
        self._died = False
        self._seen: Any = None  # the iterator after whose making it was looked

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._theirs is not None and signal.getsignal(signal.SIGCHLD) == self._receive:
            signal.signal(signal.SIGCHLD, self._theirs)
        self.feed = self._theirs = self._seen = None
        self._died = False

    def look(self) -> None:
        """Before a batch is asked for.

        Raises:
            RuntimeError: torch's: a worker was killed since the last batch.
        """
        if self._died:
            self._died = False
            self._theirs(signal.SIGCHLD, None)

    def take_over(self, feed: "Feed") -> None:
        """Take torch's handler over, which its first workers bring; after data was opened."""
        self.feed = feed
        if feed.iterator is self._seen or not hasattr(signal, "SIGCHLD"):
            return
        self._seen, handler = feed.iterator, signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", None) != "torch.utils.data._utils.signal_handling":
            return
        if threading.current_thread() is threading.main_thread():
            self._theirs = handler
            signal.signal(signal.SIGCHLD, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.feed is not None and self.feed.waiting:
            self._theirs(number, frame)
        else:
            self._died = True


class Watch:
    """Listens while it is entered. Only the main thread can; elsewhere, and where not asked to, it hears nothing."""

    def __init__(self, listen: bool) -> None:
        self.received = 0
        self._listen = listen and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Watch":
        if self._listen:
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)  # a save that is under way leaves the checkpoints before it whole
        self.received = number
