"""Metrics of numbers do not depend on unit, origin or batches, and are scikit-learn's to rounding."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from shaped.workflow import MetricComputer
from shaped.workflow.numbers import R2, Errors, Pearson, Spearman

NAMES = ("mae", "mse", "rmse", "r2", "pearson", "spearman")
THEIRS: dict[str, Any] = {
    "mae": sk.mean_absolute_error,
    "mse": sk.mean_squared_error,
    "rmse": sk.root_mean_squared_error,
    "r2": lambda p, t: sk.r2_score(t, p),
    "pearson": lambda p, t: scipy.stats.pearsonr(p, t).statistic,
    "spearman": lambda p, t: scipy.stats.spearmanr(p, t).statistic,
}
POWER = {"mae": 1, "mse": 2, "rmse": 1, "r2": 0, "pearson": 0, "spearman": 0}


def drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, generator=generator, dtype=torch.float64)
    return truth + torch.randn(n, generator=generator, dtype=torch.float64), truth


@pytest.mark.parametrize("seed", range(5))
def test_they_are_scikit_learns(seed: int) -> None:
    p, t = drawn(500, seed)
    found = MetricComputer(*NAMES).compute(p, t)

    assert found == pytest.approx({name: float(THEIRS[name](p, t)) for name in NAMES}, rel=1e-13)
    assert MetricComputer("mape").compute(p, t)["mape"] == pytest.approx(sk.mean_absolute_percentage_error(t, p))


def test_several_outputs_are_averaged_whatever_the_unit_and_the_origin_of_each() -> None:
    p, t = (x.reshape(100, 3) for x in drawn(300, 3))
    unit, origin = torch.tensor([1.0, 2.0**-30, 2.0**40]), torch.tensor([0.0, 1.0, 2.0**45])
    found = MetricComputer(*NAMES).compute(p, t)
    moved = MetricComputer("r2", "pearson", "spearman").compute(p * unit + origin, t * unit + origin)

    assert found["r2"] == pytest.approx(sk.r2_score(t, p), rel=1e-13)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(t, p), rel=1e-13)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(p, t).statistic.mean(), rel=1e-13)
    assert moved == pytest.approx({name: found[name] for name in moved}, rel=1e-3)  # the origin rounds the second


@pytest.mark.parametrize("exponent", [-1000, -300, -14, 0, 27, 300, 480])
def test_a_metric_does_not_depend_on_the_unit_of_its_data(exponent: int) -> None:
    p, t = drawn(200, 0)
    unit = math.ldexp(1.0, exponent)
    plain, other = (
        MetricComputer(*NAMES, "mape").compute(p, t),
        MetricComputer(*NAMES, "mape").compute(p * unit, t * unit),
    )

    for name, power in {**POWER, "mape": 0}.items():
        # A power of 2 rounds nothing, so only the range of a square in its own unit may be left.
        assert other[name] == (plain[name] if not power else math.ldexp(plain[name], power * exponent)), name


@pytest.mark.parametrize("origin", [1e3, 2.0**27, -(2.0**40)])
def test_a_metric_does_not_depend_on_the_origin_of_its_data(origin: float) -> None:
    p, t = ((x * 2**10).round() / 2**10 for x in drawn(200, 1))  # so that moving them rounds nothing
    plain, moved = MetricComputer(*NAMES).compute(p, t), MetricComputer(*NAMES).compute(p + origin, t + origin)

    assert moved == pytest.approx(plain, rel=1e-13)


def test_whole_numbers_keep_their_digits() -> None:
    now = 1_700_000_000_000_000_000  # nanoseconds, of which float64 has every 256th
    t = now + torch.tensor([0, 10, 20, 40])
    found = MetricComputer(*NAMES).compute(t + torch.tensor([1, -1, 1, 3]), t)
    small = MetricComputer(*NAMES).compute(t - now + torch.tensor([1.0, -1.0, 1.0, 3.0]), t - now)

    assert found == pytest.approx(small, rel=1e-15)
    assert found["mae"] == 1.5


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([0.0, 1e6, -3e8]), st.integers(0, 9))
def test_batches_do_not_matter(cuts: list[int], origin: float, seed: int) -> None:
    p, t = (x + origin for x in drawn(40, seed))
    whole = MetricComputer(*NAMES).compute(p, t)
    edges = [0, *sorted(cuts), 40]
    parts: dict[str, Any] = {"mae": Errors("mae"), "mse": Errors("mse"), "rmse": Errors("rmse")}
    parts |= {"r2": R2(), "pearson": Pearson(), "spearman": Spearman()}
    for metric in parts.values():
        for start, end in itertools.pairwise(edges):
            metric.update(p[start:end], t[start:end])

    assert {name: metric.compute() for name, metric in parts.items()} == pytest.approx(whole, rel=1e-12)


def test_batches_of_very_different_sizes_of_numbers_are_merged() -> None:
    t = torch.tensor([1e-200, 3e-200, 1e200, -1e200], dtype=torch.float64)
    metric = R2()
    for part in t:
        metric.update(torch.zeros(1, dtype=torch.float64), part[None])

    assert metric.compute() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_data_are_summed_in_float64(dtype: torch.dtype) -> None:
    p, t = (x.to(dtype) for x in drawn(3000, 2))

    found = MetricComputer(*NAMES).compute(p, t)
    assert found == pytest.approx({n: float(THEIRS[n](p.double(), t.double())) for n in NAMES}, rel=1e-12)


def test_a_predictor_that_knows_nothing_explains_nothing_of_small_targets() -> None:
    t = 1e-4 * torch.randn(1000, generator=torch.Generator().manual_seed(0))

    assert MetricComputer("r2").compute(torch.zeros(1000), t)["r2"] == pytest.approx(0.0, abs=1e-2)
    assert MetricComputer("r2").compute(t.mean().expand(1000), t)["r2"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1])
def test_what_is_undefined_is_nan(value: float) -> None:
    p, constant = torch.randn(7), torch.full((7,), value)
    found = MetricComputer("r2", "pearson", "spearman").compute(p, constant)

    assert all(map(math.isnan, found.values()))
    assert math.isnan(MetricComputer("pearson").compute(constant, p)["pearson"])
    assert math.isnan(MetricComputer("r2").compute(p[:1], p[:1])["r2"])
    assert all(map(math.isnan, MetricComputer(*NAMES).compute(p[:0], p[:0]).values()))
    assert math.isnan(MetricComputer("mape").compute(p, p * torch.tensor([1.0] * 6 + [0.0]))["mape"])


def test_equal_numbers_share_their_rank_and_what_is_infinite_is_no_number() -> None:
    p, t = torch.tensor([1.0, 2.0, 2.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 4.0, 9.0, 1.0])
    found = MetricComputer("spearman").compute(p, t)["spearman"]

    assert found == pytest.approx(scipy.stats.spearmanr(p, t).statistic, rel=1e-14)
    assert MetricComputer("mae").compute(p / 0, t)["mae"] != MetricComputer("mae").compute(p, t)["mae"]
    assert MetricComputer("rmse").compute(np.inf + p, t)["rmse"] == math.inf  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mae: predictions and targets are dense tensors of real numbers, not comp"):
        MetricComputer("mae").compute(p.to(torch.complex64), t)


def test_whole_numbers_whose_difference_is_beyond_int64_have_it_in_float64() -> None:
    p, t = torch.tensor([2**62, -(2**62), 0]), torch.tensor([-(2**62), 2**62, 0])
    correlation, errors = Pearson(), Errors("mae")
    for metric in (correlation, errors):
        metric.update(p, t)  # type: ignore[attr-defined]

    assert correlation.compute() == -1.0
    assert errors.compute() == 2.0**64 / 3
