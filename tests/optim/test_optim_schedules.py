"""Plain schedules against torch's schedulers, and torch's schedulers on our optimizers."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torchs

from shaped import NonFiniteError, ScalarTrainer
from shaped.checkpoint.codec import join, split
from shaped.optim import SGD, AdamW, schedules
from tests.models import batch, mlp, mlp_loss

PAIRS: list[tuple[Any, Any]] = [
    (schedules.constant(0.1), lambda o: torchs.ConstantLR(o, 1.0)),
    (schedules.step_decay(0.1, 7, 0.5), lambda o: torchs.StepLR(o, 7, 0.5)),
    (schedules.exponential(0.1, 0.9), lambda o: torchs.ExponentialLR(o, 0.9)),
    (schedules.cosine(0.1, 40, 0.01), lambda o: torchs.CosineAnnealingLR(o, 40, 0.01)),
    (schedules.linear(0.1, 0.02, 40), lambda o: torchs.LinearLR(o, 1.0, 0.2, 40)),
    (schedules.one_cycle(0.1, 40), lambda o: torchs.OneCycleLR(o, 0.1, 40)),
    (
        schedules.one_cycle(0.1, 40, 0.5, 10.0, 10.0),
        lambda o: torchs.OneCycleLR(o, 0.1, 40, pct_start=0.5, div_factor=10.0, final_div_factor=10.0),
    ),
    (schedules.cosine_restarts(0.1, 7, end=0.01), lambda o: torchs.CosineAnnealingWarmRestarts(o, 7, eta_min=0.01)),
    (schedules.cosine_restarts(0.1, 5, 2), lambda o: torchs.CosineAnnealingWarmRestarts(o, 5, 2)),
    (schedules.warmup(0.1, 8), lambda o: torchs.LinearLR(o, 1 / 8, 1.0, 7)),
    (schedules.warmup_cosine(0.1, 5, 40), lambda o: torchs.LambdaLR(o, schedules.warmup_cosine(1.0, 5, 40))),
]


def moving(kind: Any, lr: float = 0.1) -> Any:
    p = torch.ones(2, requires_grad=True)
    optimizer = kind([p], lr=lr)
    p.grad = torch.ones(2)
    return optimizer


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_each_schedule_is_the_torch_scheduler_of_its_name(ours: Any, theirs: Any) -> None:
    optimizer = moving(SGD)
    scheduler = theirs(optimizer)
    for step in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours(step), rel=1e-12, abs=1e-15)
        optimizer.step()
        if step < 39:
            scheduler.step()


def test_reduce_on_plateau_lowers_our_lr() -> None:
    optimizer = moving(AdamW)
    scheduler = torchs.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for loss in (1.0, 1.0, 1.0):
        optimizer.step()
        scheduler.step(loss)

    assert optimizer.get_lr() == 0.025


def test_a_plain_schedule_becomes_a_torch_scheduler() -> None:
    optimizer = moving(SGD, lr=0.5)
    plan = schedules.warmup_cosine(0.1, 3, 10)
    scheduler = schedules.as_lambda(optimizer, plan)
    for step in range(10):
        assert optimizer.get_lr() == pytest.approx(plan(step))
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="that of group 0 is 0"):
        schedules.as_lambda(moving(SGD, lr=0.0), plan)


@given(st.integers(0, 50), st.integers(1, 100), st.integers(0, 300))
def test_warmup_rises_to_the_peak_and_the_cosine_falls_to_the_end(warmup: int, more: int, step: int) -> None:
    plan = schedules.warmup_cosine(1.0, warmup, warmup + more, end=0.25)

    assert plan(warmup) == 1.0
    assert plan(warmup + more) == plan(warmup + more + step) == 0.25
    assert plan(step) <= plan(step + 1) or step >= warmup
    assert plan(step) >= plan(step + 1) or step < warmup


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: schedules.cosine(0.1, 0), "total is 0; it is a whole number of at least 1"),
        (lambda: schedules.step_decay(0.1, 0), "every is 0; it is a whole number of at least 1"),
        (lambda: schedules.warmup_cosine(0.1, 5, 5), "expected 0 <= warmup < total, got warmup 5 and total 5"),
        (lambda: schedules.cosine_restarts(0.1, 0), "period is 0; it is a whole number of at least 1"),
        (lambda: schedules.warmup(0.1, 0), "steps is 0; it is a whole number of at least 1"),
        (lambda: schedules.one_cycle(0.1, 10, rise=1.0), r"rise must be in \(0, 1\), got 1.0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def recorded(optimizer: Any, figures: list[float], monitor: str = "figure") -> list[float]:
    plateau = schedules.ReduceOnPlateau(optimizer, monitor=monitor, factor=0.5, patience=1)
    rates = []
    for step, figure in enumerate(figures):
        plateau.on_record(SimpleNamespace(step=step), {"figure": figure, "other": 0.0})
        rates.append(optimizer.get_lr())
    return rates


def test_reduce_on_plateau_as_a_listener_is_torchs() -> None:
    figures = [3.0, 2.0, 2.0, 2.5, 2.5, 1.0, 1.0, 1.0, 1.0]
    optimizer = moving(AdamW)
    theirs = torchs.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    expected = []
    for figure in figures:
        theirs.step(figure)
        expected.append(optimizer.get_lr())

    assert recorded(moving(AdamW), figures) == expected
    assert recorded(moving(AdamW), figures, "another") == [0.1] * 9
    with pytest.raises(NonFiniteError, match="ReduceOnPlateau was given figure = nan"):
        recorded(moving(AdamW), [math.nan])


@given(st.lists(st.floats(0, 9), min_size=2, max_size=20), st.integers(1, 19))
def test_reduce_on_plateau_goes_on_from_its_state(figures: list[float], cut: int) -> None:
    whole = moving(SGD)
    expected = recorded(whole, figures)[-1]
    optimizer = moving(SGD)
    first = schedules.ReduceOnPlateau(optimizer, monitor="figure", factor=0.5, patience=1)
    for step, figure in enumerate(figures[:cut]):
        first.on_record(SimpleNamespace(step=step), {"figure": figure})
    tensors: dict[str, Any]
    data, tensors = split(first.state_dict())
    second = schedules.ReduceOnPlateau(optimizer, monitor="figure", factor=0.5, patience=1)
    second.load_state_dict(join(data, tensors))
    for step, figure in enumerate(figures[cut:], start=cut):
        second.on_record(SimpleNamespace(step=step), {"figure": figure})

    assert optimizer.get_lr() == expected


@pytest.mark.slow
def test_a_compiled_step_follows_every_schedule_with_one_executor() -> None:
    params = mlp()
    optimizer = AdamW(params, lr=0.01)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer, backend="compiled")
    eager = ScalarTrainer(mlp_loss, mlp(), backend="eager")
    plan = schedules.cosine_restarts(0.01, 3)
    scheduler = schedules.as_lambda(optimizer, plan)
    plateau = schedules.ReduceOnPlateau(optimizer, monitor="figure", patience=0)
    x, y = batch()
    for step in range(6):
        assert optimizer.get_lr() == pytest.approx(plan(step))
        trainer.train_step(x, y)
        eager.adamw_step(x, y, lr=plan(step))
        scheduler.step()
    for step in range(3):
        plateau.on_record(SimpleNamespace(step=step), {"figure": 1.0})
        trainer.train_step(x, y)
        eager.adamw_step(x, y, lr=optimizer.get_lr())

    assert len(trainer.executors) == 1
    for mine, theirs in zip(trainer.params, eager.params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_cycle_whose_rise_is_one_step_begins_at_its_peak() -> None:
    schedule = schedules.one_cycle(0.1, 10, rise=0.1)

    assert schedule(0) == 0.1
    assert schedule(9) == pytest.approx(0.1 / 25 / 1e4)
