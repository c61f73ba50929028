"""What a loss moves in containers from outside, or reads of how its inputs lie: refused, as no graph does it."""

from collections.abc import Callable
from heapq import heappop
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ExecutorError, ParamList, ScalarTrainer

pytestmark = pytest.mark.usefixtures("interpreted")
Scalar = Float[Tensor, ""]
X = torch.ones(2, 3)


class P(ParamList):
    w: Float[Tensor, " n"]


LISTED: list[Any] = []


def first_put_in(v: Tensor) -> Any:
    LISTED.append(v.detach())
    return LISTED[0]


def all_put_in(v: Tensor) -> Any:
    LISTED.append(v.detach())
    return torch.stack(LISTED).sum()


def left_over(v: Tensor) -> Any:
    del LISTED[0]
    return LISTED[0]


MOVED: dict[str, tuple[Callable[[Tensor], Any], list[Any]]] = {
    "the first that was put in": (first_put_in, []),
    "all that were put in": (all_put_in, []),
    "what is taken out": (lambda v: LISTED.pop(), [3.0, 2.0, 1.0]),
    "what is taken out by a function": (lambda v: heappop(LISTED), [1.0, 2.0, 3.0]),
    "what is first after another is gone": (left_over, [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("kind", MOVED)
def test_what_a_loss_moves_in_a_container_is_not_compiled_and_eagerly_there_once(kind: str) -> None:
    read, LISTED[:] = MOVED[kind][0], MOVED[kind][1]
    before = len(LISTED)

    def moving(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        v = (x @ p.w).mean()
        return v + read(v)

    with pytest.raises(ExecutorError, match=r"`moving` changes `LISTED"):
        ScalarTrainer(moving, P(w=torch.ones(3)), backend="compiled").step(X, lr=0.1)
    ScalarTrainer(moving, P(w=torch.ones(3))).step(X, lr=0.1)

    assert abs(len(LISTED) - before) == 1  # a proof leaves it as it was, in each of its runs


def test_how_an_input_lies_is_refused_where_the_loss_looks_at_it() -> None:
    def looking(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return (x @ p.w).mean() * (1 + x.stride(0)) * getattr(x, "weight", 1.0)

    trainer = ScalarTrainer(looking, P(w=torch.ones(3)), backend="compiled")
    trainer.step(X, lr=0.1)
    weighed, turned = X.clone(), torch.ones(3, 2).T
    weighed.weight = 2.0  # type: ignore[attr-defined]
    for batch in (weighed, turned):
        with pytest.raises(ExecutorError, match=r"`looking` reads `x.stride`, and a compiled step takes inputs as"):
            trainer.step(batch, lr=0.1)

    assert trainer.steps == 1
