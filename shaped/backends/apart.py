"""Compiling in another process, so that steps go on meanwhile and nothing here waits for the interpreter.

A graph is traced here, and goes to a new process as data. That process compiles it into torch's on-disk cache, where it
is found as it is by a second start: what runs here is loaded by the same key and the same code. A thread would not
do: Inductor's settings are the process's, and its Python would hold up each operation of a step.

The other process ends with this one: it is killed where the trainer goes or Python ends, and ends by itself where its
parent has gone without a word. It has a session of its own, so that Ctrl-C is for the run alone, and it gives way to
the run where there are too few cores.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import IO, Any

import torch

from shaped.backends.executors import CompileError, Key, Lowered, tell
from shaped.backends.inductor import Prepared, compile_pickled, keeps
from shaped.errors import first_line
from shaped.proof.whole import DEFINED_BY

_START = (
    "import os, pickle, sys; os.nice(10); sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from shaped.backends.apart import work; work(sys.stdin.buffer)"
)
_LOOK = 0.5  # seconds between looks whether the parent is there
_DONE = 4  # jobs that wait to be asked for


class NotYetError(Exception):
    """There is no executor as yet; nothing has run, and nothing has changed."""


class Compilation:
    """One graph that another process compiles.

    Args:
        prepared: The graph.
        what: What it is, for a reader.

    Attributes:
        started: When, by the monotonic clock.

    Raises:
        Exception: It cannot go to another process.
    """

    def __init__(self, prepared: Prepared, what: str) -> None:
        self.prepared, self.what, self.started = prepared, what, time.monotonic()
        pickled, path = prepared.pickled(), [entry or os.getcwd() for entry in sys.path]
        self._result: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        with tempfile.TemporaryFile() as told:  # a file, so that neither side waits for the other
            pickle.dump(path, told)
            pickle.dump((os.getpid(), {name: now() for name, (now, _) in _SWITCHES.items()}, pickled), told)
            told.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],  # not with a `pickle` of the working folder
                stdin=told,
                stdout=self._result,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._stop = weakref.finalize(self, _stop, self._process, self._result, os.getpid())

    @property
    def runs(self) -> bool:
        """Whether it is at work."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it, whether it is done or not."""
        self._stop()

    def verdict(self) -> tuple[str, str]:
        """How it went: "compiled", "refused" with the compiler's words, or "failed" with what is known."""
        self._result.seek(0)
        said = self._result.read()
        self.stop()
        try:
            kind, text = json.loads(said)
        except ValueError:
            return "failed", f"ended with status {self._process.returncode}"
        return str(kind), str(text)


def _stop(process: "subprocess.Popen[bytes]", result: IO[bytes], parent: int) -> None:
    """Kill a process and all that it has started; in a forked child it is not ours."""
    if os.getpid() == parent:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        process.returncode = 0
    result.close()


class Apart:
    """Gives executors that are there, and has the others compiled by another process, one at a time.

    Attributes:
        ready: Whether it is time to compile what is asked for next; nothing is traced before.
    """

    def __init__(self) -> None:
        self.ready = False
        self._jobs: dict[Key, Compilation] = {}
        self._owner = os.getpid()

    @property
    def compiling(self) -> str:
        """What is compiled now, for a reader; empty where nothing is."""
        return next((job.what for job in self._jobs.values() if self._owner == os.getpid() and job.runs), "")

    def lower(self, key: Key, what: str, prepare: Callable[[], Prepared]) -> Lowered:
        """Compiled code, where it is there.

        Args:
            key: What is asked for; another is another graph.
            what: The same for a reader.
            prepare: Traces the graph.

        Raises:
            NotYetError: It is not, and perhaps it is being compiled. CompileError: The compiler refuses it.
        """
        if self._owner != os.getpid():  # a fork: the processes are the parent's
            self._jobs, self._owner = {}, os.getpid()
        if self.compiling:
            raise NotYetError
        if key in self._jobs:
            return self._finished(self._jobs.pop(key))
        if not self.ready:
            raise NotYetError
        prepared = prepare()
        if prepared.bare or not keeps() or not hasattr(os, "killpg"):
            return prepared.compiled()
        if (kept := prepared.kept()) is not None:
            return kept
        try:
            job = Compilation(prepared, what)
        except Exception as error:  # whatever pickle says of an operation or a setting of the user's
            tell(f"shaped: compiling {what} here, since it cannot go to another process: {first_line(error)}")
            return prepared.compiled()
        while len(self._jobs) >= _DONE:
            self._jobs.pop(next(iter(self._jobs))).stop()
        self._jobs[key] = job
        tell(f"shaped: compiling {what} in another process; steps are taken eagerly until it is done")
        raise NotYetError

    def _finished(self, job: Compilation) -> Lowered:
        kind, text = job.verdict()
        seconds, prepared = time.monotonic() - job.started, job.prepared
        if kind == "refused":
            raise CompileError(text)
        if kind == "failed":
            raise CompileError(f"the process that compiled {job.what} {text}. backend='compiled' compiles it here")
        lowered = prepared.kept() if kind == "compiled" else None
        if lowered is None:
            why = text or "left nothing in the cache of torch"
            tell(f"shaped: compiling {job.what} here, since another process {why}")
            lowered = prepared.compiled()
        tell(f"shaped: {job.what} was compiled within {seconds:.0f} s; steps are compiled from here on")
        return replace(lowered, seconds=seconds)


_SWITCHES: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {  # what generated code depends on
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
}


def _set(switches: Mapping[str, Any]) -> None:
    """Set this process as another is; one that is set already stays untouched, since being set is seen too."""
    for name, (now, put) in _SWITCHES.items():
        if now() != switches[name]:
            put(switches[name])


def work(told: IO[bytes]) -> None:
    """In the other process: compile what stdin says, and write how it went to stdout."""
    parent, switches, pickled = pickle.load(told)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a compiler prints is not the verdict
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    verdict = "compiled", ""
    try:
        _set(switches)
        for define in DEFINED_BY.values():
            define()
        compile_pickled(pickled)
    except CompileError as error:
        verdict = "refused", str(error)
    except Exception as error:  # an operation that is registered in the user's file alone, and its like
        verdict = "apart", f"did not take it: {first_line(error)}"
    json.dump(verdict, out)
    out.close()


def _end_with(parent: int) -> None:
    """End when the parent has ended, with the compilers that were started."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.killpg(0, signal.SIGKILL)
