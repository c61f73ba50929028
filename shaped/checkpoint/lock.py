"""One owner for a run's folder: a lock that ends with its process, however that ends."""

import os
import time
from pathlib import Path

from shaped.errors import RunLocked

# Locks of this process. POSIX record locks do not hold against their own process, and a second descriptor that is
# closed would let the lock go.
_HELD: set[Path] = set()


class Lock:
    """Holds `folder/.lock`; a forked child (a data worker) does not inherit it.

    Raises:
        RunLocked: Another process has it, which is named by its pid; or this one has it already.
    """

    def __init__(self, folder: Path) -> None:
        self._held = False
        self._path = folder.resolve() / ".lock"
        if self._path in _HELD:
            raise RunLocked(
                f"{folder} is in use by this process (pid {os.getpid()}): give each run a folder of its own"
            )
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)  # open for as long as the lock is held
        try:
            _lock(self._descriptor)
        except OSError:
            owner = self._owner()
            os.close(self._descriptor)
            raise RunLocked(f"{folder} is in use by the process with pid {owner}") from None
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())
        _HELD.add(self._path)
        self._held = True

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
            _HELD.discard(self._path)
            os.close(self._descriptor)

    def __del__(self) -> None:
        self.release()


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
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
