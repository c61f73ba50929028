"""A loss under construction: its parameters, inputs, modules and lines, and the shape of the value at hand."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Dim = int | str  # a string is a size of the batch, free in the proof


@dataclass(frozen=True)
class Value:
    """A tensor of the loss, rows first: `[n, d]`, `[n, t, d]` or `[n, c, h, w]`."""

    name: str
    dims: tuple[Dim, ...]

    @property
    def last(self) -> int:
        """The number of features; images have channels in second place."""
        size = self.dims[1 if len(self.dims) == 4 else -1]
        assert isinstance(size, int)
        return size

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.dims[2:]
        assert isinstance(height, int)
        assert isinstance(width, int)
        return height, width


@dataclass
class Draft:
    """Operations append to it."""

    rng: random.Random
    owner: str  # "p" of a ParamList, "self" of a module
    params: dict[str, tuple[int, ...]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, tuple[str, tuple[Dim, ...], int]] = field(default_factory=dict)  # kind, dims, number of classes
    outside: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    draws: bool = False
    count: int = 0

    @property
    def in_module(self) -> bool:
        return self.owner == "self"

    def param(self, *dims: int) -> str:
        """A new parameter, as it is read."""
        name = f"w{len(self.params)}"
        self.params[name] = dims
        return f"{self.owner}.{name}"

    def module(self, text: str) -> str:
        """A new submodule, as it is called."""
        name = f"m{len(self.modules)}"
        self.modules[name] = text
        return f"self.{name}"

    def input(self, dims: Sequence[Dim], kind: str = "Float", classes: int = 0) -> str:
        """Another argument of the loss: numbers, or integers below `classes`."""
        name = f"{'x' if kind == 'Float' else 'i'}{len(self.inputs)}"
        self.inputs[name] = (kind, tuple(dims), classes)
        return name

    def constant(self, text: str) -> str:
        """A value of the file, outside the loss."""
        name = f"OUTSIDE_{len(self.outside)}"
        self.outside[name] = text
        return name

    def let(self, text: str, dims: Sequence[Dim]) -> Value:
        """A line `y3 = text`."""
        self.count += 1
        name = f"y{self.count}"
        self.lines.append(f"{name} = {text}")
        return Value(name, tuple(dims))

    def one_of(self, text: str, x: Value, **names: Any) -> str:
        """One of the expressions of a text, of a value and what else it names."""
        return self.rng.choice(forms(text)).format(x=x.name, **names)

    def number(self, least: float, most: float) -> str:
        return f"{self.rng.uniform(least, most):.2f}"


def forms(text: str) -> list[str]:
    """The expressions of a text, parted by bars; a line may go on in the next."""
    return [" ".join(form.split()) for form in re.split(r"\s\|\s", text)]


Operation = Callable[[Draft, Value], Value | None]  # None: not for such a value
Entered = TypeVar("Entered", bound=Operation)
OPERATIONS: dict[int, dict[str, Operation]] = {2: {}, 3: {}, 4: {}}


def over(*ranks: int) -> Callable[[Entered], Entered]:
    """Enter a function in the tables of values of these ranks."""

    def enter(function: Entered) -> Entered:
        for rank in ranks:
            OPERATIONS[rank][function.__name__] = function
        return function

    return enter
