"""Small loops over six batches, and how two of them are compared."""

from typing import Any

import torch
from torch import Tensor

from shaped import ScalarTrainer
from shaped.loop import Loop
from shaped.optim import AdamW
from tests.models import batch, mlp, mlp_loss

LIST = [batch(seed=seed) for seed in range(6)]


def make(seed: int = 0, *, metrics: Any = None, specs: Any = None, **options: Any) -> Loop:
    params = mlp(seed=seed)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.01), **options)
    return Loop(trainer, metrics=metrics)


def params_of(loop: Loop) -> list[Tensor]:
    return [p.detach().clone() for p in loop.trainer.params]


def same(a: Loop, b: Loop) -> bool:
    return all(torch.equal(x, y) for x, y in zip(params_of(a), params_of(b), strict=True))
