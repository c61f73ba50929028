"""Both backends, every update rule, against plain autograd and torch.optim."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

import shaped.backends.inductor
from shaped import (
    ExecutorError,
    GradientError,
    NonFiniteError,
    ParamList,
    ProofError,
    ScalarTrainer,
    ShapeError,
    SignatureError,
    StateError,
)
from shaped.optim import SGD, Adam, AdamW
from tests.models import GPT, MLP, batch, gpt_loss, mlp, mlp_loss

BACKENDS = ["eager", "compiled"]
DTYPES = [torch.float32, torch.float64]
# Ten steps, each a few roundings of values of order 1.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}

both = pytest.mark.parametrize("backend", BACKENDS)


def bits(params: ParamList) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(before: list[Tensor], params: ParamList) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


class Plain:
    """The oracle: the same loss, autograd and a torch optimizer."""

    def __init__(self, params: MLP, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.params = params.values()
        self.optimizer = optimizer(list(self.params))

    def step(self, x: Tensor, y: Tensor, max_norm: float | None = None) -> Tensor:
        self.optimizer.zero_grad()
        loss = mlp_loss(self.params, x, y)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(list(self.params), max_norm)
        self.optimizer.step()
        return loss.detach()


RULES: dict[str, tuple[Callable[[ScalarTrainer, Tensor, Tensor], Tensor], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (lambda t, x, y: t.step(x, y, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "adam": (
        lambda t, x, y: t.adam_step(x, y, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    ),
    "adamw": (
        lambda t, x, y: t.adamw_step(x, y, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}


@pytest.mark.smoke
@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_are_those_of_torch_optim(backend, dtype, rule):
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


@pytest.fixture(scope="module")
def compiled() -> ScalarTrainer:
    """One compiled trainer that several tests share; those that care reset its parameters."""
    return ScalarTrainer(mlp_loss, mlp(), backend="compiled")


def test_lr_changes_at_every_step_without_a_new_executor(compiled):
    x, y = batch()
    compiled.adamw_step(x, y, lr=0.01)
    before = len(compiled.executors)
    for i in range(10):
        compiled.adamw_step(x, y, lr=0.01 / (i + 1))

    assert len(compiled.executors) == before


@both
def test_a_smaller_last_batch_and_a_batch_of_one_work(backend, compiled):
    trainer = compiled if backend == "compiled" else ScalarTrainer(mlp_loss, mlp())
    for size in (5, 3, 1):
        x, y = batch(size)
        expected = mlp_loss(cast(MLP, trainer.params), x, y)
        value = trainer.adamw_step(x, y, lr=0.01)

        torch.testing.assert_close(value, expected.detach())


def test_the_two_backends_agree_on_a_batch(compiled):
    comparison = compiled.compare_backends(*batch())

    assert comparison.largest < 1e-5
    assert set(comparison.gradients) == {"w1", "b1", "w2", "b2"}
    assert "w1" in str(comparison)


def test_executors_are_a_table_of_mode_seconds_calls_and_sizes(compiled):
    compiled.adamw_step(*batch(), lr=0.01)

    assert "AdamW" in str(compiled.executors)
    assert "batch = 5" in str(compiled.executors)


BAD_BATCHES = {
    "shape": lambda x, y: (torch.randn(5, 7), y),
    "rank": lambda x, y: (x[0], y),
    "dtype": lambda x, y: (x, y.float()),
    "missing": lambda x, y: (x,),
    "extra": lambda x, y: (x, y, y),
    "none": lambda x, y: (x, None),
    "list": lambda x, y: (x.tolist(), y),
    "device": lambda x, y: (x.to("meta"), y),
    "batches differ": lambda x, y: (x, y[:3]),
    "empty": lambda x, y: (x[:0], y[:0]),
}


@both
@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_a_batch_that_breaks_the_signature_changes_nothing(backend, fault, compiled):
    trainer = compiled.with_backend(backend)
    before = bits(trainer.params)
    state = copy.deepcopy(trainer.state_dict())

    with pytest.raises(ShapeError):
        trainer.adamw_step(*BAD_BATCHES[fault](*batch()), lr=0.01)
    assert same(before, trainer.params)
    assert str(trainer.state_dict()) == str(state)


def test_the_message_names_what_is_wrong_and_who_fixed_the_axis():
    trainer = ScalarTrainer(mlp_loss, mlp())

    with pytest.raises(ShapeError) as caught:
        trainer.step(torch.randn(5, 7), torch.zeros(4, dtype=torch.int64), lr=0.1)

    assert str(caught.value) == (
        "The batch breaks its signature in 2 of 2 entries.\n"
        '  x: expected Float "batch pixels" = (5, 6), got float32 (5, 7)\n'
        "      axis pixels is 6, set by w1 (6, 8)\n"
        '  y: expected Int "batch" = (5,), got int64 (4,)\n'
        "      axis batch is 5, set by x (5, 7)"
    )


@both
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t, x, y: t.step(x, y, lr=-1.0), "lr"),
        (lambda t, x, y: t.step(x, y, lr=float("nan")), "lr"),
        (lambda t, x, y: t.step(x, y, lr="fast"), "lr"),
        (lambda t, x, y: t.adam_step(x, y, lr=0.1, betas=(0.9, 1.0)), "beta"),
        (lambda t, x, y: t.adam_step(x, y, lr=0.1, eps=-1e-8), "eps"),
        (lambda t, x, y: t.train_step(x, y), "train_step needs an optimizer"),
    ],
)
def test_a_hyper_parameter_out_of_range_changes_nothing(backend, call, name):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    before = bits(trainer.params)

    with pytest.raises(ValueError, match=name):
        call(trainer, *batch())
    assert same(before, trainer.params)
    assert trainer.steps == 0


def test_a_negative_weight_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay"):
        ScalarTrainer(mlp_loss, mlp()).adamw_step(*batch(), lr=0.1, weight_decay=-1.0)


@both
def test_hyper_parameters_other_than_lr_are_fixed_by_the_first_call(backend, compiled):
    trainer = ScalarTrainer(mlp_loss, mlp()) if backend == "eager" else compiled
    trainer.adamw_step(*batch(), lr=0.01)

    with pytest.raises(ValueError) as caught:
        trainer.adamw_step(*batch(), lr=0.01, weight_decay=0.3)
    assert str(caught.value) == (
        "adamw_step: weight_decay is 0.3, and the first call fixed weight_decay = 0.01; only lr may change"
    )


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


class Pair(ParamList):
    a: Float[Tensor, " k"]
    b: Float[Tensor, " k"]


def sums(p: Pair, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return (p.a + p.b - x).square().sum()


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


@both
def test_train_and_eval_of_a_module_are_followed(backend):
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    trainer = ScalarTrainer(module_loss, module, backend=backend)
    x, y = batch()
    trainer.loss_and_backward(x, y)
    module.eval()

    torch.testing.assert_close(trainer.loss_and_backward(x, y)[0], module_loss(module, x, y).detach())


def test_a_state_of_another_dtype_is_not_given_to_code_compiled_for_the_first():
    def trainer() -> ScalarTrainer:
        return ScalarTrainer(mlp_loss, mlp(dtype=torch.bfloat16), backend="compiled")

    x, y = batch(dtype=torch.bfloat16)
    first = trainer()
    first.adamw_step(x, y, lr=0.1)
    state = first.state_dict()
    for entry in state["optimizers"]["adamw"]["state"]["state"].values():
        entry["exp_avg"], entry["exp_avg_sq"] = entry["exp_avg"].float(), entry["exp_avg_sq"].float()
    first.load_state_dict(state)
    eager = ScalarTrainer(mlp_loss, first.get_params())
    eager.load_state_dict(state)
    first.adamw_step(x, y, lr=0.1)
    eager.adamw_step(x, y, lr=0.1)

    for p, q in zip(first.params, eager.params, strict=True):
        torch.testing.assert_close(p, q, rtol=2**-5, atol=2**-8)  # bfloat16 has 8 bits


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


def test_a_schedule_may_move_betas_too_without_a_new_executor():
    params = mlp(dtype=torch.float64)
    mine = AdamW(params, lr=0.01)
    trainer = ScalarTrainer(mlp_loss, params, backend="compiled", optimizer=mine)
    plain = Plain(params, lambda p: torch.optim.AdamW(p, lr=0.01))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=10) for o in (mine, plain.optimizer)]
    for seed in range(8):
        x, y = batch(seed=seed, dtype=torch.float64)
        trainer.train_step(x, y)
        plain.step(x, y)
        for schedule in schedules:
            schedule.step()

    for p, q in zip(params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert len(trainer.executors) == 1


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


def test_train_step_refuses_an_optimizer_over_other_parameters():
    with pytest.raises(ValueError, match="made for other parameters"):
        ScalarTrainer(mlp_loss, mlp(), optimizer=AdamW(mlp(seed=1)))
    with pytest.raises(ValueError, match=r"use SGD, Adam or AdamW of shaped.optim"):
        ScalarTrainer(mlp_loss, mlp(), optimizer=torch.optim.AdamW(list(mlp())))  # type: ignore[arg-type]


@both
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(backend, compiled):
    def trainer(seed: int) -> ScalarTrainer:
        if backend == "eager":
            return ScalarTrainer(mlp_loss, mlp(seed))
        return ScalarTrainer(mlp_loss, mlp(seed), backend="compiled")

    straight = trainer(0)
    for seed in range(6):
        straight.adamw_step(*batch(seed=seed), lr=0.01 * (seed + 1))
    first = trainer(0)
    for seed in range(3):
        first.adamw_step(*batch(seed=seed), lr=0.01 * (seed + 1))
    second = trainer(1)
    second.adamw_step(*batch(seed=9), lr=0.5)  # state of its own, which loading replaces
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        second.adamw_step(*batch(seed=seed), lr=0.01 * (seed + 1))

    assert same(bits(straight.params), second.params)
    assert second.steps == 6


def test_a_state_that_does_not_fit_changes_nothing_and_lists_every_difference():
    trainer = ScalarTrainer(mlp_loss, mlp())
    trainer.adamw_step(*batch(), lr=0.01)
    other = ScalarTrainer(mlp_loss, MLP.init(pixels=6, hidden=9, classes=3))
    other.step(*batch(), lr=0.01)
    before, steps = bits(other.params), other.steps

    with pytest.raises(StateError) as caught:
        other.load_state_dict(trainer.state_dict())

    assert str(caught.value) == (
        "the state dict does not fit this trainer.\n"
        "  w1: float32 (6, 8) there, float32 (6, 9) here\n"
        "  b1: float32 (8,) there, float32 (9,) here\n"
        "  w2: float32 (8, 3) there, float32 (9, 3) here"
    )
    assert same(before, other.params)
    assert other.steps == steps


def test_a_broken_optimizer_state_changes_nothing():
    trainer = ScalarTrainer(mlp_loss, mlp())
    trainer.adamw_step(*batch(), lr=0.01)
    state = trainer.state_dict()
    state["optimizers"]["adamw"]["state"]["state"][1]["exp_avg"] = torch.zeros(3)
    other = ScalarTrainer(mlp_loss, mlp(seed=5))
    before = bits(other.params)

    with pytest.raises(StateError, match="the state of optimizer `adamw` does not fit"):
        other.load_state_dict(state)
    assert same(before, other.params)
    for fault in ({"steps": None}, {"steps": -3}, {"params": [1]}, {"optimizers": {"adamw": {"class": "SGD"}}}):
        with pytest.raises(StateError):
            other.load_state_dict({**trainer.state_dict(), **fault})
        assert same(before, other.params)
    with pytest.raises(StateError, match="params: missing"):
        other.load_state_dict({})


def test_two_trainers_on_two_backends_share_parameters_and_state(compiled):
    compiled.adamw_step(*batch(), lr=0.01)
    eager = compiled.with_backend("eager")
    steps = compiled.steps
    eager.adamw_step(*batch(), lr=0.01)

    assert compiled.steps == steps + 1
    assert eager.params is compiled.params
    assert (eager.backend, compiled.backend) == ("eager", "compiled")
    assert eager.proof is compiled.proof


def test_get_params_is_a_copy():
    trainer = ScalarTrainer(mlp_loss, mlp())
    copied = trainer.get_params()
    before = bits(copied)
    trainer.step(*batch(), lr=0.1)

    assert same(before, copied)
    assert not same(before, trainer.params)


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


def first_layer(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return (x @ p.w1).square().mean()


def test_a_missing_gradient_is_named_before_the_first_step_unless_it_is_allowed():
    with pytest.raises(GradientError) as caught:
        ScalarTrainer(first_layer, mlp())
    assert str(caught.value) == (
        "`first_layer` does not depend on `b1`, `w2` and `b2`: the gradient is missing. Use it, freeze it, or pass "
        "allow_unused=True"
    )
    params = mlp()
    before = params.w2.clone()
    trainer = ScalarTrainer(first_layer, params, allow_unused=True)
    x, _ = batch()
    trainer.adamw_step(x, lr=0.1)

    assert torch.equal(before, params.w2)
    assert not trainer.backward(x).w2.any()


def test_constructing_refuses_what_cannot_be_trained():
    def vector(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
        return x.mean(1)

    def bare(p: MLP, x) -> Float[Tensor, ""]:  # type: ignore[no-untyped-def]
        return x.mean()

    class Other(ParamList):
        w: Float[Tensor, "a b"]

    with pytest.raises(SignatureError, match="a trainer needs one scalar"):
        ScalarTrainer(vector, mlp())
    with pytest.raises(SignatureError, match="argument `x` has no annotation"):
        ScalarTrainer(bare, mlp())
    with pytest.raises(SignatureError, match="takes a MLP as `p`, and params is a Other"):
        ScalarTrainer(mlp_loss, Other.init(a=2, b=3))
    with pytest.raises(SignatureError, match=r"pass a ParamList or an nn.Module"):
        ScalarTrainer(mlp_loss, [torch.zeros(2)])  # type: ignore[arg-type]
    with pytest.raises(GradientError, match="nothing to train"):
        ScalarTrainer(mlp_loss, mlp(frozen=("w1", "b1", "w2", "b2")))
    for options in (
        {"backend": "fast"},
        {"nonfinite": "ignore"},
        {"accumulate": 0},
        {"max_norm": 0.0},
        {"max_executors": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            ScalarTrainer(mlp_loss, mlp(), **options)


def test_dtypes_the_program_cannot_take_are_refused_at_the_door():
    trainer = ScalarTrainer(mlp_loss, mlp())
    x, y = batch(dtype=torch.float64)
    before = bits(trainer.params)

    with pytest.raises(ProofError, match="is not well-shaped for the dtypes x float64, y int64"):
        trainer.step(x, y, lr=0.1)
    assert same(before, trainer.params)


def module_loss(model: nn.Module, x: Float[Tensor, "batch 6"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(model(x), y)


def output_loss(logits: Float[Tensor, "batch 3"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.outer = nn.Linear(8, 3)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
        result: Tensor = self.outer(torch.tanh(self.inner(x)))
        return result


@both
@pytest.mark.parametrize("loss", [module_loss, output_loss])
def test_a_module_is_trained_in_place_by_a_loss_over_it_or_over_its_output(backend, loss):
    torch.manual_seed(0)
    module = Net().double()
    twin = copy.deepcopy(module)
    oracle = torch.optim.AdamW(twin.parameters(), lr=0.01)
    trainer = ScalarTrainer(loss, module, backend=backend)
    for seed in range(3):
        x, y = batch(seed=seed, dtype=torch.float64)
        trainer.adamw_step(x, y, lr=0.01)
        oracle.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        oracle.step()

    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_prediction_must_be_what_forward_returns_for_all_sizes():
    def misdeclared(logits: Float[Tensor, "batch 5"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, y)

    with pytest.raises(ProofError) as caught:
        ScalarTrainer(misdeclared, Net())
    assert caught.value.goal.equation == "3 = 5"


@both
def test_new_storage_is_followed_and_a_new_dtype_is_refused(backend):
    module = Net()
    trainer = ScalarTrainer(module_loss, module, backend=backend)
    x, y = batch()
    before = trainer.loss_and_backward(x, y)[0]
    for p in module.parameters():
        p.data = p.data * 0.0
    after = trainer.loss_and_backward(x, y)[0]

    assert before != after
    torch.testing.assert_close(after, torch.log(torch.tensor(3.0)))
    module.double()
    with pytest.raises(ShapeError, match="the parameters were changed; make a new trainer for them"):
        trainer.step(x, y, lr=0.1)


@both
def test_freezing_a_parameter_needs_a_new_trainer(backend):
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, backend=backend)
    params.w1.requires_grad_(False)

    with pytest.raises(GradientError, match="requires_grad of `w1` was changed; make a new trainer for this mask"):
        trainer.step(*batch(), lr=0.1)


@both
def test_a_class_number_out_of_range_is_an_error_and_nothing_has_changed(backend):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    before = bits(trainer.params)
    x, y = batch()

    with pytest.raises((IndexError, ExecutorError)):
        trainer.step(x, y + 7, lr=0.1)
    assert same(before, trainer.params)


def test_a_module_whose_forward_is_not_annotated_says_what_to_write():
    with pytest.raises(SignatureError, match=r"Annotate Sequential.forward, or write the loss over the module"):
        ScalarTrainer(output_loss, nn.Sequential(nn.Linear(6, 3)))


def unrolled(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    total = sum((x[i] for i in range(x.shape[0])), torch.zeros(x.shape[1]))
    return F.cross_entropy((F.relu(total @ p.w1 + p.b1) @ p.w2 + p.b2)[None], y[:1])


@both
def test_a_static_dimension_is_proved_at_each_size_as_it_comes(backend):
    params = mlp()
    trainer = ScalarTrainer(unrolled, params, backend=backend, static=("batch",))
    for size in (4, 2):
        x, y = batch(size)
        torch.testing.assert_close(trainer.loss_and_backward(x, y)[0], unrolled(params, x, y).detach())


def with_constant(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = x @ p.w1
    h += p.b1  # in place, on an intermediate
    return F.cross_entropy(F.dropout(torch.relu_(h) @ p.w2 + p.b2, 0.5) * SCALE, y)


SCALE = torch.tensor([0.5, 1.0, 2.0])


def test_constants_in_place_intermediates_and_dropout_compile():
    trainer = ScalarTrainer(with_constant, MLP.init(pixels=6, hidden=8, classes=3), assume=("classes == 3",))
    fast = trainer.with_backend("compiled")
    torch.manual_seed(0)
    values = [fast.loss_and_backward(*batch())[0].item() for _ in range(2)]

    assert values[0] != values[1]  # a mask of its own at each call


def test_autocast_runs_in_bfloat16_and_agrees_between_backends():
    trainer = ScalarTrainer(mlp_loss, mlp(), autocast=torch.bfloat16)
    comparison = trainer.compare_backends(*batch())

    assert trainer.forward(*batch()) != ScalarTrainer(mlp_loss, mlp()).forward(*batch())
    assert comparison.largest < 2**-6  # a few roundings to 8 bits


def test_inputs_need_not_be_contiguous(compiled):
    x, y = batch()
    strange = x.T.contiguous().T

    torch.testing.assert_close(compiled.loss_and_backward(strange, y)[0], compiled.loss_and_backward(x, y)[0])


def test_without_a_cpp_compiler_the_traced_step_runs_with_one_warning(monkeypatch):
    monkeypatch.setattr(shaped.backends.inductor, "has_cpp_compiler", lambda: False)
    monkeypatch.setattr(shaped.backends.inductor, "_warned", False)
    params = mlp(dtype=torch.float64)
    trainer = ScalarTrainer(mlp_loss, params, backend="compiled")
    plain = Plain(params, lambda p: torch.optim.AdamW(p, lr=0.01))
    x, y = batch(dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler"):
        trainer.adamw_step(x, y, lr=0.01)
    plain.step(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.adamw_step(*batch(4, dtype=torch.float64), lr=0.01)
    plain.step(*batch(4, dtype=torch.float64))

    assert {executor.how for executor in trainer.executors} == {"python"}
    for p, q in zip(params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_full_executor_cache_is_an_error_that_names_the_argument(monkeypatch):
    monkeypatch.setattr(shaped.backends.inductor, "has_cpp_compiler", lambda: False)
    monkeypatch.setattr(shaped.backends.inductor, "_warned", True)
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled", max_executors=1)
    trainer.forward(*batch(4))
    with pytest.raises(ExecutorError, match="max_executors is 1"):
        trainer.forward(*batch(3))

    trainer.forward(*batch(4))


def test_check_false_admits_batches_unseen():
    trainer = ScalarTrainer(mlp_loss, mlp(), check=False)
    trainer.step(*batch(), lr=0.1)

    with pytest.raises(RuntimeError):
        trainer.step(torch.randn(5, 7), batch()[1], lr=0.1)


def test_a_proof_keeps_no_frame_of_its_caller_alive():
    class Local:
        pass

    def make() -> tuple[ScalarTrainer, weakref.ref[Local]]:
        local = Local()
        return ScalarTrainer(gpt_loss, GPT.init(vocab=5, context=4, dim=8, blocks=1)), weakref.ref(local)

    trainer, local = make()
    gc.collect()

    assert trainer.proof.conditions
    assert local() is None


def test_adam_and_adamw_keep_separate_state():
    trainer = ScalarTrainer(mlp_loss, mlp())
    trainer.adam_step(*batch(), lr=0.01)
    trainer.adamw_step(*batch(), lr=0.01)

    assert set(trainer.state_dict()["optimizers"]) == {"adam", "adamw"}
    assert isinstance(Adam(list(mlp())), torch.optim.Optimizer)


@both
@pytest.mark.parametrize("rule", RULES)
def test_gradients_that_wait_are_saved_and_loaded(backend, rule):
    if backend == "compiled" and rule != "adamw":
        pytest.skip("the update runs in shaped_kernels on both; one rule shows it")
    step, _ = RULES[rule]
    run = ScalarTrainer(mlp_loss, mlp(), backend=backend, accumulate=3)
    for seed in range(5):
        step(run, *batch(seed=seed))
    other = ScalarTrainer(mlp_loss, mlp(seed=1), backend=backend, accumulate=3)
    other.load_state_dict(run.state_dict())
    for seed in range(5, 10):
        assert torch.equal(step(run, *batch(seed=seed)), step(other, *batch(seed=seed)))

    assert same(bits(run.params), other.params)
    assert run.steps == other.steps == 3


def test_waiting_gradients_that_do_not_fit_are_listed_and_nothing_changes():
    run = ScalarTrainer(mlp_loss, mlp(), accumulate=3)
    run.step(*batch(), lr=0.1)
    state = run.state_dict()
    other = ScalarTrainer(mlp_loss, mlp(seed=1), accumulate=2)
    before = bits(other.params)
    state["waiting"]["means"]["w1"] = torch.zeros(2)
    state["waiting"]["path"] = "adam"
    with pytest.raises(StateError) as caught:
        other.load_state_dict(state)

    assert str(caught.value) == (
        "the state dict does not fit this trainer.\n"
        "  1 of 3 gradients wait there; accumulate=2 here\n"
        "  waiting: for the optimizer 'adam', which it does not have\n"
        "  waiting: the gradient of w1 is float32 (2,) there, float32 (6, 8) here"
    )
    assert same(before, other.params)
