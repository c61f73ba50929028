"""A typed search space, whose dimensions are drawn from, lie on a grid, and vary.

    space = {"lr": Real(1e-4, 1e-1, log=True), "hidden": Integer(8, 128), "optimizer": Categorical("sgd", "adamw")}

A search asks optuna to choose in it; a population draws and varies by itself.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shaped.arguments import checked
from shaped.data.batches import mixed
from shaped.errors import ShapedError

Values = dict[str, Any]


@checked
@dataclass(frozen=True)
class Real:
    """A number in [low, high]; with `log` even in the exponent, for what varies over powers of ten."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self)

    @checked
    def draw(self, generator: random.Random) -> float:
        """A value at random."""
        return self.at(generator.random())

    @checked
    def at(self, share: float) -> float:
        """The value at a share of the way from low to high."""
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(value, self.low), self.high)

    @checked
    def grid(self, points: int) -> list[float]:
        """So many values, evenly from low to high."""
        return [self.at(i / (points - 1)) for i in range(points)] if points > 1 else [self.at(0.5)]

    def near(self, value: Any, factor: float, generator: random.Random) -> float:
        """The value times a factor, within the bounds."""
        return min(max(float(value) * factor, self.low), self.high)

    def spelled(self) -> str:
        """For messages and the journal."""
        return f"Real({_spelled(self.low)}, {_spelled(self.high)}{', log' if self.log else ''})"


@checked
@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high], both among them; with `log` even in the exponent. ValueError for other bounds."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self)

    @checked
    def draw(self, generator: random.Random) -> int:
        """A value at random."""
        if not self.log:
            return generator.randint(self.low, self.high)
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)  # each end gets its whole share
        return self._whole(math.exp(low + generator.random() * (high - low)))

    @checked
    def grid(self, points: int) -> list[int]:
        """Up to so many values, evenly from low to high."""
        shares = [i / (points - 1) for i in range(points)] if points > 1 else [0.5]
        at = Real(float(self.low), float(self.high), self.log).at if self.high > self.low else lambda share: self.low
        return list(dict.fromkeys(self._whole(at(share)) for share in shares))

    def near(self, value: Any, factor: float, generator: random.Random) -> int:
        """The value times a factor, at least one away from it, within the bounds."""
        moved = round(int(value) * factor)
        if moved == value:
            moved += 1 if factor > 1 else -1
        return self._whole(moved)

    def _whole(self, value: float) -> int:
        return min(max(round(value), self.low), self.high)

    def spelled(self) -> str:
        """For messages and the journal."""
        return f"Integer({self.low}, {self.high}{', log' if self.log else ''})"


class Categorical:
    """One of some values: texts, numbers, True, False or None. ValueError where one is another, or there twice."""

    def __init__(self, *choices: Any) -> None:
        wrong = [c for c in choices if not (c is None or isinstance(c, str | int | float | bool))]
        if not choices or wrong or len(set(choices)) != len(choices):  # 1 is True, to optuna too
            raise ValueError(f"choices are {choices!r}; they are different texts, numbers, True, False or None")
        self.choices = choices

    @checked
    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        return generator.choice(self.choices)

    @checked
    def grid(self, points: int) -> list[Any]:
        """All of them, whatever `points` is."""
        return list(self.choices)

    def near(self, value: Any, factor: float, generator: random.Random) -> Any:
        """Another choice one time in four, else the same."""
        return self.draw(generator) if generator.random() < 0.25 else value

    def spelled(self) -> str:
        """For messages and the journal."""
        return f"Categorical({', '.join(map(repr, self.choices))})"

    __repr__ = spelled


def _spelled(number: float) -> str:
    """In six digits where these are all that it has."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


Dimension = Real | Integer | Categorical
Space = Mapping[str, Dimension]


def _check_bounds(d: Any) -> None:
    if (
        not (math.isfinite(d.low) and math.isfinite(d.high))
        or d.low > d.high
        or (isinstance(d, Real) and d.low == d.high)
    ):
        raise ValueError(f"{type(d).__name__}({d.low!r}, {d.high!r}): low is below high, and both are finite numbers")
    if d.log and d.low <= 0:
        raise ValueError(f"{type(d).__name__}({d.low!r}, {d.high!r}, log=True): a logarithm needs low above 0")


def check_space(space: Any) -> dict[str, Dimension]:
    """The space as a dictionary.

    Raises:
        ValueError: It is empty, or a name is no text or does not stand for Real, Integer or Categorical.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError("a space is a dictionary of names to Real, Integer or Categorical, with one at least")
    odd = [repr(name) for name in space if not isinstance(name, str)]
    if odd:
        raise ValueError(f"names in a space are texts, not {', '.join(odd)}")
    wrong = [f"{n}: a {type(d).__name__}" for n, d in space.items() if not isinstance(d, Dimension)]
    if wrong:
        raise ValueError(f"a space has Real, Integer and Categorical, not {'; '.join(wrong)}")
    return dict(space)


def as_score(value: Any, whose: str) -> float:
    """What a user's function returned, as a number. Raises ShapedError where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ShapedError(f"{whose} returned {value!r}, a {type(value).__name__}; a score is a number") from None


def draw(space: Space, seed: int, number: int) -> Values:
    """Values at random, a function of seed and number."""
    generator = random.Random(mixed(seed, number))
    return {name: dimension.draw(generator) for name, dimension in space.items()}
