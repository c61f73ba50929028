"""Runs on real tensors: an index of the program's own is told from one that an input may have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ProofError, prove

Pair = Float[Tensor, "2 n"]
Whole = Int[Tensor, " k"]


def of_a_tensor(x: Pair, i: Whole) -> Float[Tensor, "k n"]:
    return F.embedding(i, x[torch.tensor([0, 2])])


def of_the_largest(x: Float[Tensor, "n n"], i: Whole) -> Float[Tensor, "k n"]:
    return x.topk(2, 0).values[torch.tensor([0, 2])][i]


def selected(x: Pair, i: Whole) -> Float[Tensor, "k n"]:
    return x.index_select(0, torch.tensor([0, 2]))[i]


def looked_up(x: Pair, i: Whole) -> Float[Tensor, "k n"]:
    return F.embedding(torch.tensor([0, 2]), x)[i]


def taken(x: Pair, i: Whole) -> Float[Tensor, " k"]:
    return x.reshape(-1).repeat(2)[:2].take(torch.tensor([0, 2]))[i]


def of_what_was_added_to(x: Float[Tensor, "k n"], i: Whole) -> Float[Tensor, "k n 2"]:
    return torch.zeros_like(x).index_add(0, i, x)[:, :, None][:, :, torch.tensor([0, 2])]


@pytest.mark.parametrize("program", [of_a_tensor, of_the_largest, selected, looked_up, taken, of_what_was_added_to])
def test_an_index_of_the_programs_own_beyond_an_axis_is_refuted_beside_integer_inputs(
    program: Callable[..., Any],
) -> None:
    with pytest.raises(ProofError):
        prove(program)


def shifted(x: Float[Tensor, "v n"], i: Whole) -> Float[Tensor, "k n"]:
    return x[i - 256]


def shifted_rows(x: Float[Tensor, "v n"], i: Whole) -> Float[Tensor, "k n"]:
    return F.embedding(i - 256, x)


def next_ones(x: Pair, i: Whole) -> Float[Tensor, "k n"]:
    return x.index_select(0, i + 1)


def one_of_two(x: Pair, i: Whole, m: Whole) -> Float[Tensor, "k n"]:
    return x[torch.where(m > 5, i, i.clamp(min=2))]


def beside_another(x: Float[Tensor, "v n"], i: Whole) -> Float[Tensor, "k n"]:
    return torch.zeros_like(x).index_add(0, i, x[i])[i - 256]


@pytest.mark.parametrize("program", [shifted, shifted_rows, next_ones, one_of_two, beside_another])
def test_an_index_that_an_input_may_have_otherwise_refutes_nothing(program: Callable[..., Any]) -> None:
    assert prove(program).conditions == ()


def test_positions_that_a_table_lacks_bound_the_size_that_counts_them() -> None:
    """As OPT counts its positions: no shape says that there are 32."""
    table = torch.ones(34, 4)

    def program(x: Float[Tensor, "batch seq 4"]) -> Float[Tensor, "batch seq 4"]:
        return x + F.embedding(torch.ones(x.shape[:2], dtype=torch.int64).cumsum(1) + 1, table)

    assert prove(program).conditions == ("seq <= 32",)
