"""What a program's code can reach is told alike wherever it is the same, and otherwise where anything is another."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from shaped.backends.addresses import Addresses, found_again
from shaped.backends.kernels import Unkeepable
from shaped.backends.reach import Reach
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
