"""Drift detectors: river's own answers, also over a stop; and the trigger."""

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import river.drift
from hypothesis import given, settings
from hypothesis import strategies as st

from shaped import ShapedError, StateError
from shaped.checkpoint.codec import from_json, join, split, to_json
from shaped.workflow.online import ADWIN, KSWIN, DriftDetector, PageHinkley, Trigger

PAIRS: list[tuple[Callable[[], DriftDetector], Callable[[], Any]]] = [
    (ADWIN, river.drift.ADWIN),
    (lambda: ADWIN(0.05, clock=1, grace_period=20), lambda: river.drift.ADWIN(delta=0.05, clock=1, grace_period=20)),
    (PageHinkley, river.drift.PageHinkley),
    (lambda: PageHinkley(threshold=3.0, mode="up"), lambda: river.drift.PageHinkley(threshold=3.0, mode="up")),
    (lambda: PageHinkley(threshold=5.0, mode="down"), lambda: river.drift.PageHinkley(threshold=5.0, mode="down")),
    (KSWIN, lambda: river.drift.KSWIN(seed=0)),
    (lambda: KSWIN(0.01, 60, 20, seed=5), lambda: river.drift.KSWIN(0.01, 60, 20, seed=5)),
]
NAMES = ["adwin", "quick adwin", "page-hinkley", "up", "down", "kswin", "short kswin"]


def stream(seed: int, length: int = 400) -> list[float]:
    """Noise whose mean moves twice."""
    draw = random.Random(seed)
    return [draw.gauss({0: 0.0, 1: 4.0, 2: 1.0}[3 * i // length], 1.0) for i in range(length)]


def through_a_file(state: Any) -> Any:
    data, tensors = split(state)
    return join(from_json(to_json(data)), tensors)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=NAMES)
def test_a_detector_gives_rivers_answers(ours: Any, theirs: Any) -> None:
    mine, reference = ours(), theirs()
    seen = []
    for value in stream(0):
        reference.update(value)
        seen.append(mine.update(value))

        assert seen[-1] == reference.drift_detected
    assert any(seen)


@pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
@settings(max_examples=12)  # a test of KSWIN takes 0.1 ms or more
@given(seed=st.integers(0, 50), stop=st.integers(0, 399))
def test_a_detector_goes_on_in_a_new_object_with_the_same_answers(pair: Any, seed: int, stop: int) -> None:
    values, whole, first, second = stream(seed), pair[0](), pair[0](), pair[0]()
    expected = [whole.update(value) for value in values]
    before = [first.update(value) for value in values[:stop]]
    second.load_state_dict(through_a_file(first.state_dict()))

    assert before + [second.update(value) for value in values[stop:]] == expected


def test_a_state_stays_small_however_long_the_stream_is() -> None:
    detector = ADWIN()
    for value in stream(1, 3000):
        detector.update(value / 100)
    _, tensors = split(detector.state_dict())

    assert sum(t.numel() for t in tensors.values()) < 5000


def test_a_state_of_another_detector_is_refused_and_nothing_changes() -> None:
    one, other, longer = ADWIN(), PageHinkley(), ADWIN(delta=0.1)
    before = str(one.state_dict())
    torn = {**one.state_dict(), "kept": {}}
    with pytest.raises(StateError, match="the state is of PageHinkley"):
        one.load_state_dict(other.state_dict())
    with pytest.raises(StateError, match=r"the state is of ADWIN\(\{'delta': 0.1"):
        one.load_state_dict(longer.state_dict())
    with pytest.raises(StateError, match="another version of river"):
        one.load_state_dict(torn)

    assert str(one.state_dict()) == before


def test_without_river_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ShapedError) as caught:
        ADWIN()

    assert str(caught.value) == 'drift detection comes with river: pip install "shaped-trainer[online]"'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"the detector was given {value}; it takes finite numbers"):
        ADWIN().update(value)


class Planned:
    """Sees a drift at given numbers."""

    def __init__(self, *at: int) -> None:
        self.at, self.count = at, 0

    def update(self, value: float) -> bool:
        self.count += 1
        return self.count in self.at

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


def firings(trigger: Trigger, count: int = 20) -> dict[int, str]:
    answers = {i: trigger.update(0.0) for i in range(1, count + 1)}
    return {i: answer for i, answer in answers.items() if answer is not None}


def test_a_trigger_fires_where_a_drift_is_seen_and_on_schedule() -> None:
    assert firings(Trigger(Planned(3, 9))) == {3: "drift", 9: "drift"}
    assert firings(Trigger(every=6)) == {6: "schedule", 12: "schedule", 18: "schedule"}
    assert firings(Trigger(Planned(8), every=6)) == {6: "schedule", 8: "drift", 14: "schedule", 20: "schedule"}


def test_a_drift_within_min_samples_or_cooldown_fires_when_they_have_passed() -> None:
    assert firings(Trigger(Planned(2), min_samples=5)) == {5: "drift"}
    assert firings(Trigger(Planned(3, 5), cooldown=4)) == {3: "drift", 8: "drift"}
    assert firings(Trigger(every=2, cooldown=4, min_samples=3)) == {3: "schedule", 8: "schedule", 13: "schedule", 18: "schedule"}  # fmt: skip  # noqa: E501


@given(stop=st.integers(0, 20), every=st.none() | st.integers(1, 7), cooldown=st.integers(0, 5))
def test_a_trigger_goes_on_in_a_new_object(stop: int, every: int | None, cooldown: int) -> None:
    def new() -> Trigger:
        return Trigger(Planned(3, 4, 11), every=every, cooldown=cooldown, min_samples=2)

    whole, first, second = new(), new(), new()
    expected = [whole.update(0.0) for _ in range(20)]
    answers = [first.update(0.0) for _ in range(stop)]
    second.load_state_dict(through_a_file(first.state_dict()))

    assert answers + [second.update(0.0) for _ in range(20 - stop)] == expected


def test_a_detector_that_restarts_has_forgotten_all() -> None:
    trigger, fresh = Trigger(ADWIN(clock=1)), ADWIN(clock=1)
    for value in stream(0, 300)[:150]:
        trigger.update(value)
    trigger.restart()

    assert [trigger.update(v) == "drift" for v in stream(1)] == [fresh.update(v) for v in stream(1)]
    assert trigger.seen == 550


def wrong(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trigger(), "a trigger needs a detector, or every="),
        (lambda: Trigger(wrong(3)), "detector is 3; it is a DriftDetector or None"),
        (lambda: Trigger(every=0), "every is 0; it is a whole number of at least 1"),
        (lambda: Trigger(every=1, cooldown=-1), "cooldown is -1; it is a whole number of at least 0"),
        (lambda: ADWIN(delta=0), "delta is 0; it is a number above 0 and below 1"),
        (lambda: ADWIN(clock=0), "clock is 0; it is a whole number of at least 1"),
        (lambda: PageHinkley(min_instances=-1), "min_instances is -1; it is a whole number of at least 1"),
        (lambda: PageHinkley(threshold=wrong("a")), "threshold is 'a'; it is a number"),
    ],
)
def test_a_wrong_trigger_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()

    assert str(caught.value) == message


def test_a_trigger_with_and_one_without_a_detector_do_not_share_a_state() -> None:
    with pytest.raises(StateError, match="on one side only"):
        Trigger(every=3).load_state_dict(Trigger(Planned()).state_dict())


@pytest.mark.parametrize("wrong", [{"clock": 0}, {"clock": 1.5}, {"grace_period": -1}])
def test_a_clock_that_cannot_tick_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="it is a whole number"):
        ADWIN(**wrong)
