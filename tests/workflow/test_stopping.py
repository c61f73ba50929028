"""Early stopping: smoothing, patience, its state, and the loop that it ends."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaped import NonFiniteError, StateError
from shaped.workflow import EarlyStopping
from tests.workflow.loops import TRAINING, fresh_loop

FIGURES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


@given(FIGURES, st.floats(0.01, 1.0), st.sampled_from(["min", "max"]), st.integers(1, 4), st.floats(0, 2))
def test_it_stops_after_patience_figures_without_improvement_of_the_smoothed_one(
    figures: list[float], alpha: float, mode: Any, patience: int, min_delta: float
) -> None:
    stopping = EarlyStopping(patience, alpha=alpha, mode=mode, min_delta=min_delta)
    smoothed = best = figures[0]
    waited = 0
    for i, figure in enumerate(figures):
        stopped = stopping.step(figure)
        if i:
            smoothed = alpha * figure + (1 - alpha) * smoothed
            better = best - smoothed if mode == "min" else smoothed - best
            best, waited = (smoothed, 0) if better > min_delta else (best, waited + 1)

        assert (stopping.smoothed, stopping.best, stopping.waited) == (smoothed, best, waited)
        assert stopped == stopping.stopped == (waited >= patience)


def test_the_defaults_are_alpha_a_tenth_and_min() -> None:
    stopping = EarlyStopping()

    assert (stopping.alpha, stopping.mode, stopping.min_delta, stopping.patience) == (0.1, "min", 0.0, 10)


@given(FIGURES, st.integers(0, 29))
def test_early_stopping_goes_on_from_its_state(figures: list[float], cut: int) -> None:
    whole, first, second = (EarlyStopping(3, alpha=0.5) for _ in range(3))
    for figure in figures:
        whole.step(figure)
    for figure in figures[:cut]:
        first.step(figure)
    second.load_state_dict(first.state_dict())
    for figure in figures[cut:]:
        second.step(figure)

    assert {**second.state_dict()} == whole.state_dict() or cut == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_an_error_and_changes_nothing(wrong: float) -> None:
    stopping = EarlyStopping(2)
    stopping.step(1.0)
    before = stopping.state_dict()
    with pytest.raises(NonFiniteError, match=r"early stopping was given validation/loss = (nan|inf|-inf)"):
        stopping.step(wrong)

    assert stopping.state_dict() == before


def test_arguments_out_of_range_and_foreign_states_are_refused() -> None:
    for wrong in (
        {"patience": 0},
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"mode": "up"},
        {"min_delta": -1.0},
        {"patience": True},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            EarlyStopping(**wrong)  # type: ignore[arg-type]
    with pytest.raises(StateError, match=r"alpha was 0.5 there, 0.1 here; `waited` is missing"):
        EarlyStopping().load_state_dict({"alpha": 0.5, "mode": "min", "smoothed": 1.0, "best": 1.0, "stopped": False})


def watched(figures: list[float], patience: int) -> Any:
    loop = fresh_loop()
    loop.attach(EarlyStopping(patience, monitor="figure", alpha=1.0))
    loop.on_epoch(lambda loop: loop.record({"figure": figures[loop.epoch - 1]}), name="figures")
    return loop


def test_attached_to_a_loop_it_ends_the_run() -> None:
    loop = watched([3.0, 2.0, 2.5, 2.4, 1.0], 2)
    loop.run_epochs(TRAINING, 5)

    assert loop.epoch == 4
    assert loop.stopped == "figure (smoothed) has not been better than 2 for 2 figures"


def test_its_state_is_in_the_checkpoint_and_a_stopped_run_stays_stopped() -> None:
    figures = [3.0, 2.0, 2.5, 2.4, 1.0]
    loop = watched(figures, 2)
    loop.run_epochs(TRAINING, 3)
    middle = loop.state_dict()
    again = watched(figures, 2)
    again.load_state_dict(middle)
    again.run_epochs(TRAINING, 5)
    ended = again.state_dict()
    third = watched(figures, 2)
    third.load_state_dict(ended)
    third.run_epochs(TRAINING, 5)

    assert (again.epoch, third.epoch, third.step) == (4, 4, again.step)
    assert "has not been better than 2" in third.stopped
