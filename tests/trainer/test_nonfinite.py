"""A loss or a gradient that is not finite."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import (
    NonFiniteError,
    ParamList,
    ScalarTrainer,
)
from tests.models import MLP, batch, mlp, mlp_loss
from tests.trainer.oracle import bits, both, same

pytestmark = pytest.mark.usefixtures("interpreted")


def poisoned() -> tuple[Tensor, Tensor]:
    x, y = batch()
    x[0, 0] = float("nan")
    return x, y


@both
def test_a_nan_loss_is_an_error_and_nothing_has_changed_even_at_the_first_step(backend):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    before = bits(trainer.params)

    with pytest.raises(NonFiniteError, match="the loss is nan at step 1; nothing was updated"):
        trainer.adamw_step(*poisoned(), lr=0.01)
    assert same(before, trainer.params)

    trainer.adamw_step(*batch(), lr=0.01)
    fresh = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    fresh.adamw_step(*batch(), lr=0.01)

    assert same(bits(fresh.params), trainer.params)


def rooted(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    """Its loss is finite at 0 and its gradient is not."""
    rest = sum((w.sum() for w in (p.b1, p.w2, p.b2)), torch.zeros(()))
    return (x @ p.w1).abs().sum().sqrt() + rest


@both
def test_an_infinite_gradient_is_named_and_can_be_skipped(backend):
    x = torch.zeros(5, 6)
    trainer = ScalarTrainer(rooted, mlp(), backend=backend)
    before = bits(trainer.params)

    with pytest.raises(NonFiniteError, match="the gradient of `w1` is not finite at step 1"):
        trainer.adamw_step(x, lr=0.01)
    skipping = ScalarTrainer(rooted, trainer.params, backend=backend, nonfinite="skip")
    skipping.adamw_step(x, lr=0.01)

    assert same(before, trainer.params)
    assert (skipping.steps, skipping.skipped) == (0, 1)


class Roots(ParamList):
    a: Float[Tensor, " k"]


def roots(p: Roots, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return p.a.sqrt().sum() + x.sum() * 0


def norm(p: Roots, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return (p.a * x).square().sum().sqrt()


@both
@pytest.mark.parametrize("loss", [roots, norm], ids=["infinite", "nan"])
def test_no_rule_takes_a_step_from_a_gradient_that_is_not_finite(backend, loss):
    trainer = ScalarTrainer(loss, Roots(torch.zeros(4)), backend=backend, max_norm=1.0)
    x = torch.ones(4)
    for step in (
        lambda: trainer.step(x, lr=0.1),
        lambda: trainer.adam_step(x, lr=0.1),
        lambda: trainer.adamw_step(x, lr=0.1),
    ):
        with pytest.raises(NonFiniteError, match="the gradient of `a` is not finite at step 1"):
            step()

    assert not trainer.params.a.any()
