"""The loop: where it stops and goes on, what runs when, and that nothing is lost in between."""

import math
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from shaped import NonFiniteError, ScalarTrainer, StateError
from shaped.data import Batch, DataError
from shaped.loop import Loop
from shaped.optim import AdamW
from tests.loop.small_loops import LIST, make, params_of, same
from tests.models import MLP, batch, mlp, mlp_loss


def test_run_steps_goes_on_where_the_data_was_left():
    loop, other = make(), make()
    loop.run_steps(LIST, 2)
    loop.run_steps(LIST, 3)
    for x, y in LIST[:5]:
        other.trainer.train_step(x, y)

    assert (loop.step, loop.start_step, loop.end_step, loop.epoch) == (5, 2, 5, 0)
    assert same(loop, other)


def test_data_that_ends_early_says_so_and_names_run_epochs():
    loop = make()
    with pytest.raises(DataError) as caught:
        loop.run_steps(LIST, 7)

    assert str(caught.value) == (
        "the data ended after 6 batches, at step 6 of 7; run_epochs(data, n) goes over it again, and "
        "run_to_step(data, n) until step n"
    )
    loop.run_epochs(LIST, 1)
    assert (loop.step, loop.epoch) == (12, 2)


def test_a_run_of_no_steps_or_to_a_step_behind_does_nothing():
    loop = make()
    loop.run_steps(LIST, 0)
    loop.run_to_step(LIST, 3)
    loop.run_to_step(LIST, 2)
    loop.run_epochs(LIST, 0)

    assert loop.step == 3
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"n is .*; it is a whole number"):
            loop.run_steps(LIST, wrong)  # type: ignore[arg-type]


def test_run_to_step_goes_over_the_data_as_often_as_needed():
    loop = make()
    loop.run_to_step(LIST, 20)

    assert (loop.step, loop.epoch) == (20, 3)


def test_run_epochs_knows_its_end_from_the_length_or_after_the_first_epoch():
    ends: list[int | None] = []
    loop = make()
    loop.on_step(lambda loop: ends.append(loop.end_step))
    loop.run_epochs(LIST, 2)
    assert ends == [12] * 12

    ends.clear()
    other = make()
    other.on_step(lambda loop: ends.append(loop.end_step))
    other.run_epochs(lambda epoch: iter(LIST[: 4 + epoch]), 3)
    assert ends == [None] * 4 + [12] * 5 + [14] * 6  # each epoch is expected to be like the last one
    assert (other.step, other.epoch) == (15, 3)


def test_a_loop_needs_a_way_to_take_a_step():
    trainer = ScalarTrainer(mlp_loss, mlp())
    with pytest.raises(ValueError, match=r"the trainer has no optimizer: .*Loop\(trainer, lambda \*batch: "):
        Loop(trainer)
    with pytest.raises(ValueError, match="trainer is a MLP; it is a ScalarTrainer"):
        Loop(mlp())  # type: ignore[arg-type]
    loop = Loop(trainer, lambda *inputs: trainer.adamw_step(*inputs, lr=0.1))
    loop.run_epochs(LIST, 1)

    assert (loop.step, trainer.steps) == (6, 6)
    assert math.isnan(loop.lr)


def penalty(p: MLP, scale: Float[Tensor, " one"]) -> Float[Tensor, ""]:
    squares = [q.square().sum() for q in p]
    return torch.stack(squares).sum() * scale.mean()


def test_each_spec_has_its_own_loss_inputs_and_executors():
    params = mlp()
    optimizer = AdamW(params, lr=0.01)
    main = ScalarTrainer(mlp_loss, params, optimizer=optimizer, backend="compiled")
    other = ScalarTrainer(penalty, params, optimizer=optimizer, backend="compiled")
    loop = Loop(main, specs={"decay": other})
    data = [Batch(batch()), Batch((torch.ones(1),), "decay")] * 3
    loop.run_steps(data, 6)

    assert (loop.step, main.steps, other.steps) == (6, 3, 3)
    assert (len(main.executors), len(other.executors)) == (1, 1)
    state = loop.state_dict()
    again = mlp(seed=1)
    shared = AdamW(again, lr=0.5)
    resumed = Loop(
        ScalarTrainer(mlp_loss, again, optimizer=shared),
        specs={"decay": ScalarTrainer(penalty, again, optimizer=shared)},
    )
    resumed.load_state_dict(state)
    assert resumed.specs["decay"].steps == 3
    stranger = mlp()
    with pytest.raises(ValueError, match="must train the same parameters with the same optimizer"):
        Loop(main, specs={"decay": ScalarTrainer(penalty, stranger, optimizer=AdamW(stranger))})


def test_loss_moving_average_and_step_durations_are_always_there():
    losses: list[float] = []
    loop = make()
    loop.on_step(lambda loop: losses.append(loop.loss))
    loop.run_epochs(LIST, 2)

    assert len(loop.durations) == 12
    assert loop.median_step > 0
    assert loop.average.compute() == pytest.approx(sum(losses) / 12)


def test_the_schedule_is_stepped_after_each_update_only():
    params = mlp()
    optimizer = AdamW(params, lr=1.0)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer, accumulate=2)
    loop = Loop(trainer, schedule=StepLR(optimizer, step_size=1, gamma=0.5), leftover="keep")
    loop.run_steps(LIST, 5)

    assert trainer.steps == 2
    assert loop.lr == 0.25


def waiting_run(leftover: Any) -> Loop:
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=1.0), accumulate=4)
    return Loop(trainer, leftover=leftover)


def test_gradients_that_wait_at_the_end_of_a_run_are_said_and_kept():
    loop, whole = waiting_run("warn"), waiting_run("keep")
    with pytest.warns(UserWarning, match="2 of 4 batches wait for an update where the run ends, and no parameter has"):
        loop.run_steps(LIST, 2)
    loop.run_steps(LIST, 2)
    whole.run_steps(LIST, 4)

    assert (loop.trainer.steps, loop.trainer.waiting) == (1, 0)
    assert same(loop, whole)


def test_gradients_that_wait_are_stepped_at_the_end_where_that_is_asked_for():
    loop = waiting_run("step")
    updates, at_end = [], []
    loop.after_update("count", lambda p: updates.append(1))
    loop.on_end(lambda loop: at_end.append(loop.trainer.steps))
    loop.run_steps(LIST, 6)
    twin = mlp()
    plain = ScalarTrainer(mlp_loss, twin, optimizer=AdamW(twin, lr=1.0))
    for part in (LIST[:4], LIST[4:6]):
        plain.train_step(*(torch.cat(tensors) for tensors in zip(*part, strict=True)))

    assert (len(updates), at_end, loop.trainer.waiting) == (2, [2], 0)
    for a, b in zip(loop.trainer.params, plain.params, strict=True):
        # Adam's step is lr*sign where g is near 0: float32 rounding of a mean of means, in units of lr = 1.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="leftover is 'drop'; it is 'warn', 'step' or 'keep'"):
        Loop(loop.trainer, leftover="drop")  # type: ignore[arg-type]


def test_an_update_after_the_optimizer_constrains_the_parameters_before_any_hook():
    loop = make()
    seen: list[float] = []
    loop.after_update("clip", lambda p: p.w1.clamp_(-0.01, 0.01))
    loop.on_step(lambda loop: seen.append(loop.trainer.params.w1.abs().max().item()))
    loop.run_steps(LIST, 3)

    assert seen == [pytest.approx(0.01)] * 3
    with pytest.raises(ValueError, match="there is an update named `clip` already"):
        loop.after_update("clip", lambda p: None)


def test_evaluate_records_loss_and_metrics_and_changes_nothing():
    heard: list[dict[str, float]] = []

    class Listener:
        def on_record(self, loop: Loop, values: dict[str, float]) -> None:
            heard.append(values)

    loop = make(metrics={"count": lambda p, x, y: len(x)})
    loop.attach(Listener())
    before, generator = params_of(loop), torch.get_rng_state()
    found = loop.evaluate(LIST)

    assert set(found) == {"validation/loss", "validation/count"}
    assert found == loop.latest == heard[0]
    assert all(torch.equal(a, b) for a, b in zip(before, loop.trainer.params, strict=True))
    assert torch.equal(generator, torch.get_rng_state())


BAD = (torch.full((5, 6), math.inf), torch.zeros(5).long())


def test_nan_is_found_before_any_hook_runs_and_the_operation_is_named():
    seen: list[int] = []
    loop = make()
    loop.on_step(lambda loop: seen.append(loop.step))
    before = params_of(loop)
    with pytest.raises(
        NonFiniteError, match=r"the loss is nan at step 1; nothing was updated\n  first made by input 0"
    ):
        loop.run_steps([BAD], 1)

    assert seen == []
    assert all(torch.equal(a, b) for a, b in zip(before, loop.trainer.params, strict=True))
    assert loop.state_dict()["position"]["index"] == 0


def test_schedule_evaluation_and_a_short_last_batch_compile_four_executors_and_no_more():
    params = mlp()
    optimizer = AdamW(params, lr=0.1)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer, backend="compiled")
    loop = Loop(trainer, schedule=StepLR(optimizer, step_size=1, gamma=0.9))
    data = [batch(5), batch(5), batch(3)]
    loop.every_n_steps(2, lambda loop: loop.evaluate(data), name="validate")
    loop.run_epochs(data, 5)

    assert (loop.step, len(trainer.executors)) == (15, 4)


def test_skipped_steps_are_counted_and_too_many_in_a_row_are_an_error():
    loop = make(nonfinite="skip")
    loop.run_steps([LIST[0], BAD, LIST[1]], 3)
    assert (loop.step, loop.trainer.steps, loop.trainer.skipped) == (3, 2, 1)
    assert math.isfinite(loop.average.compute())

    with pytest.raises(NonFiniteError, match="10 steps in a row were not finite and were skipped, the last at 13"):
        loop.run_steps([BAD] * 20, 20)


def test_a_loss_that_is_not_finite_outside_the_trainer_is_an_error_too():
    loop = Loop(ScalarTrainer(mlp_loss, mlp()), lambda x, y: torch.tensor(math.nan))
    with pytest.raises(NonFiniteError, match="the loss of step 1 is nan, and the step was taken outside the trainer"):
        loop.run_steps(LIST, 1)


@pytest.mark.smoke
@pytest.mark.parametrize("stop", [1, 5, 6, 7, 13])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one_mid_epoch_too(stop: int, workers: int):
    data = TensorDataset(torch.randn(17, 6), torch.randint(0, 3, (17,)))

    def loader() -> DataLoader[Any]:
        return DataLoader(data, batch_size=3, shuffle=True, num_workers=workers)  # its order is of the global generator

    torch.manual_seed(0)
    whole = make()
    whole.run_epochs(loader(), 3)

    class Enough(Exception):
        pass

    torch.manual_seed(0)
    first = make()

    @first.on_step
    def leave(loop: Loop) -> None:
        if loop.step == stop:
            raise Enough

    with pytest.raises(Enough):
        first.run_epochs(loader(), 3)
    state = first.state_dict()
    torch.manual_seed(99)
    second = make(seed=5)
    second.load_state_dict(state)
    second.run_epochs(loader(), 3)

    assert (second.step, second.epoch) == (whole.step, whole.epoch) == (18, 3)
    assert same(second, whole)
    assert second.average.compute() == whole.average.compute()
    assert torch.equal(second.state_dict()["generators"]["torch"], whole.state_dict()["generators"]["torch"])


def test_a_state_that_does_not_fit_changes_nothing():
    loop, other = make(), make(seed=1)
    loop.run_steps(LIST, 3)
    loop.keep("average", loop.average)
    before = other.state_dict()
    with pytest.raises(StateError) as caught:
        other.load_state_dict(loop.state_dict())
    assert str(caught.value) == "the state does not fit this loop.\n  `average` is kept there and not here"

    state = make().state_dict()
    state["average"] = {"value": "x", "count": 1}
    with pytest.raises(StateError, match="does not fit this loop: ValueError: could not convert string to float"):
        other.load_state_dict(state)
    with pytest.raises(StateError, match=r"does not fit this loop.\n  trainer: missing\n  specs: missing"):
        other.load_state_dict({})
    after = other.state_dict()

    assert other.step == 0
    assert torch.equal(before["trainer"]["params"]["w1"], after["trainer"]["params"]["w1"])
    assert torch.equal(before["generators"]["torch"], after["generators"]["torch"])


def test_a_saved_state_is_a_copy_and_saving_changes_no_training():
    a, b = make(), make()
    a.run_steps(LIST, 2)
    state = a.state_dict()
    kept = state["trainer"]["params"]["w1"].clone()
    a.on_step(lambda loop: loop.state_dict())
    a.run_steps(LIST, 4)
    b.run_steps(LIST, 6)

    assert same(a, b)
    assert torch.equal(kept, state["trainer"]["params"]["w1"])
