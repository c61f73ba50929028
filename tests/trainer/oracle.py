"""What the trainer's tests share: the oracle, every update rule, and bitwise comparison."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaped import (
    ParamList,
    ScalarTrainer,
)
from tests.models import MLP, mlp_loss

BACKENDS = ["eager", "compiled"]


DTYPES = [torch.float32, torch.float64]


# Ten steps, each a few roundings of values of order 1.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


both = pytest.mark.parametrize("backend", BACKENDS)


def bits(params: ParamList) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(before: list[Tensor], params: ParamList) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


class Plain:
    """The oracle: the same loss, autograd and a torch optimizer."""

    def __init__(self, params: MLP, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.params = params.values()
        self.optimizer = optimizer(list(self.params))

    def step(self, x: Tensor, y: Tensor, max_norm: float | None = None) -> Tensor:
        self.optimizer.zero_grad()
        loss = mlp_loss(self.params, x, y)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(list(self.params), max_norm)
        self.optimizer.step()
        return loss.detach()


RULES: dict[str, tuple[Callable[[ScalarTrainer, Tensor, Tensor], Tensor], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (lambda t, x, y: t.step(x, y, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "adam": (
        lambda t, x, y: t.adam_step(x, y, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    ),
    "adamw": (
        lambda t, x, y: t.adamw_step(x, y, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}
