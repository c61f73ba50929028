"""Faults while a checkpoint is written: rows 1 to 3 and 11 to 13 of the matrix. Each returns (good, tried)."""

import errno
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from shaped.checkpoint import Checkpoints
from shaped.errors import CheckpointError, RunLocked
from tests.faults.runs import (
    FILES,
    Tally,
    child,
    data,
    folder,
    make,
    run,
    wait,
    whole,
)

# -- rows 1 to 3: killed while it saves ------------------------------------------------------------------------------


def kills_at_random_moments(count: int, seed: int = 0) -> Tally:
    """SIGKILL at random moments of a process that saves again and again: the newest checkpoint verifies each time."""
    draw, good = random.Random(seed), 0
    loop = make()
    loop.run_steps(data(), 1)
    with folder() as place:

        def save_for_ever() -> None:
            checkpoints = Checkpoints(place, keep=2)
            loop.step = checkpoints.resume(loop).step
            while True:
                loop.step += 1
                checkpoints.save(loop)
                checkpoints.save(loop)  # in place of itself

        for _ in range(count):
            pid = child(save_for_ever)
            time.sleep(draw.uniform(0, 0.1))
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            good += whole(place)
    return good, count


class Calls:
    """Counts and records the system calls of a save, and does something at the k-th."""

    NAMES = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir")

    def __init__(self, at: int = -1, action: Callable[[], Any] = lambda: None) -> None:
        self.at, self.action = at, action
        self.seen: list[tuple[str, str]] = []

    def __enter__(self) -> "Calls":
        self._real = {name: getattr(os, name) for name in self.NAMES}
        opened: dict[int, str] = {}
        for name in self.NAMES:

            def call(*args: Any, name: str = name, **kwargs: Any) -> Any:
                if len(self.seen) == self.at:
                    self.action()
                self.seen.append((name, opened.get(args[0], str(args[0]))))
                result = self._real[name](*args, **kwargs)
                if name == "open":
                    opened[result] = str(args[0])
                return result

            setattr(os, name, call)
        return self

    def __exit__(self, *exception: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kills_at_every_call() -> Tally:
    """SIGKILL before each system call of a first save, a second one, and one that replaces its like."""
    good = tried = 0
    loop = make()
    loop.run_steps(data(), 1)
    for before in (0, 1, 2):
        with folder() as place:
            checkpoints = Checkpoints(place)
            for step in range(before):
                loop.step = step + 1
                checkpoints.save(loop)
            checkpoints.close()
            loop.step = 2
            with Calls() as calls:  # a rehearsal, to count
                run_in(place, loop)
            shutil.rmtree(place / "step-00000002", ignore_errors=True)
            if before == 2:
                run_in(place, loop)
            count = len(calls.seen)
        for at in range(count):
            with folder() as place:
                checkpoints = Checkpoints(place)
                for step in range(before):
                    loop.step = step + 1
                    checkpoints.save(loop)
                checkpoints.close()
                loop.step = 2

                def fatal(place: Path = place, at: int = at) -> None:
                    with Calls(at, _die):
                        run_in(place, loop)

                killed = run(fatal) == 128 + signal.SIGKILL
                tried += 1
                steps = {int(p.name[5:]) for p in place.glob("step-*")}
                kept = whole(place) and (before == 0 or bool(list(place.glob("step-*"))))
                good += killed and kept and (before < 1 or 1 in steps or 2 in steps)
    return good, tried


# -- rows 2b and 12b: the same after going back to an older step -------------------------------------------------------


def gone_back(place: Path, loop: Any, to: int | None, at: int) -> Checkpoints:
    """A run of steps 1, 2 and 3 that goes back to a step, or is begun anew with None, and has come to `at`."""
    checkpoints = Checkpoints(place)
    for step in (1, 2, 3):
        loop.step = step
        checkpoints.save(loop)
    checkpoints.close()
    checkpoints = Checkpoints(place)
    if to is not None:
        checkpoints.resume(loop, step=to)
    loop.step = at
    return checkpoints


def one_line(place: Path, loop: Any, to: int | None, at: int) -> bool:
    """Whether the run that goes on here has the past of one state: that before the save, or that after it."""
    if not whole(place):
        return False
    checkpoints = Checkpoints(place)
    before, after = [1, 2, 3], [*([1] if to is not None and at != 1 else []), at]
    steps = checkpoints.steps()
    there = (
        {path.name for path in place.iterdir()}
        - {"run.json", "best.json", ".lock"}
        - set(map("step-{:08d}".format, steps))
    )
    left = {f"superseded-step-{step:08d}" for step in before if step not in after or (step == at and to != at)}
    good = checkpoints.resume(loop).step == steps[-1]
    checkpoints.close()
    return good and ((steps == before and not there) or (steps == after and there == left))


BACK = ((1, 2), (1, 4), (2, 2), (None, 2), (None, 5))  # the step that is gone back to, and that of the next save


def faults_after_going_back(kill: bool) -> Tally:
    """SIGKILL before, or EIO at, each system call of the first save after going back, or after beginning anew."""
    good = tried = 0
    loop = make()
    loop.run_steps(data(), 1)
    for to, at in BACK:
        with folder() as place:
            checkpoints = gone_back(place, loop, to, at)
            with Calls() as calls:
                checkpoints.save(loop)
            checkpoints.close()
            good, tried = good + one_line(place, loop, to, at), tried + 1
        for call in range(len(calls.seen)):
            with folder() as place:
                checkpoints = gone_back(place, loop, to, at)

                def save(checkpoints: Checkpoints = checkpoints, call: int = call) -> None:
                    with Calls(call, _die if kill else _eio), suppress(CheckpointError):
                        checkpoints.save(loop)

                if kill:
                    ended = run(save) == 128 + signal.SIGKILL
                else:
                    save()
                    ended = True
                checkpoints.close()
                tried += 1
                good += ended and one_line(place, loop, to, at)
    return good, tried


def run_in(place: Path, loop: Any) -> None:
    checkpoints = Checkpoints(place)
    checkpoints.save(loop)
    checkpoints.close()


def going_on(place: Path, loop: Any) -> Checkpoints:
    """The checkpoints of a run that was resumed, and has come to step 2."""
    checkpoints = Checkpoints(place)
    checkpoints.resume(loop)
    loop.step = 2
    return checkpoints


def flushed_in_order() -> Tally:
    """Each file is flushed, then its directory, then it is renamed, then the parent is flushed."""
    loop = make()
    loop.run_steps(data(), 1)
    with folder() as place:
        checkpoints = Checkpoints(place)
        with Calls() as calls:
            checkpoints.save(loop)
        checkpoints.close()
    flushed = [(i, Path(path).name) for i, (name, path) in enumerate(calls.seen) if name == "fsync"]
    renamed = next(i for i, (name, path) in enumerate(calls.seen) if name == "rename")
    files = [next((i for i, name in flushed if name == file), 10**9) for file in FILES]
    directory = next((i for i, name in flushed if name.startswith(".tmp-")), 10**9)
    parent = next((i for i, name in flushed if name == place.name), -1)
    return int(max(files) == files[2] < directory < renamed < parent), 1


# -- rows 11 to 13: the disk and the folder --------------------------------------------------------------------------


def disk_full(count: int, seed: int = 0) -> Tally:
    """No file may grow beyond a few hundred bytes to kilobytes: the failure is named, what was there stays whole."""
    draw, good = random.Random(seed), 0
    loop = make()
    loop.run_steps(data(), 1)
    for _ in range(count):
        with folder() as place:
            checkpoints = Checkpoints(place)
            checkpoints.save(loop)
            checkpoints.close()
            limit = draw.randrange(0, 9000)

            def full(place: Path = place, limit: int = limit) -> None:
                checkpoints = going_on(place, loop)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                try:
                    checkpoints.save(loop)
                except CheckpointError as error:
                    named = "File too large" in str(error) or "No space" in str(error)
                    raise SystemExit(0 if named and not list(place.glob(".tmp-*")) else 3) from None
                raise SystemExit(0)  # the limit was not reached

            good += run(full) == 0 and whole(place) and (place / "step-00000001").is_dir()
            loop.step = 1
    return good, count


def io_errors() -> Tally:
    """EIO at each system call of a save, and a folder that vanished: a CheckpointError, what was there stays whole."""
    good = tried = 0
    loop = make()
    loop.run_steps(data(), 1)
    with folder() as place:
        checkpoints = Checkpoints(place)
        checkpoints.save(loop)
        loop.step = 2
        with Calls() as calls:
            checkpoints.save(loop)
        checkpoints.close()
    for at in range(len(calls.seen)):
        with folder() as place:
            checkpoints = Checkpoints(place)
            loop.step = 1
            checkpoints.save(loop)
            loop.step = 2
            try:
                with Calls(at, _eio):
                    checkpoints.save(loop)
            except CheckpointError as error:
                named = "Input/output error" in str(error)
            else:
                named = calls.seen[at][0] in ("unlink", "rmdir", "open")  # tidying up after the commit may fail
            checkpoints.close()
            tried += 1
            good += named and whole(place) and (place / "step-00000001").is_dir()
    loop.step = 1
    with folder() as place:
        checkpoints = Checkpoints(place / "gone")
        shutil.rmtree(place / "gone")
        try:
            checkpoints.save(loop)
        except CheckpointError as error:
            good += "No such file or directory" in str(error)
        checkpoints.close()
    return good, tried + 1


def _eio() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def two_owners(count: int) -> Tally:
    """Two processes begin in one folder at once: one has it, the other is refused with the owner's pid."""
    good = 0
    for _ in range(count):
        with folder() as place:
            ready = [place / f"ready-{i}" for i in range(2)]

            def own(mine: Path, other: Path, place: Path = place) -> None:
                mine.touch()
                while not other.exists():
                    time.sleep(0.0005)
                try:
                    checkpoints = Checkpoints(place)
                except RunLocked as error:
                    (place / "refused").touch()
                    pid = str(error).rpartition("pid ")[2]
                    raise SystemExit(2 if pid.isdigit() and int(pid) != os.getpid() else 3) from None
                while not (place / "refused").exists():  # `wait` ends a child that hangs
                    time.sleep(0.0005)
                checkpoints.close()

            pids = [child(partial(own, *pair)) for pair in (ready, ready[::-1])]
            good += sorted(map(wait, pids)) == [0, 2]
    return good, count
