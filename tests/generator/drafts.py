"""A program under construction: its inputs, its lines, and the shape of each value as text over dimension names."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Value:
    """A tensor of the program."""

    name: str
    dims: tuple[str, ...]

    @property
    def rank(self) -> int:
        return len(self.dims)


@dataclass
class Draft:
    """Operations append lines and inputs to it."""

    rng: random.Random
    names: tuple[str, ...]
    lines: list[str] = field(default_factory=list)
    inputs: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)  # name, Float or Int, dims
    values: list[Value] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def input(self, dims: Sequence[str], kind: str = "Float") -> Value:
        """Another argument of the function."""
        name = f"{'i' if kind == 'Int' else 'x'}{len(self.inputs)}"
        self.inputs.append((name, kind, tuple(dims)))
        return Value(name, tuple(dims))

    def let(self, text: str, dims: Sequence[str]) -> Value:
        """A line `y3 = text`."""
        name = f"y{len(self.values)}"
        self.lines.append(f"{name} = {text}")
        value = Value(name, tuple(dims))
        self.values.append(value)
        return value

    def size(self, value: Value, axis: int) -> str:
        """A size of a value, as the program may write it."""
        axis %= value.rank
        forms = [
            f"{value.name}.shape[{axis}]",
            f"{value.name}.size({axis})",
            f"{value.name}.shape[{axis - value.rank}]",
        ]
        known = bracketed(value.dims[axis])
        return self.rng.choice([known, known, *forms])

    def axis(self, value: Value) -> int:
        return self.rng.randrange(value.rank)

    def index(self, axis: int, part: str) -> str:
        """`:, :, part`"""
        return ", ".join([":"] * axis + [part])


Operation = Callable[[Draft, Value], Value | None]  # None: not for such a value
OPERATIONS: dict[str, list[Operation]] = {}


def operation(kind: str) -> Callable[[Operation], Operation]:
    """Enter a function in the table."""

    def enter(function: Operation) -> Operation:
        OPERATIONS.setdefault(kind, []).append(function)
        return function

    return enter


def bracketed(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() else f"({text})"


def replaced(dims: Sequence[str], axis: int, *new: str) -> tuple[str, ...]:
    """The dims with others in the place of one."""
    axis %= len(dims)
    return (*dims[:axis], *new, *dims[axis + 1 :])
