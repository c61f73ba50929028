"""A subclass with a rule of its own takes the same steps on both backends, and its switches are seen."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.optim import SGD, AdamW
from shaped.optim.updates import GroupUpdate

both = pytest.mark.parametrize("backend", ["eager", "compiled"])


class Line(ParamList):
    w: Float[Tensor, " n"]
    b: Float[Tensor, ""]


def loss(p: Line, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    return (x @ p.w + p.b).square().mean()


class Switched(AdamW):
    """AdamW with a switch in its groups, a factor there, and a switch of the object."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["hold"], group["factor"] = False, 1.0
        self.sign = 1

    def reference(
        self,
        update: GroupUpdate,
        p: Tensor,
        g: Tensor,
        slots: tuple[Tensor, ...],
        scalars: Sequence[Tensor | float],
        step: Tensor | float,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        new, state = super().reference(update, p, g, slots, scalars, step)
        moved = p + self.sign * update.group["factor"] * (new - p)
        return (p if update.group["hold"] else moved), state


class Normed(SGD):
    """A step of length lr for each parameter, which no rule over a flat buffer could take."""

    def reference(
        self,
        update: GroupUpdate,
        p: Tensor,
        g: Tensor,
        slots: tuple[Tensor, ...],
        scalars: Sequence[Tensor | float],
        step: Tensor | float,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return p - scalars[0] * g / g.norm(), slots


def start(kind: Any) -> tuple[Line, Any]:
    params = Line(torch.ones(3), torch.ones(()))
    return params, kind(params, lr=0.125)


X = torch.arange(12.0).reshape(4, 3) - 3


@pytest.mark.usefixtures("interpreted")
@both
def test_a_switch_of_a_rule_is_seen_at_the_next_step(backend):
    params, optimizer = start(Switched)
    trainer = ScalarTrainer(loss, params, optimizer=optimizer, backend=backend)

    def moved() -> float:
        before = params.b.item()
        trainer.train_step(X)
        return abs(params.b.item() - before)

    group = optimizer.param_groups[0]
    assert moved() > 0
    group["hold"] = True
    assert moved() == 0
    group["hold"] = False
    first = moved()
    group["factor"] = 0.0
    assert moved() == 0
    group["factor"] = 1.0
    optimizer.sign = -1
    before = params.b.item()
    trainer.train_step(X)
    assert params.b.item() > before  # uphill, after four steps down
    assert first > 0
    assert len(trainer.executors) == (4 if backend == "compiled" else 0)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("kind", [Switched, Normed])
def test_a_rule_that_says_its_reference_anew_takes_the_same_steps_on_both_backends(kind):
    runs = []
    for backend in ("eager", "compiled"):
        params, optimizer = start(kind)
        trainer = ScalarTrainer(loss, params, optimizer=optimizer, backend=backend)
        for _ in range(3):
            trainer.train_step(X)
        runs.append(params)

    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # three steps of some ten roundings of float32
    assert not torch.equal(runs[0].w, torch.ones(3))
