"""Eager and compiled steps of every rule in three dtypes, against float64 torch.optim up to rounding."""

import functools
from typing import Literal

import pytest
import torch

from tests.backends.cases import RULES, Case, Trained, share

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SMALL = ["regression_loss", "multitask_loss"]  # compiled in two seconds each
MODELS = [
    "lenet_loss",
    "vit_loss",
    "gru_loss",
    "mixture_density_loss",
    "normalised_loss",  # an nn.Module with batch norm
]


@functools.cache
def trained(name: str, dtype: torch.dtype) -> Trained:
    """One trainer for the rules and backends of a model and dtype."""
    return Trained(Case(name), dtype)


def check(name: str, dtype: torch.dtype, rule: str, backend: Literal["eager", "compiled"]) -> None:
    exact, bounds = Case(name).bounds(dtype, rule)

    assert max(bounds) < torch.inf
    assert share(trained(name, dtype).run(backend, rule), exact, bounds) < 1


# Eagerly all; compiled each rule and each dtype once, since each is a compile.
CORNERS = [
    *((dtype, rule, "eager") for dtype in DTYPES for rule in RULES),
    *((dtype, rule, "compiled") for dtype, rule in zip(DTYPES, RULES, strict=True)),
]
corners = pytest.mark.parametrize(("dtype", "rule", "backend"), CORNERS, ids=str)
# Of larger models each in one dtype of three, with the rule that goes with it.
LARGER = [
    (name, *corner)
    for i, name in enumerate([*SMALL[1:], *MODELS])
    for corner in CORNERS
    if corner[0] == DTYPES[i % len(DTYPES)]
]


@pytest.mark.parametrize("name", SMALL[:1])
@corners
def test_steps_are_those_of_float64_torch_optim_up_to_rounding(name, dtype, rule, backend):
    check(name, dtype, rule, backend)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "rule", "backend"), LARGER, ids=str)
def test_steps_of_larger_models_are_those_of_float64_torch_optim_up_to_rounding(name, dtype, rule, backend):
    check(name, dtype, rule, backend)


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float64, 1 + 1e-10), (torch.float32, 1.001), (torch.bfloat16, 3.0)], ids=str
)
def test_the_bound_sees_a_learning_rate_that_is_wrong(dtype, factor, monkeypatch):
    exact, bounds = Case("regression_loss").bounds(dtype, "adamw")
    monkeypatch.setattr("tests.backends.cases.LR", 0.05 * factor)

    assert share(trained("regression_loss", dtype).run("eager", "adamw"), exact, bounds) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_sees_a_decay_that_is_left_out(dtype):
    exact, bounds = Case("regression_loss").bounds(dtype, "adamw")
    found = trained("regression_loss", dtype).run("eager", "adam")

    if dtype == torch.bfloat16:  # three decays of 0.5 % are less than its rounding
        assert share(found, exact, bounds) < 1
    else:
        assert share(found, exact, bounds) > 1
