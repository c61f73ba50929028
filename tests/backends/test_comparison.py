"""compare_backends: differences after a step, against what rounding can do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer
from shaped.backends import rounding
from shaped.backends.gradients import finite_flag
from shaped.optim import SGD, AdamW
from tests.models import batch, mlp, mlp_loss

pytestmark = pytest.mark.usefixtures("interpreted")
slow = pytest.mark.slow


@pytest.mark.smoke
@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(t, marks=slow) for t in (torch.float64, torch.bfloat16))], ids=str
)
def test_the_two_backends_agree_after_a_step_up_to_rounding(dtype):
    trainer = ScalarTrainer(mlp_loss, mlp(dtype=dtype), max_norm=1.0)
    x, y = batch(dtype=dtype)
    first = trainer.compare_backends(x, y)
    for _ in range(3):
        trainer.adamw_step(x, y, lr=0.01)
    later = trainer.compare_backends(x, y)

    assert first.agree
    assert later.agree
    assert set(first.parameters) == {"w1", "b1", "w2", "b2"}
    assert max(later.bounds.values()) < 40 * torch.finfo(dtype).eps ** 0.9  # the bound is no licence


def test_under_autocast_the_bound_is_that_of_the_narrow_dtype():
    comparison = ScalarTrainer(mlp_loss, mlp(), autocast=torch.bfloat16).compare_backends(*batch())

    assert comparison.agree
    assert 1e-4 < comparison.bounds["loss"] < 0.1


def test_comparing_changes_nothing():
    params = mlp()
    optimizer = AdamW(params, lr=0.1, ema_decay=0.9)
    trainer = ScalarTrainer(mlp_loss, params, backend="compiled", optimizer=optimizer, accumulate=2, max_executors=2)
    trainer.train_step(*batch())
    trainer.train_step(*batch())
    trainer.train_step(*batch())
    trainer.executors.on_create(lambda executor: pytest.fail("an executor was made"))
    before = copy.deepcopy(trainer.state_dict())
    trainer.compare_backends(*batch())

    assert str(trainer.state_dict()) == str(before)
    assert [executor.mode for executor in trainer.executors] == ["gather", "AdamW"]


@pytest.mark.parametrize("fault", [1e-5, pytest.param(1e-4, marks=slow)])
def test_an_update_that_is_slightly_wrong_is_beyond_the_bound(monkeypatch, fault):
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=SGD(params, lr=1.0, momentum=0.9))

    def wrong(loss: Tensor, gradients: list[Tensor]) -> Tensor:
        gradients[2] = gradients[2] * (1 + fault)
        return finite_flag(loss, gradients)

    monkeypatch.setattr("shaped.backends.step.finite_flag", wrong)
    comparison = trainer.compare_backends(*batch())

    assert comparison.beyond == ("w2",)
    assert str(comparison).endswith("not the same: w2")


class Weights(ParamList):
    w: Float[Tensor, " n"]


def cancelling(p: Weights, x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Its gradient is zero but for rounding."""
    return ((p.w * x).sum() - (p.w.flip(0) * x.flip(0)).sum()) * 1e6


def test_where_a_result_hangs_on_rounding_alone_the_bound_says_so():
    trainer = ScalarTrainer(cancelling, Weights(torch.linspace(0.1, 0.9, 33)))
    comparison = trainer.compare_backends(torch.linspace(1.0, 7.0, 33))

    assert comparison.agree
    assert comparison.bounds["loss"] > 1


def test_the_bound_is_the_unit_roundoff_where_a_step_rounds_once():
    def linear(p: Weights, x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        return (p.w * x).sum()

    x = torch.ones(64)
    trainer = ScalarTrainer(linear, Weights(torch.ones(64)))
    trainer.step(x, lr=0.0)
    bound = trainer.compare_backends(x).bounds["w"]

    u = torch.finfo(torch.float32).eps / 2
    assert u < bound < 16 * u


@pytest.mark.parametrize("n", [pytest.param(10, marks=slow), 1000])
def test_the_bound_of_a_sum_covers_every_order_of_its_terms(n):
    terms = torch.randn(n, generator=torch.Generator().manual_seed(0))
    exact = terms.double().sum()
    orders = [terms, terms.flip(0), terms.sort().values, terms.sort(descending=True).values]
    errors = [abs(float(_one_by_one(order)) - float(exact)) for order in orders]

    def total(p: Weights, x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        return (p.w * x).sum()

    bounds = ScalarTrainer(total, Weights(terms)).compare_backends(torch.ones(n)).bounds

    assert max(errors) <= bounds["loss"] * abs(float(exact))


def _one_by_one(terms: Tensor) -> Tensor:
    total = torch.zeros(())
    for term in terms:
        total = total + term
    return total


def dropped(model: nn.Module, x: Float[Tensor, "batch 6"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(model(x), y)


def test_a_loss_that_draws_at_random_is_compared_in_eval_only():
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    trainer = ScalarTrainer(dropped, module)
    with pytest.raises(ValueError, match="the loss draws at random"):
        trainer.compare_backends(*batch())
    module.eval()

    assert trainer.compare_backends(*batch()).agree


def test_what_is_not_finite_is_not_compared():
    x, y = batch()

    with pytest.raises(ValueError, match="not finite"):
        ScalarTrainer(mlp_loss, mlp()).compare_backends(x * torch.inf, y)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_parameter_and_ends_in_a_verdict():
    lines = str(ScalarTrainer(mlp_loss, mlp()).compare_backends(*batch())).splitlines()

    assert lines[0].split() == ["gradient", "after", "a", "step", "bound"]
    assert [line.split()[0] for line in lines[1:-1]] == ["loss", "w1", "b1", "w2", "b2"]
    assert lines[-1] == "  the same up to rounding"


@pytest.mark.slow
def test_random_operations_are_seen_in_a_graph():
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    trainer = ScalarTrainer(dropped, module)

    assert rounding.draws_at_random(trainer.proof.graph)
    assert not rounding.draws_at_random(ScalarTrainer(mlp_loss, mlp()).proof.graph)
