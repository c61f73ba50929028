"""How long one proof may take and how much memory: one that grows without end is given up in words.

It is looked at each operation and each question about sizes, so a single step of the algebra may end later.
"""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from shaped.errors import Goal, SignatureError, Source, Unprovable
from shaped.proof.source import place_of_caller

SECONDS, GIB = 600.0, 16.0  # of the processor, a hundred times what the slowest of 93 public models takes; of memory
_LOOKS = 0.25  # seconds between two looks at memory
_GARBAGE = 2.0  # GiB that a proof grows before all of its garbage is looked for


@dataclass
class _Spent:
    """What is left to the proof under way."""

    until: float  # of the thread's processor time
    most: float  # GiB that the process may have
    collected: float  # GiB after the last search for garbage
    look: float = 0.0


class Exhausted(BaseException):
    """A proof has come to its limit; no `except Exception` of the user's stops it."""

    def __init__(self, what: str, source: Source | None) -> None:
        super().__init__(what)
        self.what, self.source = what, source


_spent: ContextVar[_Spent | None] = ContextVar("spent", default=None)


@contextmanager
def limited(name: str) -> Iterator[None]:
    """The time of one proof, with all that it proves on the way.

    Raises:
        Unprovable: It took more than it may; says where it stood.
    """
    if _spent.get() is not None:
        yield
        return
    seconds, gib = _allowed("SHAPED_PROOF_SECONDS", SECONDS), _allowed("SHAPED_PROOF_GIB", min(GIB, _machine() / 2))
    now = _resident()
    token = _spent.set(_Spent(time.thread_time() + seconds, now + gib, now))
    try:
        yield
    except Exhausted as error:
        limit, variable = (
            (f"{seconds:g} s", "SHAPED_PROOF_SECONDS") if error.what == "time" else (f"{gib:g} GiB", "SHAPED_PROOF_GIB")
        )
        raise Unprovable(
            f"`{name}` is neither proved nor refuted: the proof was given up after {limit}, at this line.",
            error.source,
            Goal(hint="declare sizes static, or annotate a part of it and prove that alone; "
                 f"{variable} in the environment allows more"),
        ) from None  # fmt: skip
    finally:
        _spent.reset(token)


def hold_limits() -> None:
    """Raise `Exhausted` if the proof under way has come to its limit."""
    spent = _spent.get()
    if spent is None or (now := time.thread_time()) < spent.look:
        return
    spent.look = now + _LOOKS
    if now > spent.until:
        raise Exhausted("time", _source())
    if (gib := _resident()) > spent.collected + _GARBAGE or gib > spent.most:
        gc.collect()  # a proof looks for garbage among what is young alone
        spent.collected = _resident()
        if spent.collected > spent.most:
            raise Exhausted("memory", _source())


def _source() -> Source | None:
    place = place_of_caller()
    return place.source() if place is not None else None


def _allowed(variable: str, default: float) -> float:
    given = os.environ.get(variable)
    try:
        number = default if given is None else float(given)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise SignatureError(f"{variable}={given} in the environment is no number above 0")
    return number


def _machine() -> float:
    """GiB of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 2 * GIB


def _resident() -> float:
    """GiB that this process has now; 0 where the system does not say so."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, ValueError, IndexError):
        return 0.0
