"""Trainers that are copied, pickled, or taken into another process."""

import copy
import os
import pickle
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ScalarTrainer
from shaped.optim import AdamW
from tests.models import batch, mlp, mlp_loss

COPIES = [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaped.backends.inductor.has_cpp_compiler", lambda: False)
    monkeypatch.setattr("shaped.backends.inductor._warned", True)


def same(a: ScalarTrainer, b: ScalarTrainer) -> bool:
    return said(a.state_dict()) == said(b.state_dict())


def said(value: Any) -> Any:
    """A state without the order of its mappings."""
    if isinstance(value, dict):
        return {str(k): said(v) for k, v in value.items()}
    return list(map(said, value)) if isinstance(value, list) else str(value)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("backend", ["compiled", *(pytest.param(b, marks=pytest.mark.slow) for b in ("eager", "auto"))])
def test_a_copy_of_a_trainer_goes_on_as_the_original_does_and_shares_nothing(copied, backend):
    params = mlp()
    options: dict[str, Any] = {"max_norm": 1.0, "accumulate": 2, "nonfinite": "skip", "sizes": "static"}
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, optimizer=AdamW(params, lr=0.1), **options)
    for seed in range(3):
        trainer.train_step(*batch(seed=seed))
    twin = copied(trainer)

    assert same(trainer, twin)
    assert len(twin.executors) == 0
    for each in (trainer, twin):
        for seed in range(3):
            each.train_step(*batch(seed=seed))
    assert same(trainer, twin)
    twin.train_step(*batch())
    assert not same(trainer, twin)


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
def test_a_copy_knows_which_optimizer_took_the_last_step(copied):
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.1))
    trainer.step(*batch(), lr=0.1)
    twin = copied(trainer)

    assert twin._shared.last_optimizer is twin._shared.paths["sgd"]


def test_a_copy_trains_a_module_of_its_own():
    module = nn.Linear(6, 3)
    trainer = ScalarTrainer(over_module, module, backend="compiled")
    twin = copy.deepcopy(trainer)
    before = module.weight.clone()
    twin.adamw_step(*batch(), lr=0.1)
    mine = twin.modules[0]
    assert isinstance(mine, nn.Linear)

    assert torch.equal(module.weight, before)
    assert not torch.equal(mine.weight, before)


def over_module(model: nn.Linear, x: Float[Tensor, "batch 6"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return nn.functional.cross_entropy(model(x), y)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_goes_on_with_the_executors_of_its_parent():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    trainer.adamw_step(*batch(), lr=0.1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pytest must not go on in the child, whatever happens
        try:
            torch.set_num_threads(1)  # the threads of a pool do not come along
            value = trainer.adamw_step(*batch(seed=1), lr=0.1)
            os.write(writer, f"{value.item()!r} {len(trainer.executors)}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    told = os.read(reader, 100).decode().split()
    os.close(reader)
    os.waitpid(child, 0)

    assert told == [repr(trainer.adamw_step(*batch(seed=1), lr=0.1).item()), "1"]
