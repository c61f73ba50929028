"""Hooks: when each kind is due, in which order they run, and how their errors read."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shaped import ScalarTrainer
from shaped.loop import Loop
from shaped.loop.hooks import Exponential, NTimes, Schedule
from tests.models import batch, mlp, mlp_loss

DATA = [batch()]


@pytest.fixture(scope="module")
def trainer() -> ScalarTrainer:
    return ScalarTrainer(mlp_loss, mlp())


@pytest.fixture
def loop(trainer: ScalarTrainer) -> Loop:
    return Loop(trainer, lambda x, y: torch.zeros(()))  # hooks care for steps, not for what a step does


def steps_of(loop: Loop, add: Callable[..., Any]) -> list[int]:
    seen: list[int] = []

    @add
    def note(loop: Loop) -> None:
        seen.append(loop.step)

    return seen


def fired(schedule: Schedule, start: int, end: int, known: bool = True, stop: int | None = None) -> list[int]:
    """At which steps a schedule is due, without a trainer; at `stop` the run is saved and resumed in a new object."""
    loop = SimpleNamespace(step=start, start_step=start, end_step=end if known else None, resumed=False)
    run, seen = cast(Loop, loop), []
    schedule.begin(run)
    while loop.step < end:
        loop.step += 1
        if schedule.due(run):
            seen.append(loop.step)
            schedule.done()
        if loop.step == stop:
            state = schedule.state()
            schedule, loop.resumed = type(schedule)(*arguments(schedule)), True
            schedule.begin(run)
            if state:
                schedule.load(state)
    return seen


def arguments(schedule: Any) -> tuple[Any, ...]:
    if isinstance(schedule, NTimes):
        return (schedule.n,)
    return (schedule.start, schedule.factor, schedule.at_end)


@given(st.integers(0, 50), st.integers(1, 300), st.integers(1, 50))
def test_n_times_fires_exactly_n_times_and_at_the_end(start: int, length: int, n: int) -> None:
    seen = fired(NTimes(n), start, start + length)

    assert len(seen) == min(n, length)
    assert seen[-1] == start + length
    gaps = [b - a for a, b in zip([start, *seen], seen, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(1, 200), st.integers(1, 20), st.data())
def test_n_times_fires_at_the_same_steps_after_a_resume(length: int, n: int, data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, length))

    assert fired(NTimes(n), 0, length, stop=stop) == fired(NTimes(n), 0, length)


def test_n_times_with_an_unknown_end_fires_at_powers_of_two_and_never_more_than_n_times() -> None:
    assert fired(NTimes(10), 0, 1000, known=False) == [128, 256, 512]
    assert len(fired(NTimes(3), 0, 5000, known=False)) == 2


def test_n_times_spreads_what_is_left_when_the_end_becomes_known(loop: Loop) -> None:
    seen = steps_of(loop, loop.n_times(10))
    loop.run_epochs(lambda epoch: DATA * 200, 3)

    assert len(seen) == 10
    assert (seen[0], seen[-1]) == (128, 600)


def test_a_second_run_does_not_starve_n_times(loop: Loop) -> None:
    seen = steps_of(loop, loop.n_times(4))
    loop.run_steps(DATA * 250, 100)
    loop.run_steps(DATA * 250, 100)

    assert seen == [25, 50, 75, 100, 125, 150, 175, 200]


def test_exponential_fires_at_the_series_of_its_start_and_factor() -> None:
    assert fired(Exponential(100, 1.2, False), 0, 1000) == [100, 220, 364, 537, 745, 995]
    assert fired(Exponential(100, 1.2, False), 0, 1000, stop=400) == [100, 220, 364, 537, 745, 995]
    assert fired(Exponential(1, 1.001, False), 0, 10) == [1, 3, 6, 10]


def test_every_n_steps_is_aligned_to_the_step_and_not_to_the_run(loop: Loop) -> None:
    seen = steps_of(loop, loop.every_n_steps(5))
    data = DATA * 30
    loop.run_steps(data, 7)
    loop.run_steps(data, 16)

    assert seen == [5, 10, 15, 20]


def test_periodic_counts_seconds_from_the_start_and_from_its_own_end(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    seen: list[int] = []

    @loop.on_step(priority=-1)  # type: ignore[untyped-decorator]
    def tick(loop: Loop) -> None:
        now[0] += 1.0

    @loop.periodic(3, at_end=True)  # type: ignore[untyped-decorator]
    def slow(loop: Loop) -> None:
        seen.append(loop.step)
        now[0] += 10.0

    loop.run_steps(DATA * 20, 8)
    assert seen == [3, 6, 8]


def test_at_end_does_not_run_a_hook_twice_after_one_step(loop: Loop) -> None:
    seen = steps_of(loop, loop.exponential(2, at_end=True))
    data = DATA * 30
    loop.run_steps(data, 2)
    loop.run_steps(data, 1)

    assert seen == [2, 3]


def test_hooks_run_by_priority_and_then_in_order_of_registration(loop: Loop) -> None:
    order: list[str] = []
    for name, priority in (("c", 1), ("a", -1), ("d", 1), ("b", 0)):
        loop.on_step(lambda _, name=name: order.append(name), name=name, priority=priority)
    loop.on_start(lambda _: order.append("start"), name="first")
    loop.on_end(lambda _: order.append("end"), name="last")
    loop.run_steps(DATA, 1)

    assert order == ["start", "a", "b", "c", "d", "end"]


def test_an_error_carries_the_name_of_the_hook_and_the_step(loop: Loop) -> None:
    @loop.every_n_steps(2)  # type: ignore[untyped-decorator]
    def report(loop: Loop) -> None:
        raise KeyError("accuracy")

    with pytest.raises(KeyError) as caught:
        loop.run_steps(DATA * 5, 5)

    assert caught.value.__notes__ == ["in hook `report` after step 2"]
    assert loop.step == 2


def test_two_hooks_cannot_have_one_name(loop: Loop) -> None:
    loop.on_step(lambda _: None, name="report")
    with pytest.raises(ValueError) as caught:
        loop.on_end(lambda _: None, name="report")

    assert str(caught.value) == "there is a hook named `report` already; give this one another: name=..."


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda loop: loop.every_n_steps(0), "n is 0; it is a whole number of at least 1"),
        (lambda loop: loop.n_times(1.5), "n is 1.5; it is a whole number"),
        (lambda loop: loop.periodic(0), "seconds is 0; it is a number above 0"),
        (lambda loop: loop.exponential(10, factor=1.0), "factor is 1.0; it is a number above 1"),
        (lambda loop: loop.on_step(3), "function is 3; it is a function or None"),
    ],
)
def test_what_is_no_schedule_is_refused(add: Callable[[Loop], Any], message: str, loop: Loop) -> None:
    with pytest.raises(ValueError) as caught:
        add(loop)

    assert str(caught.value) == message
