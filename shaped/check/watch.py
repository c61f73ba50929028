"""`shaped check --watch`: the check again whenever a file of the project changes."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_PAUSE = 0.5  # seconds between two looks


def watch(check: Callable[[], object], roots: Sequence[Path], rounds: int | None = None, pause: float = _PAUSE) -> None:
    """Check, and again after each change, until it is interrupted.

    Args:
        roots: Folders whose Python files and pyproject.toml are looked at.
        rounds: How many checks; None for no end.
        pause: Seconds between two looks.
    """
    while rounds is None or rounds > 0:
        before = _state(roots)
        check()
        rounds = None if rounds is None else rounds - 1
        if rounds == 0:
            return
        print(f"\nwatching {len(before)} files; Ctrl-C ends it", flush=True)
        while _state(roots) == before:
            time.sleep(pause)


def _state(roots: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """When each file was written, and its length."""
    found: dict[str, tuple[int, int]] = {}
    for root in dict.fromkeys(root.resolve() for root in roots):
        for file in _files(str(root)):
            try:
                about = os.stat(file)
            except OSError:  # gone meanwhile
                continue
            found[file] = about.st_mtime_ns, about.st_size
    return found


def _files(root: str) -> Iterator[str]:
    """Python files and settings below a folder, without hidden folders and environments."""
    for folder, inner, files in os.walk(root):
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and name not in ("__pycache__", "node_modules", "site-packages")
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        ]  # fmt: skip
        yield from (os.path.join(folder, name) for name in files if name.endswith(".py") or name == "pyproject.toml")
