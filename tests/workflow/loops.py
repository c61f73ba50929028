"""Loops for tests of the workflow: one proof for each slot, and every loop begins anew."""

from functools import cache
from typing import Any

from shaped import Loop, ScalarTrainer
from shaped.data import Batches
from shaped.optim import AdamW
from tests.models import batch, mlp, mlp_loss

X, Y = batch(120, seed=3)
TRAINING = Batches(X[:80], Y[:80], batch_size=20, seed=0)
VALIDATION = [(X[80:], Y[80:])]


@cache
def _proved(slot: int) -> tuple[ScalarTrainer, dict[str, Any]]:
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.01))
    return trainer, trainer.state_dict()


def fresh_trainer(lr: float = 0.01, seed: int = 0, slot: int = 0) -> ScalarTrainer:
    """A trainer as if it were new; it shares its parameters with those of its slot that were made before."""
    trainer, beginning = _proved(slot)
    trainer.load_state_dict(beginning)
    trainer.params.set_values(mlp(seed=seed))
    assert trainer.optimizer is not None
    trainer.optimizer.param_groups[0]["lr"] = lr
    return trainer


def fresh_loop(lr: float = 0.01, seed: int = 0, slot: int = 0, **options: Any) -> Loop:
    return Loop(fresh_trainer(lr, seed, slot), **options)


def values(loop: Loop) -> list[list[float]]:
    return [p.detach().flatten().tolist() for p in loop.trainer.params]
