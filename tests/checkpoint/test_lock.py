"""The lock of a run's folder: it outlasts reading, copying and forking, and ends with its process."""

import copy
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shaped import CheckpointError, Checkpoints, RunLocked
from shaped.checkpoint.lock import Lock

OTHER = "import sys; from pathlib import Path; from shaped.checkpoint.lock import Lock; Lock(Path(sys.argv[1]))"


def refused(folder: Path) -> bool:
    done = subprocess.run([sys.executable, "-c", OTHER, str(folder)], capture_output=True, text=True)

    assert done.returncode == 0 or f"in use by the process with pid {os.getpid()}" in done.stderr
    return done.returncode != 0


def held(folder: Path) -> bool:
    """Whether anybody has the lock; another open file asks, as another process would."""
    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_process_that_reads_copies_and_pickles_keeps_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoints = Checkpoints(folder)
    shutil.copytree(folder, tmp_path / "backup")
    (folder / ".lock").read_bytes()
    copies = [copy.copy(checkpoints), copy.deepcopy(checkpoints._place), copy.copy(checkpoints._place)]
    del copies

    assert refused(folder)
    checkpoints.close()
    assert not held(folder)


def test_a_forked_child_neither_lets_the_lock_go_nor_holds_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    (read, write), (told, tell) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()
        os.close(write)
        os.write(tell, b"x")
        os.read(read, 1)  # until the parent has looked
        os._exit(0)
    os.read(told, 1)
    kept = held(tmp_path)
    lock.release()
    left = not held(tmp_path)
    os.write(write, b"x")
    os.waitpid(child, 0)

    assert kept
    assert left


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_that_is_a_link_or_a_pipe_is_refused_and_not_written_to(kind: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    target.write_text("as it was")
    (folder / ".lock").symlink_to(target) if kind == "link" else os.mkfifo(folder / ".lock")
    with pytest.raises(CheckpointError, match=f"it is a {kind}"):
        Checkpoints(folder)

    assert target.read_text() == "as it was"


def test_two_owners_in_one_process_are_one_too_many(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with pytest.raises(RunLocked, match="in use by this process"):
        Lock(tmp_path)
    lock.release()

    Lock(tmp_path).release()
