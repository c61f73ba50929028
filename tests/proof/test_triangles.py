"""Triangles of a symbolic size list what torch lists."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import prove
from shaped.proof.triangles import _rows


def lower(x: Float[Tensor, "b n n"]) -> Float[Tensor, "b n*(n+1)//2"]:
    rows, columns = torch.tril_indices(x.shape[1], x.shape[2])
    return x[:, rows, columns]


def strictly_upper(x: Float[Tensor, "b n n"]) -> Float[Tensor, "b n*(n-1)//2"]:
    rows, columns = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    return x[:, rows, columns]


def pairs(x: Float[Tensor, " n"]) -> Float[Tensor, "n*(n-1)//2 2"]:
    return torch.combinations(x)


def pairs_with_themselves(x: Float[Tensor, " n"]) -> Float[Tensor, "n*(n+1)//2 2"]:
    return torch.combinations(x, with_replacement=True)


@pytest.mark.parametrize("function", [lower, strictly_upper, pairs, pairs_with_themselves], ids=lambda f: f.__name__)
def test_a_triangle_is_proved_for_all_sizes_and_its_graph_lists_what_torch_lists(function: Callable[..., Any]):
    proof = prove(function)
    x = torch.randn([{"b": 2, "n": 5}[str(dim)] for dim in proof.setting.signature.entries[0].spec.dims])

    assert proof.conditions == ()
    torch.testing.assert_close(proof.graph(x)[0], function(x), rtol=0, atol=0)


def test_each_entry_lies_in_the_row_that_the_lengths_say():
    rows, position = _rows(torch.tensor([0, 2, 0, 3]), 5)

    assert rows.tolist() == [1, 1, 3, 3, 3]
    assert position.tolist() == [0, 1, 0, 1, 2]
