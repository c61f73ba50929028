"""`view` and `reshape` are proved exactly where torch's kernels run them: no size is refused wrongly, none admitted."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ProofError, prove
from shaped.shapes import read_signature


def swapped(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.view(-1).view(x.shape[1], x.shape[0])


def rotated(x: Float[Tensor, "a b c"]) -> Float[Tensor, "b c a"]:
    return x.view(-1).view(x.shape[1], x.shape[2], x.shape[0])


def across(x: Float[Tensor, "a b c"]) -> Float[Tensor, "b a*c"]:
    return x.reshape(-1).reshape(x.shape[1], x.shape[0] * x.shape[2])


def around(x: Float[Tensor, "a b c"]) -> Float[Tensor, "b a*c"]:
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def fours(x: Float[Tensor, "b n m"]) -> Float[Tensor, ""]:
    return x.reshape(x.shape[0], -1, 4).sum()


def squares(x: Float[Tensor, "b c h h"]) -> Float[Tensor, ""]:
    return x.reshape(x.shape[0], -1, 2, x.shape[3]).sum()


def middle(x: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    return x.view(2, -1, 3).sum()


def by_hand(x: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    return x.view(x.shape[0], x.shape[1] // 2, 2).sum()


def pairs(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.t().contiguous().view(-1).view(x.shape[1], x.shape[0])


def heads(x: Float[Tensor, "a b c"]) -> Float[Tensor, "a b c"]:
    y = x.view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)
    return y.transpose(1, 2).reshape(x.shape)


def split_beyond(x: Float[Tensor, "a b c"]) -> Float[Tensor, "a*b c"]:
    return x.transpose(0, 2).transpose(0, 2).view(-1, x.shape[2])


def second_half(x: Float[Tensor, "b b a"]) -> Float[Tensor, "b*(b//2) a"]:
    return x.chunk(2, 1)[1].reshape(x.shape[0] * (x.shape[0] // 2), -1)


def inner_pair(x: Float[Tensor, "a b c"]) -> Float[Tensor, "a*c b"]:
    return x.transpose(1, 2).reshape(-1, x.shape[1])


def after_a_slice(x: Float[Tensor, "a b c"]) -> Float[Tensor, "a (b-1)*c"]:
    return x[:, 1:].reshape(x.shape[0], -1)


PROGRAMS: dict[Callable[..., Any], tuple[str, ...]] = {
    swapped: (), rotated: (), across: (), around: (), fours: ("m*n % 4 == 0",), squares: ("c*h % 2 == 0",),
    middle: ("a*b % 6 == 0",), by_hand: ("b % 2 == 0",), pairs: (), inner_pair: (), second_half: ("b >= 2",),
    after_a_slice: (), heads: ("c % 2 == 0",), split_beyond: (),
}  # fmt: skip


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda function: function.__name__)
def test_a_view_that_keeps_the_order_of_axes_is_proved_exactly_where_torch_makes_it(function: Callable[..., Any]):
    proof, signature = prove(function), read_signature(function)

    assert proof.conditions == PROGRAMS[function]
    for point in itertools.product(range(1, 7), repeat=len(proof.dims)):
        sizes = dict(zip(proof.dims, point, strict=True))
        tensors = [torch.rand([dim.evaluate(sizes) for dim in entry.spec.dims]) for entry in signature.entries]
        try:
            function(*tensors)
            runs = True
        except (RuntimeError, IndexError):
            runs = False

        assert runs == all(condition.holds(sizes) for condition in proof.side_conditions), sizes


def no_view(x: Float[Tensor, "a b"]) -> Float[Tensor, "b*a"]:
    return x.t().view(-1)


def too_many(x: Float[Tensor, "a b"]) -> Float[Tensor, "a b+1"]:
    return x.view(x.shape[0], x.shape[1] + 1)


@pytest.mark.parametrize("function", [no_view, too_many])
def test_a_view_that_torch_refuses_is_refuted(function: Callable[..., Any]):
    with pytest.raises(ProofError):
        prove(function)
