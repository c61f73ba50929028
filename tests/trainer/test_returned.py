"""Losses that return predictions or figures beside the scalar: in the proof, in the step, on both backends."""

from typing import NamedTuple, cast

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import Loop, OneStep, ParamList, ProofError, ScalarTrainer, SignatureError
from shaped.loop import TrainMetrics
from shaped.optim import SGD

pytestmark = pytest.mark.usefixtures("interpreted")


class Line(ParamList):
    w: Float[Tensor, "d k"]
    b: Float[Tensor, " k"]


class Out(NamedTuple):
    loss: Float[Tensor, ""]
    logits: Float[Tensor, "b k"]
    right: Int[Tensor, " b"]
    bias: Float[Tensor, " k"]


def loss(p: Line, x: Float[Tensor, "b d"], y: Int[Tensor, " b"]) -> Out:
    logits = x @ p.w + p.b
    return Out(nn.functional.cross_entropy(logits, y), logits, (logits.argmax(-1) == y).long(), p.b)


def line() -> Line:
    return Line.init(d=3, k=2, seed=0)


X, Y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1])


def same(returned: Out, expected: Out) -> None:
    assert isinstance(returned, Out)
    for mine, theirs in zip(returned, expected, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, theirs.detach())


def norm_of(plain: Line) -> float:
    gradients = torch.autograd.grad(loss(plain, X, Y).loss, list(plain))
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def test_the_gradients_norm_is_to_be_had_where_the_trainer_clips():
    trainer, plain = ScalarTrainer(loss, line(), max_norm=0.1), line()
    before = trainer.grad_norm
    trainer.step(X, Y, lr=0.1)

    assert before is None
    assert float(cast(Tensor, trainer.grad_norm)) == pytest.approx(norm_of(plain))


def test_what_a_loss_returns_beside_itself_is_that_of_the_step_before_its_update():
    trainer, plain = ScalarTrainer(loss, line()), line()
    value = trainer.adamw_step(X, Y, lr=0.1)

    same(trainer.returned, loss(plain, X, Y))
    assert trainer.returned.loss == value
    trainer.forward(X[:2], Y[:2])
    same(trainer.returned, loss(cast(Line, trainer.params), X[:2], Y[:2]))


def test_the_compiled_step_returns_it_too_and_is_held_against_eager():
    trainer, plain = ScalarTrainer(loss, line(), backend="compiled", accumulate=2, max_norm=1.0), line()
    trainer.step(X, Y, lr=0.1)  # gathers
    same(trainer.returned, loss(plain, X, Y))
    trainer.step(X, Y, lr=0.1)  # updates

    same(trainer.returned, loss(plain, X, Y))
    assert all(executor.held for executor in trainer.executors)
    assert trainer.grad_norm == pytest.approx(norm_of(plain))
    assert trainer.steps == 1


def test_a_mistake_in_what_it_returns_is_an_error_of_the_proof():
    def wrong(p: Line, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, ""], Float[Tensor, "b d"]]:
        return (x @ p.w + p.b).mean(), x @ p.w

    with pytest.raises(ProofError, match=r"\[b, k\]"):
        ScalarTrainer(wrong, line())


def test_the_loss_comes_first_and_a_strategy_takes_it_alone():
    def turned(p: Line, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, ""]]:
        return x @ p.w, (x @ p.w + p.b).mean()

    with pytest.raises(SignatureError, match="or that before what else it returns"):
        ScalarTrainer(turned, line())
    with pytest.raises(SignatureError, match="strategy `OneStep` takes a loss alone"):
        ScalarTrainer(loss, line(), strategy=OneStep())


def test_a_loss_that_returns_the_scalar_alone_has_nothing_more():
    def alone(p: Line, x: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        return (x @ p.w + p.b).mean()

    trainer = ScalarTrainer(alone, line())
    trainer.forward(X)

    with pytest.raises(ValueError, match="`alone` returns the loss alone"):
        _ = trainer.returned


def test_metrics_of_training_are_means_over_samples_without_a_second_pass():
    params = line()
    loop = Loop(ScalarTrainer(loss, params, optimizer=SGD(params, lr=0.0)))
    loop.attach(TrainMetrics({"accuracy": lambda out, x, y: out.right.double().mean()}))
    loop.run_epochs([(X[:2], Y[:2]), (X[2:], Y[2:])], 2)

    assert loop.latest["train/accuracy"] == pytest.approx(loss(params, X, Y).right.double().mean().item())


def test_metrics_of_training_go_on_where_a_run_was_saved():
    def make() -> Loop:
        params = line()
        loop = Loop(ScalarTrainer(loss, params, optimizer=SGD(params, lr=0.1)))
        loop.attach(TrainMetrics({"accuracy": lambda out, x, y: out.right.double().mean()}))
        return loop

    data = [(X[:2], Y[:2]), (X[2:], Y[2:])]
    whole, first, second = make(), make(), make()
    whole.run_epochs(data, 1)
    first.run_steps(data, 1)
    second.load_state_dict(first.state_dict())
    second.run_epochs(data, 1)

    assert second.latest["train/accuracy"] == whole.latest["train/accuracy"]
