"""A typed space: what is drawn, its grid, what is near; and the ways to choose in it."""

import math
import random
import sys
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaped import ShapedError
from shaped.workflow import Categorical, Integer, Real
from shaped.workflow.space import Past, Space, check_space, choose_bayesian, choose_grid, choose_random

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


def test_the_grid_is_every_combination_in_order_and_then_ends() -> None:
    space: Space = {"a": Integer(1, 2), "b": Real(1.0, 100.0, log=True), "c": Categorical("x", "y")}
    found = [choose_grid(space, [], i, 0, points=3) for i in range(13)]

    assert found[:3] == [{"a": 1, "b": 1.0, "c": "x"}, {"a": 1, "b": 1.0, "c": "y"},
                         {"a": 1, "b": pytest.approx(10.0), "c": "x"}]  # fmt: skip
    assert found[12] is None
    assert len({str(values) for values in found[:12]}) == 12
    assert Integer(5, 5).grid(3) == [5]


def score(values: Any) -> float:
    return float((math.log10(values["lr"]) + 2) ** 2 + (values["units"] - 4) ** 2 / 9)


def history(count: int, choose: Any) -> list[Past]:
    past: list[Past] = []
    for number in range(count):
        values = choose(SPACE, past, number, 0)
        past.append(Past(values, score(values), "complete", (score(values),)))
    return past


def test_the_bayesian_choice_is_a_function_of_history_and_seed() -> None:
    verbosity = optuna.logging.get_verbosity()
    past = history(12, choose_bayesian)
    past[3] = Past(past[3].values, math.nan, "failed")
    past[4] = Past(past[4].values, 9.0, "pruned", (9.0,))
    one, other = (choose_bayesian(SPACE, past, 12, 0) for _ in range(2))

    assert one == other
    assert one != choose_bayesian(SPACE, past, 12, 1)
    assert optuna.logging.get_verbosity() == verbosity


def test_the_bayesian_choice_learns_and_the_random_one_does_not() -> None:
    learned, drawn = history(40, choose_bayesian), history(40, choose_random)
    late = [sum(p.score for p in past[20:]) / 20 for past in (learned, drawn)]

    assert late[0] < 0.6 * late[1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Real(2.0, 1.0), r"Real\(2.0, 1.0\): low is below high"),
        (lambda: Real(0.0, 1.0, log=True), "a logarithm needs low above 0"),
        (lambda: Real(0.0, math.inf), "both are finite numbers"),
        (lambda: Integer(1.5, 2), "low is 1.5; it is a whole number"),  # type: ignore[arg-type]
        (lambda: Categorical(), "they are different texts"),
        (lambda: Categorical("a", "a"), "they are different texts"),
        (lambda: Categorical([1]), "they are different texts"),
        (lambda: check_space({}), "with one at least"),
        (lambda: check_space({"a": 3}), "not a: a int"),
    ],
)
def test_a_space_that_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ShapedError, match=r'pip install "shaped-trainer\[search\]"'):
        choose_bayesian(SPACE, [], 0, 0)

    assert choose_random(SPACE, [], 0, 0) == choose_random(SPACE, [], 0, 0)
