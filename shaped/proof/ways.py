"""The ways that a program may take where data decides.

`if total > 1:` is taken to be so, and not to be so. A way answers each such question; a program that is proved along
every way is proved whatever its data are. A way that ends in the program's own exception is a check of values: what it
refuses is refused when it runs, and the other ways are what is left to prove.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from shaped.errors import Source
from shaped.proof.source import Place, is_own, place_of_traceback

Key = tuple[str, int, int]  # file, line, and which question of that line in one run

_LONGEST = 48  # questions that one run may ask
NUMBER = 0.5  # for float(x.min()): shapes seldom hang on it, and a branch that does is then of one way
ROUNDS = 3  # questions of one line that are answered both ways; a loop that data end is left after these


@dataclass
class Way:
    """Answers to questions about data, and what is met along them.

    Attributes:
        answers: What is taken to be so; what is not among them is taken to be false.
        asked: Every question of every run along this way, with its line.
        refusals: Lines at which the program raises because of its data.
        cut: Lines that asked more often than is answered both ways.
        read: Lines at which the program reads a floating-point number from its data: it is taken as `NUMBER`.
        sizes: Names of the sizes that stand for whole numbers that data tell, in the order in which a run meets these;
            without names they are unknown.
        counted: Where each of these was met.
    """

    answers: Mapping[Key, bool] = field(default_factory=dict)
    refusals: set[tuple[str, int]] = field(default_factory=set)
    asked: dict[Key, Source | None] = field(default_factory=dict)
    cut: set[tuple[str, int]] = field(default_factory=set)
    read: set[tuple[str, int]] = field(default_factory=set)
    sizes: Sequence[str] = ()
    counted: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def whole(self) -> dict[Key, bool]:
        """The answer to each question that was asked."""
        return {key: self.answers.get(key, False) for key in self.asked}

    def others(self) -> Iterator[dict[Key, bool]]:
        """The ways that leave this one at a question that it was first to ask."""
        before = dict(self.answers)
        for key in self.asked:
            if key not in self.answers:
                yield {**before, key: True}
                before[key] = False

    def refuses(self, error: Exception) -> bool:
        """Whether an exception is the program's own, at a line where it refuses data; with sizes for what data tell,
        whatever it raises itself."""
        if not (self.sizes or self.refusals) or not is_own(error):
            return False
        return raised_at(error) in self.refusals or (bool(self.sizes) and is_raised(error))


class Endless(BaseException):
    """One run asks too many questions about data; no `except Exception` of the user's stops it."""


class Uncounted(BaseException):
    """A run meets more whole numbers that data tell than there are names for; no `except Exception` stops it."""


class Course:
    """One run along a way.

    Attributes:
        by_data: Whether data answered the last question, rather than sizes.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._counts: Counter[tuple[str, int]] = Counter()
        self._known: dict[Any, bool] = {}
        self._last: dict[tuple[str, int], bool] = {}
        self.by_data = False
        self._sizes = 0

    @property
    def counts(self) -> bool:
        """Whether sizes stand for the whole numbers that data tell."""
        return bool(self._way.sizes)

    def size(self, place: Place | None) -> str:
        """The name of the size that stands for the next whole number that data tell."""
        if self._sizes == len(self._way.sizes):
            raise Uncounted
        name = self._way.sizes[self._sizes]
        self._sizes += 1
        self._way.counted[name] = (place.file, place.line) if place is not None else ("", 0)
        return name

    def answer(self, fact: Any, place: Place | None) -> bool:
        """Whether a fact about data is so, on this way."""
        self.by_data = True
        if fact not in self._known:
            if len(self._known) >= _LONGEST:
                raise Endless
            line = (place.file, place.line) if place is not None else ("", 0)
            key = (*line, self._counts[line])
            self._counts[line] += 1
            if key[-1] < ROUNDS:
                self._way.asked.setdefault(key, place.source() if place is not None else None)
                self._last[line] = self._way.answers.get(key, False)
            elif key[-1] == ROUNDS:  # what went on until here comes to an end
                self._way.cut.add(line)
                self._last[line] = not self._last[line]
            self._known[fact] = self._last[line]
        return self._known[fact]

    def valid(self, place: Place | None) -> None:
        """A check of values is passed; the program's line is among those that refuse some."""
        self.by_data = True
        self._way.refusals.add((place.file, place.line) if place is not None else ("", 0))

    def number(self, place: Place | None) -> float:
        """What stands for a number that is read from data."""
        self.by_data = True
        self._way.read.add((place.file, place.line) if place is not None else ("", 0))
        return NUMBER


_way: ContextVar[Way | None] = ContextVar("way", default=None)


def way_under_way() -> Way | None:
    """The way that this thread's proof follows, if it follows one."""
    return _way.get()


@contextmanager
def following(way: Way) -> Iterator[None]:
    """Let each run take this way."""
    token = _way.set(way)
    try:
        yield
    finally:
        _way.reset(token)


def is_raised(error: Exception) -> bool:
    """Whether it is a `raise` or an `assert` of the program's own, and not what Python says of a mistake."""
    place = place_of_traceback(error.__traceback__)
    return is_own(error) and place is not None and bool(re.search(r"\b(raise|assert)\b", place.source().text))


def raised_at(error: Exception) -> tuple[str, int]:
    """The program's line that raised an exception."""
    place = place_of_traceback(error.__traceback__)
    return (place.file, place.line) if place is not None else ("", 0)
