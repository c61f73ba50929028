"""A range with fractions is torch's range, and its length is known in whole numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import Unprovable, prove


def counted(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return torch.arange(0.0, x.shape[0])


def between(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return torch.arange(0.5, x.shape[0])


def by_halves(x: Float[Tensor, "n d"]) -> Float[Tensor, " 2*n"]:
    return torch.arange(0, x.shape[0], 0.5)


def by_twos(x: Float[Tensor, "n d"]) -> Float[Tensor, " (d+1)//2"]:
    return torch.arange(0.0, x.shape[1], 2)


def downwards(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return torch.arange(x.shape[0], 0.0, step=-1)


def doubled(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return torch.arange(start=1.0, end=x.shape[0] + 1, dtype=torch.float64).to(x.dtype)


@pytest.mark.parametrize("function", [counted, between, by_halves, by_twos, downwards, doubled])
def test_a_range_with_fractions_is_proved_and_is_the_range_of_torch(function: Callable[..., Any]):
    proof = prove(function)

    assert proof.conditions == ()
    for n, d in ((2, 3), (5, 2), (6, 7)):
        x = torch.zeros(n, d)

        assert torch.equal(proof.graph(x)[0], function(x))


def past_the_end(x: Float[Tensor, "n d"]) -> Float[Tensor, " n-5"]:
    return torch.arange(5.0, x.shape[0])


def test_a_range_that_ends_before_it_starts_is_a_condition():
    assert prove(past_the_end).conditions == ("n >= 5",)


def by_tenths(x: Float[Tensor, "n d"]) -> Float[Tensor, " 10*n"]:
    return torch.arange(0, x.shape[0], 0.1)


def test_a_step_that_is_no_binary_fraction_shows_nothing_about_the_length():
    with pytest.raises(Unprovable):
        prove(by_tenths)
