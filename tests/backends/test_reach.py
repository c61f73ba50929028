"""What a program's code can reach is told alike wherever it is the same, and otherwise where anything is another."""

import datetime
import enum
import functools
import logging
import re
import types
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

from shaped.backends.addresses import Addresses, found_again
from shaped.backends.kernels import Unkeepable
from shaped.backends.reach import Reach, Untold
from shaped.proof.reads import CELL, Read


def lines(value: Any) -> list[str]:
    return Reach({"value": value}).lines


def test_a_context_variable_is_told_by_what_it_gives() -> None:
    given, other, absent = ContextVar("v", default=0.5), ContextVar("v", default=0.25), ContextVar[float]("v")
    first = lines(given)

    assert first == lines(ContextVar("v", default=0.5))
    assert first != lines(other)
    assert first != lines(absent)

    token = given.set(0.25)

    assert lines(given) == lines(other)

    given.reset(token)

    assert lines(given) == first


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Model:
    @wrapped
    @wrapped
    def forward(self, x: int) -> int:
        return x + 1

    @classmethod
    @wrapped
    def made(cls) -> "Model":
        return cls()


def cell_read(cell: Any) -> Read:
    return Read(CELL, cell, None, cell.cell_contents, text="function")


@pytest.mark.parametrize("deep", [0, 1])
def test_a_cell_around_a_function_of_a_class_is_found_again_by_its_names(deep: int) -> None:
    reach, function = Reach({}), Model.forward
    cells = []
    for _ in range(2):
        (cell,) = function.__closure__ or ()
        cells.append(cell)
        function = cell.cell_contents
    address = Addresses(reach, [Model]).of(cell_read(cells[deep]))

    assert address == ["within", __name__, "Model", "forward", *["function"] * (deep + 1)]
    assert found_again(address, reach) is cells[deep]


def test_a_cell_around_a_classmethod_is_found_again() -> None:
    (cell,) = vars(Model)["made"].__func__.__closure__
    address = Addresses(Reach({}), [Model]).of(cell_read(cell))

    assert found_again(address, Reach({})) is cell


def test_a_cell_that_is_gone_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = Model.forward.__closure__ or ()
    address = Addresses(Reach({}), [Model]).of(cell_read(cell))
    monkeypatch.setattr(Model, "forward", lambda self, x: x)

    with pytest.raises(ValueError, match="has no `function` in it"):
        found_again(address, Reach({}))


def test_a_cell_of_a_function_without_a_name_is_not_kept() -> None:
    (cell,) = wrapped(lambda x: x).__closure__ or ()  # type: ignore[attr-defined]

    with pytest.raises(Unkeepable, match="not found again"):
        Addresses(Reach({}), [Model]).of(cell_read(cell))


class Number(float):
    """A number with room for more."""


class Span(datetime.timedelta):
    """A span of time with room for more."""


class Table(np.ndarray):
    """An array with room for more."""


class Failure(ValueError):
    """What is raised, with what it is raised about."""


class Rate(enum.Enum):
    SLOW = 0.5

    def __init__(self, value: float) -> None:
        self.twice = [2 * value]


@functools.lru_cache
def settings() -> float:
    return 1.0


HIDDEN = {
    "a subclass of float": Number(0.5),
    "a subclass of timedelta": Span(1),
    "a subclass of array": np.array([0.5]).view(Table),
    "an exception": Failure(0.5),
    "a function with a cache": settings,
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_holds_more_than_can_be_read_is_not_told(kind: str) -> None:
    with pytest.raises(Untold):
        lines(HIDDEN[kind])


def kinds_of(value: float) -> type:
    return enum.Enum("Kind", {"ONLY": value})  # type: ignore[return-value]


def test_a_member_of_an_enum_is_told_with_its_value_and_all_that_it_holds() -> None:
    assert lines(kinds_of(0.5)["ONLY"]) != lines(kinds_of(0.25)["ONLY"])  # type: ignore[index]

    first = lines(Rate.SLOW)
    Rate.SLOW.twice[0] = 3.0

    assert lines(Rate.SLOW) != first


def test_a_set_is_told_in_the_order_in_which_it_is_walked() -> None:
    one, other = {0, 8}, {8, 0}  # which share a place, so that the first one in stays first

    assert list(one) != list(other)
    assert lines(one) != lines(other)


def test_a_long_pattern_and_the_level_of_a_logger_are_told() -> None:
    assert lines(re.compile("a" * 300 + "b")) != lines(re.compile("a" * 300 + "c"))

    logger = logging.getLogger("shaped.test_reach")
    first = lines(logger)
    logger.setLevel(logging.ERROR)

    assert lines(logger) != first


@pytest.mark.parametrize("text", ['getattr(settings_module, "RA" + "TE")', 'vars(settings_module)["RATE"]',
                                  'settings_module.__dict__["RATE"]'])  # fmt: skip
def test_a_name_that_is_computed_may_be_any_of_a_module(text: str) -> None:
    module = types.ModuleType("settings_module")
    space = {"settings_module": module, "__name__": "a_project"}
    exec(f"def read(): return {text}", space)
    vars(module)["RATE"] = 0.5
    first = lines(space["read"])
    vars(module)["RATE"] = 0.25

    assert lines(space["read"]) != first
