"""When Python looks for garbage: not among torch's modules while what is made anew is what counts.

A search of the oldest generation walks every object of every module: with torch loaded a fifth of a second, each time.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_NEVER = 1_000_000
_thresholds: list[tuple[int, int, int]] = []  # of the process, as they were before the first who is within


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, Python looks for no garbage, and what was made counts as old: for an import, of which all stays."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what the user froze stays so
            gc.freeze()
            gc.unfreeze()
        if collects:
            gc.enable()


@contextmanager
def young_collected() -> Iterator[None]:
    """Within, Python looks for garbage among what is young alone, in all threads; afterwards as before."""
    with _LOCK:
        _thresholds.append(gc.get_threshold())
        gc.set_threshold(*_thresholds[0][:2], _NEVER)
    try:
        yield
    finally:
        with _LOCK:
            before = _thresholds[0]
            _thresholds.pop()
            if not _thresholds:
                gc.set_threshold(*before)
