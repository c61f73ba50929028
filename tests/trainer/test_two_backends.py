"""What the compiled backend shares with the eager one, and what is its own."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import shaped.backends.inductor
from shaped import (
    ExecutorError,
    ScalarTrainer,
    Unprovable,
)
from shaped.optim import AdamW
from tests.models import MLP, batch, mlp, mlp_loss
from tests.trainer.oracle import Plain, both


def test_lr_changes_at_every_step_without_a_new_executor(compiled):
    x, y = batch()
    compiled.adamw_step(x, y, lr=0.01)
    before = len(compiled.executors)
    for i in range(10):
        compiled.adamw_step(x, y, lr=0.01 / (i + 1))

    assert len(compiled.executors) == before


def test_the_two_backends_agree_on_a_batch(compiled):
    comparison = compiled.compare_backends(*batch())

    assert comparison.largest < 1e-5
    assert set(comparison.gradients) == {"w1", "b1", "w2", "b2"}
    assert "w1" in str(comparison)


def test_executors_are_a_table_of_mode_seconds_calls_and_sizes(compiled):
    compiled.adamw_step(*batch(), lr=0.01)

    assert "AdamW" in str(compiled.executors)
    assert "batch = 5" in str(compiled.executors)


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


def test_two_trainers_on_two_backends_share_parameters_and_state(compiled):
    compiled.adamw_step(*batch(), lr=0.01)
    eager = compiled.with_backend("eager")
    steps = compiled.steps
    eager.adamw_step(*batch(), lr=0.01)

    assert compiled.steps == steps + 1
    assert eager.params is compiled.params
    assert (eager.backend, compiled.backend) == ("eager", "compiled")
    assert eager.proof is compiled.proof


def unrolled(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    total = sum((x[i] for i in range(x.shape[0])), torch.zeros(x.shape[1]))
    return F.cross_entropy((F.relu(total @ p.w1 + p.b1) @ p.w2 + p.b2)[None], y[:1])


@pytest.mark.usefixtures("interpreted")
@both
def test_a_static_dimension_is_proved_at_each_size_as_it_comes(backend):
    params = mlp()
    trainer = ScalarTrainer(unrolled, params, backend=backend, static=("batch",))
    for size in (4, 2):
        x, y = batch(size)
        torch.testing.assert_close(trainer.loss_and_backward(x, y)[0], unrolled(params, x, y).detach())


def test_static_auto_takes_the_dimensions_that_a_loss_reads_as_numbers_and_the_proof_names_them():
    params = mlp()
    trainer = ScalarTrainer(unrolled, params, static="auto")
    copy = trainer.with_backend("eager")

    assert trainer.proof.per_size == copy.proof.per_size == ("batch",)
    assert "batch is proved at each size as it comes" in str(trainer.proof)
    x, y = batch(2)
    torch.testing.assert_close(trainer.loss_and_backward(x, y)[0], unrolled(params, x, y).detach())
    with pytest.raises(Unprovable, match="depends on data"):
        ScalarTrainer(asks_its_data, mlp(), static="auto")


def asks_its_data(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w1).mean() if x.sum() > 0 else p.w1.sum()


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


@pytest.mark.slow
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
