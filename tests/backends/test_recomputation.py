"""What the backward pass runs again: checkpoints, hooks and functions of the user's find what the forward pass had."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shaped import ParamList, ScalarTrainer
from shaped.optim import SGD

pytestmark = pytest.mark.usefixtures("interpreted")
Scalar = Float[Tensor, ""]


class Checkpointed(nn.Module):
    """Weights, and a matrix product, that are read within a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

    def part(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.part, x, use_reentrant=False))  # type: ignore[no-any-return]


class Plain(Checkpointed):
    """The same without one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.part(x))  # type: ignore[no-any-return]


class Normed(nn.Module):
    """Running statistics within a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.norm, x, use_reentrant=False))  # type: ignore[no-any-return]


class Hooked(nn.Module):
    """A gradient hook that reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.scale
        if h.requires_grad:
            h.register_hook(lambda g: g * self.scale.detach())
        return self.out(h)  # type: ignore[no-any-return]


class BackwardHooked(nn.Module):
    """A hook on a layer's gradients, which reads a parameter of another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 1)
        self.inner.register_full_backward_hook(self.scaled)

    def scaled(self, module: nn.Module, given: Any, _: Any) -> tuple[Tensor]:
        return (given[0] * self.scale.mean().detach(),)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x * self.scale))  # type: ignore[no-any-return]


class Function(nn.Module):
    """An autograd function that closes over a parameter, as an object and as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(4)), nn.Linear(4, 1)
        module, kept = self, self.scale

        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * module.scale

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Tensor:
                return gradients[0] * kept

        self.function = Scale

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function.apply(x * self.scale))  # type: ignore[no-any-return]


def loss(net: nn.Module, x: Float[Tensor, "batch 4"], y: Float[Tensor, "batch 1"]) -> Scalar:
    result: Tensor = (net(x) - y).square().mean()
    return result


def trained(make: Callable[[], nn.Module], steps: Callable[[nn.Module, Tensor, Tensor], Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net, x = make(), torch.randn(8, 4)
    for _ in range(4):
        steps(net, x, x[:, :1].sin())
    return net.state_dict()


def plainly(net: nn.Module, x: Tensor, y: Tensor) -> None:
    torch.autograd.backward(loss(net, x, y))
    with torch.no_grad():
        for p in net.parameters():
            assert p.grad is not None
            p.sub_(p.grad, alpha=0.2)
            p.grad = None


@pytest.mark.parametrize("make", [Checkpointed, Normed, Hooked, BackwardHooked, Function])
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_steps_are_those_of_plain_torch(make: Callable[[], nn.Module], backend: Any) -> None:
    trainers: dict[int, ScalarTrainer] = {}

    def step(net: nn.Module, x: Tensor, y: Tensor) -> None:
        trainer = trainers.setdefault(id(net), ScalarTrainer(loss, net, backend=backend))
        trainer.step(x, y, lr=0.2)

    expected, found = trained(make, plainly), trained(make, step)

    # Four steps of sums over 8 samples in float32.
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_checkpointing_changes_no_number() -> None:
    """Compiled steps with checkpoints are bit for bit those without."""
    ends = []
    for make in (Checkpointed, Plain):
        torch.manual_seed(0)
        net, x = make(), torch.randn(8, 4)
        trainer = ScalarTrainer(loss, net, backend="compiled", optimizer=SGD(net.parameters(), lr=0.2))
        losses = [trainer.train_step(x, x[:, :1].sin()).item() for _ in range(4)]
        ends.append((losses, [p.detach().clone() for p in net.parameters()]))

    assert ends[0][0] == ends[1][0]
    assert all(map(torch.equal, ends[0][1], ends[1][1]))


class P(ParamList):
    w: Float[Tensor, " n"]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_parameters_that_a_loss_reads_as_a_global_have_their_gradients(backend: Any) -> None:
    params = P(w=torch.ones(3))

    def both(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return ((x * p.w) @ params.w).mean()

    _, gradients = ScalarTrainer(both, params, backend=backend).loss_and_backward(torch.ones(2, 3))

    assert gradients.w.tolist() == [2.0, 2.0, 2.0]
