"""Loss scaling as one argument of a trainer: the plain step, overflow, state, batches that are counted."""

from typing import Any

import pytest
import torch

from shaped import Loop, ScalarTrainer, StateError
from shaped.optim import AdamW
from shaped.scaling import LossScaler, unscaled
from tests.loop.small_loops import LIST
from tests.models import batch, mlp, mlp_loss
from tests.trainer.oracle import bits, both, same


@both
def test_a_trainer_with_a_loss_scale_takes_the_plain_step_and_skips_what_overflows(backend: Any) -> None:
    plain = ScalarTrainer(mlp_loss, mlp())
    scaled = ScalarTrainer(mlp_loss, mlp(), backend=backend, loss_scale=LossScaler(2.0**127, interval=2))
    x, y = batch()
    while scaled.skipped < 200 and not scaled.steps:
        loss = scaled.step(1e4 * x, y, lr=0.0)
    skipped = scaled.skipped
    for seed in range(3):
        loss = scaled.step(*batch(seed=seed), lr=0.1)
        plain.step(*batch(seed=seed), lr=0.1)

    assert 0 < skipped < 200
    assert (scaled.steps, scaled.skipped) == (4, skipped)
    assert float(loss) == pytest.approx(float(scaled.forward(*batch(seed=2))), rel=1.0)  # not the scaled one
    for p, q in zip(scaled.params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # a scale of a power of 2 rounds nothing


def test_a_dynamic_scale_goes_on_where_it_was_in_a_resumed_run() -> None:
    def make(seed: int = 0) -> Loop:
        params = mlp(seed=seed)
        trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.01), loss_scale="dynamic")
        return Loop(trainer, signals=False)

    first, second = make(), make(seed=1)
    first.run_steps(LIST, 2)
    first.trainer._shared.scaler.update(False)  # type: ignore[union-attr]
    second.load_state_dict(first.state_dict())
    for loop in (first, second):
        loop.run_to_step(LIST, 4)
    found = second.state_dict()["trainer"]["loss_scale"]

    assert found == first.state_dict()["trainer"]["loss_scale"] == {"scale": 2.0**15, "good": 2}
    assert same(bits(first.trainer.params), second.trainer.params)
    assert first.evaluate(LIST) == second.evaluate(LIST)
    plain = ScalarTrainer(mlp_loss, mlp(), optimizer=None)
    with pytest.raises(StateError, match="loss_scale: there and not here"):
        plain.load_state_dict(first.trainer.state_dict())


def test_batches_that_are_counted_by_a_function_are_counted_without_the_scale() -> None:
    options: dict[str, Any] = {"accumulate": 2, "samples": lambda x, y: (y < 2).sum()}
    scaled = ScalarTrainer(mlp_loss, mlp(), loss_scale="dynamic", **options)
    plain = ScalarTrainer(mlp_loss, mlp(), **options)
    for trainer in (scaled, plain):
        for seed in range(4):
            trainer.step(*batch(seed=seed), lr=0.1)

    assert scaled.steps == plain.steps == 2
    for p, q in zip(scaled.params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_scale_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss_scale is 'static'; it is 'dynamic', a LossScaler\(\.\.\.\), or None"):
        ScalarTrainer(mlp_loss, mlp(), loss_scale="static")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave out strategy="):
        ScalarTrainer(mlp_loss, mlp(), loss_scale="dynamic", strategy=unscaled)
