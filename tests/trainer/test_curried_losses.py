"""A loss that takes the entries of its parameter list one by one; and one that differentiates within itself."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import Loop, ParamList, ScalarTrainer, SignatureError, init

pytestmark = pytest.mark.usefixtures("interpreted")

Pair: Any = ParamList[Float[Tensor, "a b"], Float[Tensor, " b"]]  # type: ignore[misc, type-arg]


class Weights(ParamList):
    w: Float[Tensor, " d"] = init.ones()


def curried(w: Float[Tensor, "a b"], b: Float[Tensor, " b"], x: Float[Tensor, "n a"]) -> Float[Tensor, ""]:
    return (x @ w + b).square().mean()


def short(w: Float[Tensor, "a b"], x: Float[Tensor, "n a"]) -> Float[Tensor, ""]:
    return (x @ w).square().mean()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_list_without_a_class_is_taken_apart(backend: Any) -> None:
    params, x = Pair.init(a=3, b=4, seed=0), torch.ones(5, 3)
    w, b = (p.detach().clone().requires_grad_() for p in params)
    wanted = curried(w, b, x)
    gradients = torch.autograd.grad(wanted, (w, b))
    loss = ScalarTrainer(curried, params, backend=backend).step(x, lr=0.1)

    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(list(params), [w - 0.1 * gradients[0], b - 0.1 * gradients[1]], check_stride=False)


def test_a_loss_that_takes_other_entries_is_refused_in_words() -> None:
    with pytest.raises(SignatureError, match="its first arguments are the entries of it, one by one") as caught:
        ScalarTrainer(short, Pair.init(a=3, b=4, seed=0))

    assert '`x` is Float "n a", and `1` is Float "b"' in str(caught.value)


def penalty(p: Weights, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    x = x.detach().requires_grad_()
    y = (x * p.w).tanh().sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    return slope.square().sum() + y


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_loss_with_a_gradient_inside_has_a_forward_pass(backend: Any) -> None:
    params, x = Weights.init(d=3), torch.ones(2, 3)
    wanted = penalty(params, x).detach()
    loss = ScalarTrainer(penalty, params, backend=backend).forward(x)

    torch.testing.assert_close(loss, wanted)
    assert not loss.requires_grad


def residual(net: nn.Module, x: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return (slope - x.cos()).square().mean()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_loop_evaluates_a_loss_with_a_gradient_inside(backend: Any) -> None:
    x = torch.linspace(0, 1, 6).unsqueeze(1)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
    trainer = ScalarTrainer(residual, net, backend=backend)
    loop = Loop(trainer, lambda x: trainer.step(x, lr=0.1))
    before = loop.evaluate([x])["validation/loss"]
    wanted = residual(net, x).item()
    loop.run_epochs([x], 2)
    after = loop.evaluate([x])["validation/loss"]

    assert before == pytest.approx(wanted, rel=1e-5)
    assert after == pytest.approx(residual(net, x).item(), rel=1e-5)
    assert after != before


def test_a_strategy_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy is 5"):
        ScalarTrainer(penalty, Weights.init(d=3), strategy=5)  # type: ignore[arg-type]
