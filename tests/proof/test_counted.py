"""Positions that a program counts for itself: they lie within what they index, or that is a condition."""

import itertools
from contextlib import nullcontext
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import Proof, ProofError, ShapeError, prove

Table: TypeAlias = Float[Tensor, "vocab d"]
Rows: TypeAlias = Float[Tensor, "n d"]


def counted(table: Table, x: Rows) -> Rows:
    return x + table[torch.arange(x.shape[0])]


def from_two_on(table: Table, x: Rows) -> Rows:
    return x + F.embedding(torch.arange(2, x.shape[0] + 2)[None], table)[0]


def every_other(table: Table, x: Rows) -> Rows:
    return x + table.index_select(0, torch.arange(0, 2 * x.shape[0], 2))


def from_behind(table: Table, x: Rows) -> Rows:
    return x + table[torch.arange(x.shape[0]) - 5]


def distances(table: Table, x: Rows) -> Float[Tensor, "n n d"]:
    i = torch.arange(x.shape[0])
    return x + table[i[:, None] - i[None, :] + x.shape[0] - 1]


def scaled(table: Table, x: Rows) -> Rows:
    return x + table[3 * torch.arange(x.shape[0]).flip(0).to(torch.int32)]


def refused(table: Table, x: Rows) -> Rows:
    if x.shape[0] > table.shape[0]:
        raise ValueError("too long")
    return x + table[torch.arange(x.shape[0])]


def diagonal(x: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    return x[torch.arange(x.shape[0]), torch.arange(x.shape[0])]


def pairs(x: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    return F.cross_entropy(x, torch.arange(x.shape[0]))


def written(table: Table, x: Rows) -> Rows:
    position = torch.arange(x.shape[0])
    position[None].clamp_(max=table.shape[0] - 1)
    return x + table[position]


def of_the_rest(x: Float[Tensor, "n d"]) -> Float[Tensor, "n-1 d"]:
    return x[torch.arange(x.shape[0] - 1) + 1]


def admitted(proof: Proof, sizes: dict[str, int]) -> bool:
    try:
        proof.check(sizes)
    except ShapeError:
        return False
    return True


PROGRAMS = {
    counted: ("n <= vocab",),
    from_two_on: ("n <= vocab - 2",),
    every_other: ("2*n <= vocab + 1",),
    from_behind: ("vocab >= 5", "n <= vocab + 5"),
    distances: ("2*n <= vocab + 1",),
    scaled: ("3*n <= vocab + 2",),
    refused: ("n <= vocab",),
    diagonal: ("m >= n",),
    pairs: ("m >= n",),
    written: (),
    of_the_rest: (),
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_that_counts_positions_is_proved_just_where_they_are_there(program) -> None:
    proof = prove(program)

    assert proof.conditions == PROGRAMS[program]
    entries = proof.setting.signature.entries
    names = list(dict.fromkeys(name for entry in entries for dim in entry.spec.dims for name in dim.names))
    for sizes in itertools.product((1, 2, 3, 5, 8), repeat=len(names)):
        at = dict(zip(names, sizes, strict=True))
        inputs = [torch.rand([d.evaluate(at) for d in entry.spec.dims]) for entry in entries]
        with nullcontext() if admitted(proof, at) else pytest.raises((IndexError, ValueError)):
            program(*inputs)


class Positions(nn.Module):
    """A table of positions as long as its context, as GPT-2's is."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.table = nn.Embedding(context, 3)

    def forward(self, x: Float[Tensor, "batch seq 3"]) -> Float[Tensor, "batch seq 3"]:
        return x + self.table(torch.arange(x.shape[1]))


@pytest.mark.parametrize("context", [12, 1024])
def test_a_table_of_positions_bounds_the_length_of_a_sequence(context) -> None:
    def program(x: Float[Tensor, "batch seq 3"]) -> Float[Tensor, "batch seq 3"]:
        return net(x)

    net = Positions(context)

    assert prove(program).conditions == (f"seq <= {context}",)


def test_a_position_that_is_beyond_at_every_size_is_refuted_at_its_line() -> None:
    def program(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x[torch.arange(x.shape[0]) + 1]

    with pytest.raises(ProofError, match=r"looks up the position n of n"):
        prove(program)
