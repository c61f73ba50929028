"""Schedule-free AdamW: the parameters are the average, and gradients are taken ahead of them by whoever steps."""

from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.optim import AdamW, ScheduleFree, averaged

GIVEN: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}


def slope(p: Tensor, step: int) -> Tensor:
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return p.detach().double() * 0.5 + noise.to(p.dtype)


def papers_line(steps: int, warmup: int) -> tuple[Tensor, Tensor]:
    """x and z after some steps, by the lines of the paper and the weights of its authors' code."""
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    z, v, total = x.clone(), torch.zeros_like(x), 0.0
    for t in range(1, steps + 1):
        y = 0.1 * z + 0.9 * x
        g, lr = slope(y, t), 0.05 * min(1.0, t / warmup if warmup else 1.0)
        v = 0.95 * v + 0.05 * g * g
        z = z - lr * (g / ((v / (1 - 0.95**t)).sqrt() + 1e-8) + 0.1 * y)
        total += lr**2
        x = x + lr**2 / total * (z - x)
    return x, z


@pytest.mark.parametrize("warmup", [0, 4])
def test_ten_steps_are_those_of_the_paper(warmup: int) -> None:
    p = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
    optimizer = ScheduleFree([p], warmup_steps=warmup, **GIVEN)
    for t in range(1, 11):
        with optimizer.ahead():
            g = slope(p, t)
        optimizer.update([g])
    x, z = papers_line(10, warmup)

    torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.detach() + optimizer.state[p]["ahead"], z, rtol=1e-12, atol=1e-12)


def test_it_moves_as_its_peer_does() -> None:
    peer = pytest.importorskip("schedulefree")
    p = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
    q = p.detach().clone().requires_grad_()
    ours, theirs = ScheduleFree([p], warmup_steps=4, **GIVEN), peer.AdamWScheduleFree([q], warmup_steps=4, **GIVEN)
    theirs.train()
    for t in range(1, 11):
        q.grad = slope(q, t)
        theirs.step()
        with ours.ahead():
            p.grad = slope(p, t)
        ours.step()
    theirs.eval()

    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


class Line(ParamList):
    w: Float[Tensor, " n"]


def loss(p: Line, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    return (x @ p.w - 1.0).square().mean()


def batch(step: int) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def by_hand(steps: int) -> Tensor:
    """A loop over autograd, with the gradients taken where the closure finds the parameters."""
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = ScheduleFree([w], **GIVEN)

    def closure(x: Tensor) -> Any:
        w.grad = None
        value = (x @ w - 1.0).square().mean()
        value.backward()
        return value

    for step in range(steps):
        optimizer.step(partial(closure, batch(step)))
    return w.detach()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_trainer_takes_gradients_ahead_and_evaluates_and_saves_the_average(backend: Any) -> None:
    params = Line(w=torch.ones(3))
    optimizer = ScheduleFree(params, **GIVEN)
    trainer = ScalarTrainer(loss, params, optimizer=optimizer, backend=backend)
    for step in range(4):
        trainer.train_step(batch(step).float())
    expected = by_hand(4).float()

    torch.testing.assert_close(params.w.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trainer.state_dict()["params"]["w"], expected, rtol=1e-5, atol=1e-6)
    at_average = (batch(9).float() @ expected - 1.0).square().mean()
    torch.testing.assert_close(trainer.forward(batch(9).float()), at_average, rtol=1e-5, atol=1e-6)
    if backend == "compiled":
        assert trainer.compare_backends(batch(5).float()).agree


def test_a_run_that_is_saved_in_between_goes_on_bit_for_bit() -> None:
    first, second = (Line(w=torch.ones(3)) for _ in range(2))
    one = ScalarTrainer(loss, first, optimizer=ScheduleFree(first, warmup_steps=3, **GIVEN))
    other = ScalarTrainer(loss, second, optimizer=ScheduleFree(second, warmup_steps=9, lr=1.0))
    for step in range(2):
        one.train_step(batch(step).float())
    other.load_state_dict(one.state_dict())
    for step in range(2, 5):
        one.train_step(batch(step).float())
        other.train_step(batch(step).float())

    assert torch.equal(first.w, second.w)


def test_batches_that_are_gathered_are_taken_at_one_point_on_both_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaped.backends.inductor.has_cpp_compiler", lambda: False)  # the same graphs, no compile
    monkeypatch.setattr("shaped.backends.inductor._warned", True)
    ends = []
    kinds: list[tuple[Any, int]] = [("eager", 1), ("eager", 2), ("compiled", 2)]
    for backend, accumulate in kinds:
        params = Line(w=torch.ones(3))
        optimizer = ScheduleFree(params, **GIVEN)
        trainer = ScalarTrainer(loss, params, optimizer=optimizer, backend=backend, accumulate=accumulate)
        if backend == "compiled":
            trainer.precompile(batch=len(batch(0)) // 2)
        for step in range(3):
            x = batch(step).float()
            for part in (x,) if accumulate == 1 else x.chunk(2):
                trainer.train_step(part)
        ends.append(params.w.detach())

    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends[2], ends[1], rtol=1e-5, atol=1e-6)
    assert [executor.mode for executor in trainer.executors] == ["ScheduleFree", "gather"]


def test_what_is_fused_around_it_is_of_the_average() -> None:
    params = Line(w=torch.ones(3))
    optimizer = ScheduleFree(params, ema_decay=0.0, max_norm=0.5, skip_nonfinite=True, **GIVEN)
    trainer = ScalarTrainer(loss, params, optimizer=optimizer)
    trainer.train_step(batch(0).float())
    before = params.w.detach().clone()
    optimizer.update([torch.full((3,), float("nan"))])

    assert torch.equal(params.w.detach(), before)
    with averaged(optimizer):
        assert torch.equal(params.w.detach(), before)


def test_other_rules_take_gradients_where_the_parameters_are() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = AdamW([p])
    with optimizer.ahead():
        assert torch.equal(p.detach(), torch.ones(3))
