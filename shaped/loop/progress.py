"""What people see: a bar with loss, metrics, median step, samples a second and time left; plain lines elsewhere."""

import math
import sys
import time
from typing import TYPE_CHECKING, Any

from shaped.arguments import checked
from shaped.data.feed import batch_size

if TYPE_CHECKING:
    from shaped.loop.loop import Loop


class Progress:
    """Shows how a run goes: a rich bar on a terminal; a plain line every `seconds` where there is none, or no rich.

    Output that cannot be written (a closed pipe) is given up; training goes on.

    Args:
        title: What stands before the bar.
        seconds: Between plain lines.
        file: Where to; standard output by default.

    Raises:
        ValueError: `file` cannot be written to, or `seconds` is no number.
    """

    @checked
    def __init__(self, title: str = "train", seconds: float = 10.0, file: Any = None) -> None:
        if file is not None and not hasattr(file, "write"):
            raise ValueError(f"file is a {type(file).__name__}; it is something with `write`, or None")
        self.title, self._seconds, self._file = title, seconds, file
        self._bar: Any = None
        self._task: Any = None
        self._shown, self._line_at, self._samples, self._since = 0.0, 0.0, 0, 0.0
        self._silent, self._ranks = False, 1

    def attached(self, loop: "Loop") -> None:
        """Show from the first step on; of several ranks, rank 0 alone."""
        self._silent = not loop.peers.leads
        self._ranks = loop.peers.size
        loop.on_start(self._start, name=loop.free_name("Progress start"), priority=90)
        loop.on_step(self._step, name=loop.free_name("Progress"), priority=90)

    def _start(self, loop: "Loop") -> None:
        now = time.monotonic()
        self._shown, self._line_at, self._since, self._samples = 0.0, now, now, 0
        self._bar = None if self._silent else self._rich_bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, note="")

    def _rich_bar(self) -> Any:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
        except ImportError:
            return None
        console = Console(file=self._file)
        if not console.is_terminal or console.is_dumb_terminal:
            return None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[note]}"), TimeRemainingColumn())  # fmt: skip
        return Bar(*columns, console=console)

    def _step(self, loop: "Loop") -> None:
        if self._silent:
            return
        if loop.batch is not None:
            self._samples += self._ranks * batch_size(loop.batch)
        now = time.monotonic()
        if self._bar is not None and now - self._shown > 0.1:
            self._shown = now
            total = None if loop.end_step is None else loop.end_step
            self._bar.update(self._task, completed=loop.step, total=total, note=self.note(loop, now))
        elif self._bar is None and now - self._line_at >= self._seconds:
            self._line_at = now
            self._say(f"{self._where(loop)}  {self.note(loop, now)}{self._left(loop, now)}")

    def note(self, loop: "Loop", now: float) -> str:
        """Loss, latest figures, median step and samples a second."""
        rate = self._samples / max(now - self._since, 1e-9)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in loop.latest.items())
        parts = [f"loss {loop.average.compute():.4g}", figures, f"{1e3 * loop.median_step:.2f} ms", f"{rate:.4g}/s"]
        return "  ".join(part for part in parts if part)

    def _where(self, loop: "Loop") -> str:
        return f"{self.title}: step {loop.step}" + (f" of {loop.end_step}" if loop.end_step is not None else "")

    def _left(self, loop: "Loop", now: float) -> str:
        taken = loop.step - loop.start_step
        if loop.end_step is None or not taken or math.isnan(loop.median_step):
            return ""
        return f"  {(loop.end_step - loop.step) * (now - self._since) / taken:.0f} s left"

    def on_close(self, loop: "Loop") -> None:
        """The run is over: close the bar and say where it stands."""
        now = time.monotonic()
        try:
            if self._bar is not None:
                self._bar.update(self._task, completed=loop.step, note=self.note(loop, now))
                self._bar.stop()
        except (OSError, ValueError):
            self._silent = True
        self._bar = None
        if loop.durations and not self._silent:
            self._say(f"{self._where(loop)}, {self.note(loop, now)}")

    def _say(self, text: str) -> None:
        try:
            print(text, file=self._file or sys.stdout, flush=True)
        except (OSError, ValueError):  # a closed pipe or file, or a character that its encoding lacks
            self._silent = True
