"""One owner for a run's folder: a lock that ends with its process, however that ends.

The lock belongs to an open file (flock): the process may open, read and copy `folder/.lock` as it likes, which would
give up a record lock of POSIX. A forked child closes its copy, so that no data worker keeps a folder that its dead
parent held.
"""

import os
import time
from pathlib import Path
from weakref import WeakSet

from shaped import files
from shaped.errors import CheckpointError, RunLocked

_LOCKS: "WeakSet[Lock]" = WeakSet()  # those that this process holds


class Lock:
    """Holds `folder/.lock`. Copies are the lock itself.

    Raises:
        RunLocked: Another process has it, which is named by its pid; or this one has it already. CheckpointError: The
        file is a link, a pipe or a device.
    """

    def __init__(self, folder: Path) -> None:
        self._held = False
        self._path = folder.resolve() / ".lock"
        if any(lock._path == self._path for lock in _LOCKS):
            raise RunLocked(
                f"{folder} is in use by this process (pid {os.getpid()}): give each run a folder of its own"
            )
        self._descriptor = self._opened()  # open for as long as the lock is held
        try:
            _lock(self._descriptor)
        except OSError:
            owner = self._owner()
            os.close(self._descriptor)
            raise RunLocked(f"{folder} is in use by the process with pid {owner}") from None
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())
        _LOCKS.add(self)
        self._held = True

    def _opened(self) -> int:
        try:
            return files.open_regular(self._path, os.O_RDWR | os.O_CREAT)
        except files.NotRegular as error:
            raise CheckpointError(f"{self._path}: {error.strerror}, so the folder cannot be locked") from None

    def _owner(self) -> str:
        """The pid in the file; a moment after the lock was taken it may not be there yet, or be that of one before."""
        for _ in range(50):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            pid = os.read(self._descriptor, 20).decode(errors="replace").strip()
            if pid.isdigit() and _alive(int(pid)):
                return pid
            time.sleep(0.01)
        return "unknown"

    def release(self) -> None:
        """Let another run have the folder."""
        if self._held:
            self._held = False
            _LOCKS.discard(self)
            os.close(self._descriptor)

    def __copy__(self) -> "Lock":
        return self

    def __deepcopy__(self, memo: object) -> "Lock":
        return self

    def __reduce__(self) -> str:
        raise TypeError(f"the lock of {self._path.parent} belongs to this process and cannot be pickled")

    def __del__(self) -> None:
        self.release()


def _let_go_in_a_child() -> None:
    for lock in list(_LOCKS):
        lock.release()  # the parent's stays: it is the last copy of its descriptor that gives the lock up


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_a_child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except OSError:
        return False
    return True


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: closed to others by their own open file
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
