"""One look at all parameters and at a batch sees whatever the longer way sees."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaped import GradientError, ScalarTrainer, ShapeError
from shaped.backends.guards import Guards
from shaped.optim import AdamW
from tests.models import MLP, batch, mlp, mlp_loss


def square() -> Tensor:
    return torch.arange(16.0).reshape(4, 4).requires_grad_()


def put(p: Tensor, data: Tensor) -> None:
    p.data = data


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "other memory": lambda p: put(p, p.data.clone()),
    "other strides": lambda p: put(p, p.data.t()),
    "another shape": lambda p: put(p, p.data.view(2, 8)),
    "another dtype": lambda p: put(p, p.data.view(torch.int32).view(torch.float32).double()),
    "further on": lambda p: put(p, torch.cat([p.data, p.data])[4:]),
    "frozen": lambda p: p.requires_grad_(False),
    "another class": lambda p: setattr(p, "__class__", nn.Buffer),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("grad", [True, False])
def test_whatever_changes_in_one_of_many_tensors_is_seen(change: Callable[[Tensor], object], grad: bool) -> None:
    tensors = [square() for _ in range(20)]
    with torch.set_grad_enabled(grad):
        guards = Guards(tensors)
    assert guards.known
    assert guards.holds(tensors)
    before = tensors[13].data  # which keeps its memory
    change(tensors[13])

    assert not guards.holds(tensors)
    with torch.no_grad():
        assert not guards.holds(tensors)
    assert before.numel() == 16


def test_what_is_no_tensor_or_no_such_number_of_them_is_not_alike() -> None:
    guards = Guards([square()])

    given: list[list[Any]] = [[3.0], [None], [], [square(), square()]]

    assert not any(map(guards.alike, given))
    assert guards.alike([square()])
    assert not guards.holds([square()])
    assert not Guards([torch.eye(3).to_sparse()]).known


BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "strides": lambda x: x.t().contiguous().t(),
    "a gradient": lambda x: x.clone().requires_grad_(),
    "a sign that is yet to come": lambda x: torch._neg_view(x),
    "a part of a larger one": lambda x: torch.cat([x, x])[: len(x)],
    "a column apart": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "another size": lambda x: x[:4],
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("change", BATCHES.values(), ids=BATCHES)
def test_a_batch_that_is_nearly_like_the_last_is_taken_as_eagerly(change: Callable[[Tensor], Tensor]) -> None:
    ends = []
    for backend in ("eager", "compiled"):
        params, (x, y) = mlp(), batch()
        trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.1), backend=backend)
        losses = [trainer.train_step(x, y) for _ in range(2)]
        other = change(x)
        losses += [trainer.train_step(a, y[: len(a)]) for a in (other, x, other)]
        ends.append([*losses, *params])

    torch.testing.assert_close(ends[0], ends[1])


def _loaded(trainer: ScalarTrainer, p: MLP) -> None:
    assert trainer.optimizer is not None
    state = trainer.optimizer.state_dict()
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"] * 3
    trainer.optimizer.load_state_dict(state)


BETWEEN: dict[str, Callable[[Any, Any], object]] = {
    "other memory": lambda t, p: put(p.w1, p.w1.data * 2),
    "other strides": lambda t, p: put(p.w1, (p.w1.data * 2).t().contiguous().t()),
    "values": lambda t, p: p.w1.data.mul_(2),
    "a gradient": lambda t, p: setattr(p.w1, "grad", torch.ones_like(p.w1)),
    "a learning rate": lambda t, p: t.optimizer.param_groups[0].update(lr=0.5),
    "a switch": lambda t, p: t.optimizer.param_groups[0].update(maximize=True),
    "another switch": lambda t, p: t.optimizer.param_groups[0].update(amsgrad=True),
    "a moment": lambda t, p: t.optimizer.state[p.w1].update(exp_avg=torch.ones_like(p.w1).detach()),
    "a count": lambda t, p: t.optimizer.state[p.w1].update(step=torch.tensor(5.0)),
    "a state that is loaded": _loaded,
    "inference": lambda t, p: None,
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", BETWEEN)
def test_what_changes_between_two_steps_is_followed_as_eagerly(name: str) -> None:
    ends = []
    for backend in ("eager", "compiled"):
        params, pair = mlp(), batch()
        trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.1), backend=backend)
        losses = [trainer.train_step(*pair) for _ in range(3)]
        kept = params.w1.data
        if name == "another switch" and trainer.optimizer is not None:
            for p in params:
                trainer.optimizer.state[p]["max_exp_avg_sq"] = torch.zeros_like(p).detach()
        BETWEEN[name](trainer, params)
        with torch.inference_mode(name == "inference" and backend == "compiled"):
            losses += [trainer.train_step(*pair) for _ in range(2)]
        losses += [trainer.train_step(*pair) for _ in range(2)]
        ends.append([*losses, *params])
        assert kept.shape == params.w1.shape

    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_mask_or_a_shape_that_changes_between_two_steps_is_refused(backend: str) -> None:
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.1), backend=backend)  # type: ignore[arg-type]
    for _ in range(3):
        trainer.train_step(*batch())
    params.b1.requires_grad_(False)
    with pytest.raises(GradientError, match="requires_grad of `b1` was changed"):
        trainer.train_step(*batch())
    params.b1.requires_grad_(True)
    trainer.train_step(*batch())
    put(params.w1, params.w1.data.view(8, 6))  # at the same address, and contiguous

    with pytest.raises(ShapeError, match=r"w1: float32 \(6, 8\) on cpu when it was proved"):
        trainer.train_step(*batch())
    assert trainer.steps == 4


@pytest.mark.usefixtures("interpreted")
def test_a_batch_that_lies_in_a_parameter_is_copied_before_the_parameter_moves() -> None:
    ends = []
    for backend in ("eager", "compiled"):
        params, (x, y) = mlp(), batch(8)
        trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.1), backend=backend)
        losses = [trainer.train_step(x, y) for _ in range(3)]
        put(params.w1, x.t()[:, :8].contiguous())
        losses += [trainer.train_step(params.w1.data.view(8, 6), y) for _ in range(2)]
        ends.append([*losses, *params])

    torch.testing.assert_close(ends[0], ends[1])
