"""Optimizers of torch and of other libraries under a trainer, on the eager backend."""

import copy
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from shaped import Checkpoints, Loop, ScalarTrainer, StateError
from shaped.optim import AdamW
from tests.loop.small_loops import LIST
from tests.models import batch, mlp, mlp_loss
from tests.trainer.oracle import bits, same

pytestmark = pytest.mark.filterwarnings("ignore:torch.optim.* steps on the eager backend alone")

MAKERS: dict[str, Any] = {
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}


class Sign(torch.optim.Optimizer):
    """One that a user wrote."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p -= group["lr"] * p.grad.sign()


def by_hand(params: Any, optimizer: Any, batches: Any) -> None:
    for x, y in batches:
        for p, g in zip(params, torch.autograd.grad(mlp_loss(params, x, y), list(params)), strict=True):
            p.grad = g
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", [*MAKERS, "Sign"])
def test_any_torch_optimizer_takes_its_own_step_bit_for_bit(name: str) -> None:
    make = MAKERS.get(name, lambda p: Sign(p, 0.01))
    params, plain = mlp(), mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=make(params))
    for x, y in LIST:
        trainer.train_step(x, y)
    by_hand(plain, make(plain), LIST)

    assert same(bits(plain), params)
    assert all(p.grad is None for p in params)


@pytest.mark.parametrize("name", ["RAdam", "AdamW", "Adafactor"])
def test_a_run_with_a_torch_optimizer_and_scheduler_is_resumed_bit_for_bit(name: str, tmp_path: Any) -> None:
    def job() -> tuple[Loop, Checkpoints]:
        params = mlp()
        optimizer = MAKERS[name](params)
        trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer)
        loop = Loop(trainer, schedule=lr_scheduler.StepLR(optimizer, 2, gamma=0.5), signals=False)
        return loop, loop.attach(Checkpoints(tmp_path, every=4))

    whole = job()
    whole[1].close()
    whole[0]._attached.clear()
    whole[0]._settling.clear()
    whole[0].run_epochs(LIST, 2)
    first, held = job()
    first.run_steps(LIST, 4)
    held.close()
    second, held = job()
    held.resume(second)
    second.run_to_step(LIST, 12)
    held.close()

    assert same(bits(whole[0].trainer.params), second.trainer.params)
    assert second.lr == whole[0].lr


def test_gradients_of_the_user_and_parameters_without_one_are_left_alone() -> None:
    params = mlp(frozen=("b1",))
    optimizer = torch.optim.RAdam(list(params), lr=0.1, weight_decay=0.5)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer)
    mine, before = torch.ones(8), params.b1.clone()
    params.b1.grad = mine
    trainer.train_step(*batch())

    assert torch.equal(params.b1, before)
    assert params.b1.grad is mine
    assert params.w1.grad is None


def test_accumulation_clipping_and_skipping_are_as_with_an_optimizer_of_ours() -> None:
    ours, theirs = mlp(), mlp()
    options: dict[str, Any] = {"accumulate": 2, "max_norm": 0.1, "nonfinite": "skip"}
    first = ScalarTrainer(mlp_loss, ours, optimizer=AdamW(ours, lr=0.01), **options)
    second = ScalarTrainer(mlp_loss, theirs, optimizer=torch.optim.AdamW(list(theirs), lr=0.01), **options)
    bad = LIST[1][0].clone().fill_(float("nan"))
    for x, y in (*LIST[:3], (bad, LIST[1][1]), *LIST[3:]):
        first.train_step(x, y), second.train_step(x, y)

    torch.testing.assert_close(first.grad_norm, second.grad_norm)
    assert (first.steps, first.skipped) == (second.steps, second.skipped) == (3, 1)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # the same formula in another order of roundings


def test_what_cannot_be_compiled_or_takes_a_closure_is_refused_with_what_to_do() -> None:
    params = mlp()
    with pytest.raises(ValueError) as caught:
        ScalarTrainer(mlp_loss, params, optimizer=torch.optim.AdamW(list(params)), backend="compiled")
    assert str(caught.value) == (
        "optimizer: the step of torch.optim.AdamW cannot be part of a compiled graph: take shaped.optim.AdamW, or "
        "backend='eager'"
    )
    with pytest.raises(
        ValueError, match=r"the step of torch\.optim\.LBFGS takes a closure that computes the loss again"
    ):
        ScalarTrainer(mlp_loss, params, optimizer=torch.optim.LBFGS(list(params)))
    trainer = ScalarTrainer(mlp_loss, params, optimizer=torch.optim.RAdam(list(params)), backend="auto")
    with pytest.warns(RuntimeWarning, match=r"torch\.optim\.RAdam cannot be part of a compiled graph: take one of"):
        trainer.train_step(*batch())

    assert repr(trainer).endswith("1 steps, the update of torch.optim.RAdam is not proved)")


def test_a_rule_that_we_have_is_offered_by_name() -> None:
    params = mlp()
    with pytest.warns(UserWarning, match="AdamW") as caught:
        ScalarTrainer(mlp_loss, params, optimizer=torch.optim.AdamW(list(params)))

    assert str(caught[0].message) == (
        "torch.optim.AdamW steps on the eager backend alone, and what it computes is not proved: shaped.optim.AdamW "
        "takes its arguments and its state dicts"
    )


def test_a_copy_of_a_trainer_has_a_copy_of_the_optimizer() -> None:
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=torch.optim.RAdam(list(params), lr=0.1))
    trainer.train_step(*batch())
    other = copy.deepcopy(trainer)
    other.train_step(*batch(seed=1))
    trainer.train_step(*batch(seed=1))

    assert same(bits(trainer.params), other.params)
    assert other.optimizer is not trainer.optimizer


def test_a_state_of_another_optimizer_is_refused_and_changes_nothing() -> None:
    first, second = mlp(), mlp(seed=1)
    trainer = ScalarTrainer(mlp_loss, first, optimizer=torch.optim.RAdam(list(first)))
    other = ScalarTrainer(mlp_loss, second, optimizer=torch.optim.NAdam(list(second)))
    before = bits(second)
    with pytest.raises(StateError, match="train_step used RAdam there, NAdam here"):
        other.load_state_dict(trainer.state_dict())

    assert same(before, second)
