"""Constants of the size that models have: what is said of 12 is said of 200."""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ScalarTrainer, ShapeError, prove


def positions(length: int):
    table = torch.ones(length, length)

    def program(x: Float[Tensor, "batch n d"]) -> Float[Tensor, "batch n n"]:
        n = x.shape[1]
        return (x @ x.transpose(1, 2)).masked_fill(table[:n, :n] == 0, 0.0)

    return program


def turned(length: int):
    table = torch.ones(length, length)

    def program(x: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
        return (table[: x.shape[0], : x.shape[1]] * x).t().reshape(x.shape[1], x.shape[0])

    return program


def branching(length: int):
    def program(x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return x.sin() if x.shape[1] != length else x.cos()

    return program


def quadratic(length: int):
    def program(x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return x.sin() if x.shape[1] ** 2 != length**2 else x.cos()

    return program


def added(length: int):
    table = torch.ones(length, length)

    def program(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, "n+m n+m"]:
        both = x.shape[0] + y.shape[0]
        return table[:both, :both].sin()

    return program


def halved(length: int):
    table = torch.ones(length, length)

    def program(x: Float[Tensor, "batch n"]) -> Float[Tensor, "n//2 n//2"]:
        half = x.shape[1] // 2
        return table[:half, :half].sin()

    return program


def from_the_end(length: int):
    table = torch.ones(length, length)

    def program(x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        n = x.shape[0]
        return x * table[-n:, -n:]

    return program


def padded(by: int):
    def program(x: Float[Tensor, "batch n"]) -> Tensor:
        return F.pad(x, (0, -x.shape[1] % by)).view(x.shape[0], -1, by)

    program.__annotations__["return"] = Float[Tensor, f"batch (n+{by - 1})//{by} {by}"]
    return program


def in_blocks(by: int):
    def program(x: Float[Tensor, "batch n"], y: Tensor) -> Float[Tensor, "batch k"]:
        return x.unfold(1, by, by).sum(2) @ y

    program.__annotations__["y"] = Float[Tensor, f"n//{by} k"]
    return program


def of_blocks(by: int):
    def program(x: Float[Tensor, "batch n"]) -> Tensor:
        n = x.shape[1]
        return x[:, : n // by * by].reshape(x.shape[0], n // by, by).mean(-1)

    program.__annotations__["return"] = Float[Tensor, f"batch n//{by}"]
    return program


@pytest.mark.parametrize("length", [pytest.param(12, marks=pytest.mark.slow), 200])
@pytest.mark.parametrize(
    ("make", "conditions"),
    [
        (positions, ("n <= {}",)),
        (turned, ("n <= {}", "m <= {}")),
        (branching, ()),
        (quadratic, ()),
        (added, ("m + n <= {}",)),
        (halved, ("n <= {1}",)),
        (from_the_end, ("n <= {}",)),
        (padded, ()),
        (in_blocks, ("n >= {}",)),
        (of_blocks, ()),
    ],
)
def test_a_condition_is_the_same_whatever_the_size_of_a_constant(make, conditions, length, request):
    if make is padded and length == 200 and torch.__version__ >= "2.14":  # compared as versions
        said = "from torch 2.14 on a relation that is always so is asked of two sizes, and stays listed"
        request.applymarker(pytest.mark.xfail(reason=said, strict=True))
    found = prove(make(length)).conditions

    assert found == tuple(one.format(length, 2 * length + 1) for one in conditions)


@pytest.mark.parametrize("by", [12, 200, 1024])
def test_a_pooling_over_many_entries_needs_so_many(by):
    def program(x: Float[Tensor, "batch channels n"]) -> Tensor:
        return F.avg_pool1d(x, by)

    program.__annotations__["return"] = Float[Tensor, f"batch channels n//{by}"]
    proof = prove(program)

    for n in (by, by + 1, 2 * by + 3, 5 * by):
        proof.check({"batch": 2, "channels": 3, "n": n})
    with pytest.raises(ShapeError):
        proof.check({"batch": 2, "channels": 3, "n": by - 1})


class Causal(nn.Module):
    """A mask that is sliced to the length of a batch, as nanoGPT's is."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.ones(128, 128).tril())

    def forward(self, x: Float[Tensor, "batch n 3"]) -> Float[Tensor, "batch n 3"]:
        n = x.shape[1]
        scores = (x * self.scale) @ x.transpose(1, 2)
        return scores.masked_fill(self.mask[:n, :n] == 0, -torch.inf).softmax(-1) @ x


def test_a_causal_mask_serves_batches_up_to_its_whole_length():
    def loss(net: Causal, x: Float[Tensor, "batch n 3"]) -> Float[Tensor, ""]:
        return net(x).square().mean()

    trainer = ScalarTrainer(loss, Causal())

    assert trainer.proof.conditions == ("n <= 128",)
    for n in (127, 128):
        assert trainer.step(torch.ones(1, n, 3), lr=0.0) == 1


def to_chunks(x: Float[Tensor, "batch n d"]) -> Float[Tensor, "batch n d"]:
    batch, n, d = x.shape
    more = (16 - n % 16) % 16
    chunks = F.pad(x, (0, 0, 0, more)).reshape(batch, -1, 16, d).cumsum(2)
    return chunks.reshape(batch, -1, d)[:, :n]


def test_padding_to_a_multiple_needs_nothing_of_the_size():
    assert prove(to_chunks).conditions == ()
