"""Steps and passes against plain autograd and torch.optim, on both backends."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import (
    ParamList,
    ScalarTrainer,
)
from shaped.optim import SGD, AdamW
from tests.models import MLP, batch, mlp, mlp_loss
from tests.trainer.oracle import DTYPES, RULES, TOLERANCE, Plain, bits, both, same


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("rule", "dtype", "backend"),
    [  # compiled, each rule and each dtype once
        *((rule, dtype, "eager") for rule in RULES for dtype in DTYPES),
        ("sgd", torch.float32, "compiled"),
        ("adam", torch.float64, "compiled"),
        ("adamw", torch.float32, "compiled"),
    ],
    ids=str,
)
def test_ten_steps_are_those_of_torch_optim(rule, dtype, backend):
    params = mlp(dtype=dtype)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend)
    step, oracle = RULES[rule]
    plain = Plain(params, oracle)

    for seed in range(10):
        x, y = batch(seed=seed, dtype=dtype)
        torch.testing.assert_close(step(trainer, x, y), plain.step(x, y), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for mine, theirs in zip(trainer.params, plain.params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.gpu
@both
@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_on_a_gpu_are_those_of_torch_optim(backend, rule):
    params = mlp(device="cuda")
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, max_norm=0.5)
    step, oracle = RULES[rule]
    plain = Plain(params, oracle)

    for seed in range(10):
        x, y = (tensor.cuda() for tensor in batch(seed=seed))
        torch.testing.assert_close(step(trainer, x, y), plain.step(x, y, max_norm=0.5), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(trainer.params, plain.params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.smoke
@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradients_are_those_of_autograd(backend, dtype):
    params = mlp(dtype=dtype)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend)
    x, y = batch(dtype=dtype)
    expected = mlp_loss(params, x, y)
    gradients = torch.autograd.grad(expected, list(params))

    loss, found = trainer.loss_and_backward(x, y)
    assert isinstance(found, MLP)
    assert found.shapes == params.shapes
    torch.testing.assert_close(loss, expected.detach())
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(trainer.forward(x, y), expected.detach())


@both
def test_a_smaller_last_batch_and_a_batch_of_one_work(backend, compiled):
    trainer = compiled if backend == "compiled" else ScalarTrainer(mlp_loss, mlp())
    for size in (5, 3, 1):
        x, y = batch(size)
        expected = mlp_loss(cast(MLP, trainer.params), x, y)
        value = trainer.adamw_step(x, y, lr=0.01)

        torch.testing.assert_close(value, expected.detach())


@both
def test_hyper_parameters_other_than_lr_are_fixed_by_the_first_call(backend, compiled):
    trainer = ScalarTrainer(mlp_loss, mlp()) if backend == "eager" else compiled
    trainer.adamw_step(*batch(), lr=0.01)

    with pytest.raises(ValueError) as caught:
        trainer.adamw_step(*batch(), lr=0.01, weight_decay=0.3)
    assert str(caught.value) == (
        "adamw_step: weight_decay is 0.3, and the first call fixed weight_decay = 0.01; only lr may change"
    )


class Roots(ParamList):
    a: Float[Tensor, " k"]


def norm(p: Roots, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return (p.a * x).square().sum().sqrt()


class Pair(ParamList):
    a: Float[Tensor, " k"]
    b: Float[Tensor, " k"]


def sums(p: Pair, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return (p.a + p.b - x).square().sum()


@pytest.mark.usefixtures("interpreted")
@both
def test_gradients_that_share_storage_are_clipped_once(backend):
    trainer = ScalarTrainer(sums, Pair(torch.zeros(4), torch.zeros(4)), backend=backend, max_norm=1.0)
    x = torch.arange(1.0, 5.0)
    trainer.step(x, lr=1.0)

    torch.testing.assert_close(trainer.params.a, x / x.norm() / 2**0.5)
    torch.testing.assert_close(trainer.params.a, trainer.params.b)


def test_the_loss_that_a_step_returns_is_the_one_before_the_update_even_where_it_is_a_parameter():
    class Scalar(ParamList):
        s: Float[Tensor, ""]

    def itself(p: Scalar, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        return p.s

    assert ScalarTrainer(itself, Scalar(torch.tensor(2.0))).step(torch.ones(3), lr=1.0) == 2.0


def test_a_step_works_under_no_grad():
    trainer = ScalarTrainer(mlp_loss, mlp())
    with torch.no_grad():
        before = trainer.step(*batch(), lr=0.1)
        after = ScalarTrainer(mlp_loss, trainer.params).forward(*batch())

    assert after < before


def test_gradients_that_wait_are_for_one_kind_of_step():
    trainer = ScalarTrainer(mlp_loss, mlp(), accumulate=2)
    trainer.step(*batch(), lr=0.1)

    with pytest.raises(ValueError, match="1 of 2 gradients wait for another kind of step"):
        trainer.adam_step(*batch(), lr=0.1)
    trainer.step(*batch(), lr=0.1)


@pytest.mark.usefixtures("interpreted")
@both
def test_sgd_with_momentum_dampening_and_nesterov_follows_torch_under_a_schedule(backend):
    variants: list[dict[str, Any]] = [
        {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
    ]
    for options in variants:
        params = mlp(dtype=torch.float64)
        mine = SGD(params, lr=0.1, **options)
        trainer = ScalarTrainer(mlp_loss, params, backend=backend, optimizer=mine)
        plain = Plain(params, partial(torch.optim.SGD, lr=0.1, **options))
        schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (mine, plain.optimizer)]
        for seed in range(6):
            x, y = batch(seed=seed, dtype=torch.float64)
            trainer.train_step(x, y)
            plain.step(x, y)
            for schedule in schedules:
                schedule.step()

        for p, q in zip(params, plain.params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        assert len(trainer.executors) <= 1


@pytest.mark.usefixtures("interpreted")
@both
def test_parameter_groups_have_their_own_hyper_parameters(backend):
    params = mlp(dtype=torch.float64)
    slow = {"weight_decay": 0.0, "lr": 0.1}

    def groups(p: Any) -> list[dict[str, Any]]:
        w1, b1, w2, b2 = p
        return [{"params": [w1, w2]}, {"params": [b1, b2], **slow}]

    mine = AdamW(groups(params), lr=0.01)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, optimizer=mine)
    plain = Plain(params, lambda p: torch.optim.AdamW(groups(p), lr=0.01))
    for seed in range(4):
        x, y = batch(seed=seed, dtype=torch.float64)
        trainer.train_step(x, y)
        plain.step(x, y)

    for p, q in zip(params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("interpreted")
@both
def test_max_norm_clips_as_clip_grad_norm_does(backend):
    params = mlp(dtype=torch.float64)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, max_norm=0.05)
    plain = Plain(params, lambda p: torch.optim.SGD(p, lr=0.1))
    for seed in range(3):
        x, y = batch(seed=seed, dtype=torch.float64)
        trainer.step(x, y, lr=0.1)
        plain.step(x, y, max_norm=0.05)

    for p, q in zip(params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("interpreted")
@both
def test_accumulating_equal_batches_is_the_step_of_their_union(backend):
    params = mlp(dtype=torch.float64)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, accumulate=2)
    plain = Plain(params, lambda p: torch.optim.AdamW(p, lr=0.01))
    x, y = batch(6, dtype=torch.float64)
    before = bits(params)
    trainer.adamw_step(x[:3], y[:3], lr=0.01)

    assert same(before, params)
    trainer.adamw_step(x[3:], y[3:], lr=0.01)
    plain.step(x, y)

    for p, q in zip(params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert trainer.steps == 1


@pytest.mark.usefixtures("interpreted")
@both
def test_a_frozen_parameter_stays_and_its_gradient_is_zero(backend):
    params = mlp(frozen=("w1",))
    trainer = ScalarTrainer(mlp_loss, params, backend=backend)
    before = params.w1.clone()
    trainer.adamw_step(*batch(), lr=0.1)
    gradients = trainer.with_backend("eager").backward(*batch())

    assert torch.equal(before, params.w1)
    assert not gradients.w1.any()
    assert gradients.w2.any()
