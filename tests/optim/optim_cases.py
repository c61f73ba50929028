"""The optimizers and flags that every contract is held against, and how runs are driven and compared."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.optim import SGD, Adam, AdamW

CASES: list[tuple[Any, dict[str, Any]]] = [
    (SGD, {}),
    (SGD, {"weight_decay": 0.1, "maximize": True}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (Adam, {}),
    (Adam, {"weight_decay": 0.1, "maximize": True}),
    (Adam, {"amsgrad": True, "betas": (0.5, 0.9), "eps": 1e-3}),
    (Adam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    (AdamW, {}),
    (AdamW, {"weight_decay": 0.1, "maximize": True}),
    (AdamW, {"amsgrad": True}),
    (AdamW, {"lr": torch.tensor(0.01, dtype=torch.float64)}),
]
SHAPES = [(3, 4), (), (5,), (0,)]
each_case = pytest.mark.parametrize(("ours", "given"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))


def theirs_of(ours: Any) -> Any:
    return getattr(torch.optim, ours.__name__)


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in SHAPES]


def give_gradients(params: list[Tensor], seed: int, skip: tuple[int, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = None if i in skip else g


def advance(optimizer: Any, params: list[Tensor], steps: range, skip: tuple[int, ...] = ()) -> None:
    for step in steps:
        give_gradients(params, step, skip)
        optimizer.step()


def assert_alike(mine: list[Tensor], theirs: list[Tensor]) -> None:
    # Ten steps of rounding in another order; the updates are about lr = 1e-2 or smaller.
    tight = {torch.float64: 1e-12, torch.float32: 3e-6}[mine[0].dtype]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tight, atol=tight)
