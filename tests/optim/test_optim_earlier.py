"""State dicts that an earlier build wrote in mid-run, of every rule and option, load and go on as they went on."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.optim import SGD, Adam, AdamW
from tests.optim.optim_cases import SHAPES

SAVED: dict[str, Any] = torch.load(Path(__file__).parent / "fixtures" / "rules-1.pt", weights_only=True)
CLASSES: dict[str, Any] = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}
MADE: dict[str, Any] = {
    "paths": lambda p: None,
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adamw": lambda p: AdamW(p, lr=0.1, ema_decay=0.9, max_norm=0.1),
    "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
}
STEPS: dict[str, Any] = {"step": {}, "adam_step": {"betas": (0.8, 0.95)}, "adamw_step": {"weight_decay": 0.1}}


def gradients(step: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("name", SAVED["optimizers"])
def test_a_run_begun_by_an_earlier_build_goes_on_alike(name: str) -> None:
    saved = SAVED["optimizers"][name]
    a, b, c, d = (p.clone().requires_grad_() for p in saved["params"])
    groups = [{"params": [("a", a), ("b", b)]}, {"params": [("c", c), ("d", d)], "lr": 0.02}]
    optimizer = CLASSES[saved["class"]](groups, lr=0.01, **saved["given"])
    optimizer.load_state_dict(saved["state"])
    again = optimizer.state_dict()
    for step in range(3, 6):
        optimizer.update(gradients(step, a.dtype))

    assert [sorted(g) for g in again["param_groups"]] == [sorted(g) for g in saved["state"]["param_groups"]]
    assert {i: sorted(entry) for i, entry in again["state"].items()} == {
        i: sorted(entry) for i, entry in saved["state"]["state"].items()
    }
    for mine, theirs in zip((a, b, c, d), saved["after"], strict=True):
        # Another machine may fuse multiply and add: a bit of float32, and so rarely one of bfloat16 or of a code.
        near = {torch.float32: 3e-6, torch.bfloat16: 2**-7}[mine.dtype]
        torch.testing.assert_close(mine.detach(), theirs, rtol=near, atol=near)


class Line(ParamList):
    w: Float[Tensor, "n m"]
    b: Float[Tensor, " m"]


def loss(p: Line, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    return (x @ p.w + p.b).square().mean()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", SAVED["trainers"])
def test_a_trainer_begun_by_an_earlier_build_goes_on_alike(name: str) -> None:
    kind, backend = name.split("-")
    params = Line.init(n=3, m=2, seed=1)
    optimizer, accumulate = MADE[kind](params), 2 if kind == "sgd" else 1
    trainer = ScalarTrainer(
        loss, params, optimizer=optimizer, backend="eager", max_norm=1.0, accumulate=accumulate
    ).with_backend("compiled" if name == "paths-compiled" else "eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.load_state_dict(SAVED["trainers"][name]["state"])
    for step in range(3, 6):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        if optimizer is not None:
            trainer.train_step(x)
        else:
            for method, given in STEPS.items():
                getattr(trainer, method)(x, lr=0.05, **given)

    assert backend in ("eager", "compiled")
    for n, value in SAVED["trainers"][name]["after"].items():
        torch.testing.assert_close(params[n].detach(), value, rtol=2e-5, atol=2e-5)
