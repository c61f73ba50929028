"""A process of its own for what may hang, exit, crash or print: it has no terminal, and nothing of it outlives it.

Where this process has no other thread, it is forked from this one, which has imported torch already; that is a second
and more for each file. Otherwise, and where a system's libraries do not bear it, it is a new Python.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LOOK = 0.01  # seconds between two looks at whether it is over


class Child:
    """A process that does a task.

    Args:
        task: What it does with some arguments.
        program: The same for a new Python, with the arguments in `sys.argv`.
        said: A file for what it writes to stderr.
        seconds: After which it is late.
    """

    def __init__(
        self, task: Callable[[Sequence[str]], None], program: str, arguments: Sequence[str], said: Path, seconds: float
    ) -> None:
        self.said, self.until = said, time.monotonic() + seconds
        self.status: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if may_fork():
            self._pid = _forked(task, arguments, said)
            return
        with said.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                process_group=0 if os.name == "posix" else None,
            )  # fmt: skip
        self._pid = self._process.pid

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.until

    def is_over(self) -> bool:
        """Whether it has ended; what it started and left behind is ended with it."""
        if self.status is None:
            if self._process is not None:
                self.status = self._process.poll()
            else:
                self.status = self._waited(os.WNOHANG)
            if self.status is not None:
                self._end_group()
        return self.status is not None

    def end(self) -> None:
        """Kill it, if it goes on."""
        if self.status is not None:
            return
        self._end_group()
        if self._process is not None:
            self._process.kill()
            self.status = self._process.wait()
        else:
            self.status = self._waited(0)

    def _waited(self, how: int) -> int | None:
        try:
            pid, status = os.waitpid(self._pid, how)
        except ChildProcessError:  # who started us has ended children forgotten
            return 0
        return os.waitstatus_to_exitcode(status) if pid else None

    def _end_group(self) -> None:
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)


def may_fork() -> bool:
    """Whether this process has one thread, and a system whose libraries can be forked."""
    try:
        return sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _forked(task: Callable[[Sequence[str]], None], arguments: Sequence[str], said: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        _do(task, arguments, said)
    with suppress(OSError):  # the child does it, too: whoever comes first
        os.setpgid(pid, pid)
    return pid


def _do(task: Callable[[Sequence[str]], None], arguments: Sequence[str], said: Path) -> NoReturn:
    """In the child: its streams and signals are its own."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):
            os.dup2(nothing, stream)
        if os.getcwd() not in sys.path:  # as a new Python has it
            sys.path.insert(0, os.getcwd())
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stdin, sys.stdout, sys.stderr = (open(i, mode) for i, mode in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
        task(arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)
