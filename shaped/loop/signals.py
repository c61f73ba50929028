"""SIGINT and SIGTERM while a loop runs: the first asks it to stop at the end of its step, the second ends at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ended the run at a step boundary; everything is saved. The exit status is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}"


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
