"""Gradient strategies against autograd in float64."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shaped import FullBackpropagation, GradientError, OneStep, ParamList, ProofError, ScalarTrainer, carry
from shaped.strategies import Loss, gradients
from tests.models import MLP, batch, mlp, mlp_loss

BACKENDS = ("eager", "compiled")


class RNN(ParamList):
    wx: Float[Tensor, "features hidden"]
    wh: Float[Tensor, "hidden hidden"]
    wo: Float[Tensor, "hidden one"]


def rnn_loss(p: RNN, x: Float[Tensor, "batch time features"], y: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
    h = x.new_zeros(x.shape[0], p.wh.shape[0])
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ p.wx + carry(h) @ p.wh)
    return F.mse_loss(h @ p.wo, y)


def rnn() -> RNN:
    return RNN.init(features=3, hidden=4, one=1, dtype=torch.float64)


def sequence() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, 3, generator=generator, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64)


def truncated(p: RNN, x: Tensor, y: Tensor) -> Sequence[Tensor]:
    """The oracle: all states first, then the last step alone from the state before it, as a constant."""
    with torch.no_grad():
        h = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1] - 1):
            h = torch.tanh(x[:, t] @ p.wx + h @ p.wh)
    last = torch.tanh(x[:, -1] @ p.wx + h @ p.wh)
    return torch.autograd.grad(F.mse_loss(last @ p.wo, y), list(p))


def recurrent(backend: Any = "eager", strategy: Any = None, loss: Any = rnn_loss, params: Any = None) -> ScalarTrainer:
    return ScalarTrainer(loss, params or rnn(), backend=backend, strategy=strategy or OneStep(), static={"time": 4})


@pytest.mark.smoke
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_gives_the_gradients_of_the_last_step_alone(backend: Any) -> None:
    trainer = recurrent(backend)
    loss, found = trainer.loss_and_backward(*sequence())

    assert isinstance(found, RNN)
    assert loss == pytest.approx(rnn_loss(rnn(), *sequence()).item())
    for mine, exact in zip(found, truncated(rnn(), *sequence()), strict=True):
        torch.testing.assert_close(mine, exact)


def test_the_proof_names_the_strategy() -> None:
    assert "gradients : RNN by OneStep" in str(recurrent().proof)
    assert "gradients : RNN\n" in str(recurrent(strategy=FullBackpropagation()).proof)


def test_what_a_checkpoint_runs_again_is_cut_like_the_first_time() -> None:
    def step(x: Tensor, h: Tensor, p: RNN) -> Tensor:
        return torch.tanh(x @ p.wx + carry(h) @ p.wh)

    def loss(p: RNN, x: Float[Tensor, "batch time features"], y: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
        h = x.new_zeros(x.shape[0], p.wh.shape[0])
        for t in range(x.shape[1]):
            h = checkpoint(step, x[:, t], h, p, use_reentrant=False)
        return F.mse_loss(h @ p.wo, y)

    params = rnn()
    _, found = recurrent(loss=loss, params=params).loss_and_backward(*sequence())
    torch.testing.assert_close(list(found), list(truncated(params, *sequence())))


def test_full_backpropagation_ignores_the_marks() -> None:
    params = rnn()
    found = recurrent(strategy=FullBackpropagation(), params=params).backward(*sequence())
    exact = torch.autograd.grad(rnn_loss(params, *sequence()), list(params))

    torch.testing.assert_close(list(found), list(exact))


class CellNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 1)

    def forward(self, x: Float[Tensor, "batch time 3"]) -> Float[Tensor, "batch 1"]:
        state = x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], carry(state))
        prediction: Tensor = self.head(state[0])
        return prediction


def prediction_loss(prediction: Float[Tensor, "batch 1"], y: Float[Tensor, "batch 1"]) -> Float[Tensor, ""]:
    return F.mse_loss(prediction, y)


def test_one_step_cuts_a_module_that_loops_over_a_cell() -> None:
    torch.manual_seed(0)
    net = CellNet().double()
    x, y = sequence()
    one = recurrent(loss=prediction_loss, params=net).backward(x, y)
    with torch.no_grad():
        state = x.new_zeros(5, 4), x.new_zeros(5, 4)
        for t in range(3):
            state = net.cell(x[:, t], state)
    exact = torch.autograd.grad(F.mse_loss(net.head(net.cell(x[:, 3], state)[0]), y), list(net.parameters()))

    torch.testing.assert_close(list(one), list(exact))


class LayerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 1, batch_first=True)

    def forward(self, x: Float[Tensor, "batch time 3"]) -> Float[Tensor, "batch 1"]:
        last: Tensor = self.rnn(x)[0][:, -1]
        return last


def test_one_step_refuses_a_recurrent_layer_and_says_what_to_use() -> None:
    with pytest.raises(GradientError, match=r"OneStep cannot cut `LSTM`.*LSTMCell or GRUCell in a loop and mark"):
        recurrent(loss=prediction_loss, params=LayerNet())


def test_one_step_refuses_a_loss_that_marks_nothing() -> None:
    with pytest.raises(GradientError, match=r"OneStep found no carried state to cut.*`h = cell"):
        ScalarTrainer(mlp_loss, mlp(), strategy=OneStep())


def test_a_state_marked_where_a_step_leaves_it_is_a_missing_gradient_before_step_one() -> None:
    def late(p: RNN, x: Float[Tensor, "batch time features"], y: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
        h = x.new_zeros(x.shape[0], p.wh.shape[0])
        for t in range(x.shape[1]):
            h = carry(torch.tanh(x[:, t] @ p.wx + h @ p.wh))
        return F.mse_loss(h @ p.wo, y)

    with pytest.raises(GradientError, match="`late` does not depend on `wx` and `wh`"):
        recurrent(loss=late)


# -- custom ones ---------------------------------------------------------------------------------------------------


def sharpness_aware(loss: Loss, params: Any, *inputs: Tensor) -> tuple[Tensor, ParamList]:
    """Two calls of the loss; Foret et al. 2021."""
    value = loss(params, *inputs)
    away = gradients(value, params)
    there = [p + 0.05 * g / (g.norm() + 1e-12) for p, g in zip(params, away, strict=True)]
    return value, gradients(loss(there, *inputs), params)


def with_penalty(loss: Loss, params: Any, *inputs: Tensor) -> tuple[Tensor, ParamList]:
    """An auxiliary loss: the reported value has it, `forward` has not."""
    value = loss(params, *inputs) + 0.1 * torch.stack([p.square().sum() for p in params]).sum()
    return value, gradients(value, params)


def clipped(loss: Loss, params: Any, *inputs: Tensor) -> tuple[Tensor, ParamList]:
    value = loss(params, *inputs)
    found = gradients(value, params)
    return value, found.like([g.clamp(-0.01, 0.01) for g in found])


def exact(strategy: Any) -> tuple[Tensor, Any]:
    params = mlp(dtype=torch.float64)
    value, found = strategy(mlp_loss_of(params), params, *batch(dtype=torch.float64))
    return value, found


def mlp_loss_of(like: MLP) -> Any:
    """The loss over a list of tensors, as a strategy gets it."""
    return lambda values, x, y: mlp_loss(like._layout.build(list(values)), x, y)


@pytest.mark.parametrize("strategy", [with_penalty, pytest.param(clipped, marks=pytest.mark.slow), sharpness_aware])
def test_a_custom_strategy_gives_what_it_computes_on_plain_autograd(strategy: Any) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(dtype=torch.float64), strategy=strategy)
    value, found = trainer.loss_and_backward(*batch(dtype=torch.float64))
    wanted_value, wanted = exact(strategy)

    torch.testing.assert_close(value, wanted_value.detach())
    torch.testing.assert_close(list(found), list(wanted))
    assert isinstance(found, MLP)
    assert f"gradients : MLP by {strategy.__name__}" in str(trainer.proof)


@pytest.mark.usefixtures("interpreted")
def test_forward_is_the_loss_without_what_a_strategy_adds_on_both_backends() -> None:
    inputs = batch(dtype=torch.float64)
    eager = ScalarTrainer(mlp_loss, mlp(dtype=torch.float64), strategy=with_penalty)
    compiled = eager.with_backend("compiled")
    plain = mlp_loss(mlp(dtype=torch.float64), *inputs).item()

    assert eager.forward(*inputs).item() == pytest.approx(plain)
    assert compiled.forward(*inputs).item() == pytest.approx(plain)
    assert eager.compare_backends(*inputs).largest < 1e-12
    assert compiled.adamw_step(*inputs, lr=0.1) > plain + 0.1


@pytest.mark.slow
def test_a_compiled_step_trains_with_the_strategys_gradients() -> None:
    inputs = batch(dtype=torch.float64)
    trainer = ScalarTrainer(mlp_loss, mlp(dtype=torch.float64), strategy=clipped, backend="compiled")
    before = [p.detach().clone() for p in trainer.params]
    trainer.step(*inputs, lr=1.0)

    for old, new, gradient in zip(before, trainer.params, exact(clipped)[1], strict=True):
        torch.testing.assert_close(new.detach(), old - gradient)


def test_a_frozen_parameter_gets_zeros_and_stays() -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(frozen=("w1",)), strategy=with_penalty)
    found = trainer.backward(*batch())
    before = trainer.params["w1"].clone()
    trainer.step(*batch(), lr=0.1)

    assert not found["w1"].any()
    assert torch.equal(trainer.params["w1"], before)


def test_a_parameter_that_only_the_auxiliary_loss_reaches_has_its_gradient() -> None:
    class Two(ParamList):
        w: Float[Tensor, "features one"]
        side: Float[Tensor, "features one"]

    def main(p: Two, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
        return F.mse_loss(x @ p.w, y)

    def both(loss: Loss, params: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        value = loss(params, x, y)
        found, other = gradients(value, params), gradients(F.mse_loss(x @ params.side, y), params)
        return value, found.like([a + b for a, b in zip(found, other, strict=True)])

    params = Two.init(features=3, one=1)
    with pytest.raises(GradientError, match="does not depend on `side`"):
        ScalarTrainer(main, params)
    found = ScalarTrainer(main, params, strategy=both).backward(torch.ones(2, 3), torch.ones(2, 1))

    assert found["side"].any()


def test_a_missing_gradient_is_found_through_arithmetic_on_its_zeros() -> None:
    def blind(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
        return (x @ p.w1 + p.b1).mean() + p.w2.mean()

    with pytest.raises(GradientError, match="`blind` does not depend on `b2`"):
        ScalarTrainer(blind, mlp(), strategy=clipped)


# -- refused -------------------------------------------------------------------------------------------------------


def gives(answer: Any) -> Any:
    def custom(loss: Loss, params: Any, *inputs: Tensor) -> Any:
        value = loss(params, *inputs)
        return answer(value, list(gradients(value, params)))

    return custom


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda value, found: value, "`custom` gives a Tensor; it returns the loss and the gradients"),
        (lambda value, found: (value, found[:2]), "`custom` gives 2 gradients, and MLP has 4 parameters"),
        (lambda value, found: (value, found[0]), "`custom` gives a Tensor as gradients; they are of MLP"),
        (lambda value, found: (value, [1.0, *found[1:]]), "`custom` gives no tensor as the gradient of `w1`"),
        (lambda value, found: (value, [None, *found[1:]]), "does not depend on `w1`"),
        (
            lambda value, found: (value, [found[0].T, *found[1:]]),
            r"w1: the parameter is \[pixels, hidden\], its gradient \[hidden, pixels\]",
        ),
    ],
)
def test_a_strategy_whose_gradients_do_not_fit_is_refused_before_step_one(answer: Any, message: str) -> None:
    with pytest.raises(GradientError, match=message):
        ScalarTrainer(mlp_loss, mlp(), strategy=gives(answer))


def test_a_shape_fault_within_a_strategy_is_shown_at_its_line() -> None:
    def crossed(loss: Loss, params: Any, *inputs: Tensor) -> tuple[Tensor, Any]:
        value = loss(params, *inputs)
        found = gradients(value, params)
        return value, found.like([found.w1 @ found.w1, *found[1:]])

    with pytest.raises(ProofError) as caught:
        ScalarTrainer(mlp_loss, mlp(), strategy=crossed)

    assert "found.w1 @ found.w1" in str(caught.value)
    assert "goal     hidden = pixels" in str(caught.value)


def test_a_vector_as_the_reported_loss_is_refused() -> None:
    with pytest.raises(ProofError, match="does not return what it declares"):
        ScalarTrainer(mlp_loss, mlp(), strategy=gives(lambda value, found: (found[1], found)))


def test_a_list_like_the_parameters_needs_as_many_tensors_within_a_trace() -> None:
    def short(loss: Loss, params: Any, *inputs: Tensor) -> tuple[Tensor, Any]:
        value = loss(params, *inputs)
        return value, params.like(gradients(value, params)[:2])

    with pytest.raises(ProofError, match="2 tensors for the 4 entries of MLP"):
        ScalarTrainer(mlp_loss, mlp(), strategy=short)


class Pair(ParamList):
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]


def product(p: Pair, x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return (p.a * p.b * x).sum()


def swapped(loss: Loss, params: Pair, *inputs: Tensor) -> tuple[Tensor, Pair]:
    return loss(params, *inputs), params.like([params.b.detach(), params.a.detach()])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_a_parameter_is_the_one_before_the_update(backend: Any) -> None:
    params = Pair(torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([4.0, 8.0], requires_grad=True))
    trainer = ScalarTrainer(product, params, backend=backend, strategy=swapped)
    found = trainer.backward(torch.ones(2))
    trainer.step(torch.ones(2), lr=0.5)

    assert [t.tolist() for t in (*found, *params)] == [[4, 8], [1, 2], [-1, -2], [3.5, 7]]
