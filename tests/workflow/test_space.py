"""A typed space: what is drawn, its grid, what is near."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaped.workflow import Categorical, Integer, Real
from shaped.workflow.space import Space, check_space

SPACE: Space = {"lr": Real(1e-4, 1e-1, log=True), "units": Integer(2, 9), "rule": Categorical("sgd", "adam", None)}


@given(st.integers(0, 2**40), st.floats(0.1, 3.0))
def test_what_is_drawn_or_near_lies_in_the_space(seed: int, factor: float) -> None:
    generator = random.Random(seed)
    for dimension in (Real(-1.0, 2.0), SPACE["lr"], SPACE["units"], Integer(1, 100, log=True), SPACE["rule"]):
        value = dimension.draw(generator)
        for found in (value, dimension.near(value, factor, generator)):
            if isinstance(dimension, Categorical):
                assert found in dimension.choices
            else:
                assert dimension.low <= found <= dimension.high
                assert isinstance(found, int) == isinstance(dimension, Integer)


def test_a_log_scale_is_even_in_the_exponent_and_ends_are_drawn() -> None:
    generator = random.Random(0)
    drawn = [math.log10(Real(1e-4, 1.0, log=True).draw(generator)) for _ in range(4000)]
    whole = [Integer(1, 4, log=True).draw(generator) for _ in range(4000)]
    plain = [Integer(1, 4).draw(generator) for _ in range(4000)]

    assert [sum(-4 + i <= x < -3 + i for x in drawn) / 1000 for i in range(4)] == pytest.approx([1] * 4, abs=0.14)
    assert sorted(set(whole)) == sorted(set(plain)) == [1, 2, 3, 4]
    assert whole.count(1) > 2 * whole.count(4)
    assert plain.count(1) / 1000 == pytest.approx(1, abs=0.14)


def test_a_grid_has_the_ends_and_even_steps() -> None:
    assert Integer(1, 2).grid(3) == [1, 2]
    assert Integer(5, 5).grid(3) == [5]
    assert Real(1.0, 100.0, log=True).grid(3) == pytest.approx([1.0, 10.0, 100.0])
    assert Categorical("x", "y").grid(9) == ["x", "y"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Real(2.0, 1.0), r"Real\(2.0, 1.0\): low is below high"),
        (lambda: Real(0.0, 1.0, log=True), "a logarithm needs low above 0"),
        (lambda: Real(0.0, math.inf), "both are finite numbers"),
        (lambda: Integer(1.5, 2), "low is 1.5; it is a whole number"),  # type: ignore[arg-type]
        (lambda: Categorical(), "they are different texts"),
        (lambda: Categorical("a", "a"), "they are different texts"),
        (lambda: Categorical(1, True), "they are different texts"),
        (lambda: Categorical([1]), "they are different texts"),
        (lambda: check_space({}), "with one at least"),
        (lambda: check_space({"a": 3}), "not a: a int"),
    ],
)
def test_a_space_that_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
