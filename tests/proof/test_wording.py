"""An operand has the expression whose value the operation got; a hint names sizes with which all goes through."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shaped import ProofError, ScalarTrainer, prove


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def _apply(f: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    return f(b, a)


def through_a_function(x: Float[Tensor, "b d"], w: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    return _apply(torch.matmul, x, w).sum()


def in_part(x: Float[Tensor, "b d"], w: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    return partial(torch.matmul, w)(x).sum()


def by_map(x: Float[Tensor, "b d"], w: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    return sum(map(torch.matmul, [x, x], [w.T, w.T])).sum()  # type: ignore[union-attr]


def by_itself(x: Float[Tensor, "b d"], w: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    return torch.matmul(x.relu(), w.T).sum()


@pytest.mark.parametrize(
    ("program", "operands"),
    [
        (through_a_function, "b : [d, k]   @   a : [b, d]"),
        (in_part, "[d, k]   @   [b, d]"),
        (by_map, "[b, d]   @   [k, d]"),
        (by_itself, "x.relu() : [b, d]   @   w.T : [k, d]"),
    ],
)
def test_an_operand_has_the_expression_whose_value_the_operation_got(program: Any, operands: str) -> None:
    with pytest.raises(ProofError) as caught:
        prove(program)
    assert caught.value.goal.operands == operands


def asserts(x: Float[Tensor, "b d"], w: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    assert x.shape[0] > x.shape[0] + w.shape[1], f"{x.shape[0]} rows for {w.shape[1]} columns"
    return (x @ w).trace()


def maps(x: Float[Tensor, "b d"], w: Float[Tensor, "d k"]) -> Float[Tensor, ""]:
    return torch.vmap(torch.matmul)(w, x).sum()


@pytest.mark.parametrize(("program", "said"), [(asserts, "b rows for k columns"), (maps, "got sizes [d, b] for")])
def test_what_an_error_says_of_sizes_is_said_in_names(program: Any, said: str) -> None:
    with pytest.raises(ProofError) as caught:
        prove(program)
    assert said in caught.value.goal.raised


def checkpointed(m: nn.Module, x: Float[Tensor, "b d"], y: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    return F.cross_entropy(checkpoint(m, x, use_reentrant=False), y)


def classes(m: nn.Module, x: Float[Tensor, "b d"], y: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    return F.cross_entropy(m(x), y)


def numbers(m: nn.Module, x: Float[Tensor, "b d"], y: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    return ((m(x) - y) ** 2).mean()


def as_wide_as_it_is_high(m: nn.Module, x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    return ((m(x) - y) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "operands", "hint"),
    [
        (checkpointed, "[b, d], [7, 5], [7]", "write 5 for d in the annotations: with that it goes through"),
        (classes, "x : [b, d], [7, 5], [7]", "write 5 for d in the annotations: with that it goes through"),
        (numbers, "x : [b, d], [7, 5], [7]", "write 5 for d and 3 for k in the annotations: with that it goes through"),
        (as_wide_as_it_is_high, "x : [b, d], [7, 5], [7]", ""),  # no size of d will do
    ],
)
def test_names_of_one_size_only_are_told_with_it_where_that_goes_through(loss: Any, operands: str, hint: str) -> None:
    with pytest.raises(ProofError) as caught:
        ScalarTrainer(loss, net(), backend="eager")
    assert caught.value.goal.equation == "d = 5"
    assert (caught.value.goal.operands, caught.value.goal.hint) == (operands, hint)
