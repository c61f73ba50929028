"""What the values of integer inputs must lie between, in names."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import prove


def loss(
    table: Float[Tensor, "vocab dim"],
    head: Float[Tensor, "dim classes"],
    ids: Int[Tensor, "batch seq"],
    y: Int[Tensor, "batch seq"],
) -> Float[Tensor, ""]:
    x = F.embedding(ids, table) @ head
    return F.cross_entropy(x.flatten(0, 1), y.flatten())


def picked(
    x: Float[Tensor, "n d"], i: Int[Tensor, " m"], j: Int[Tensor, "n k"], k: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "n k"]]:
    return x[i] + k.unsqueeze(1), x.gather(1, j)


def test_positions_and_classes_are_bounded_by_what_they_index() -> None:
    assert prove(loss).values == ("0 <= ids < vocab", "0 <= y < classes")
    assert prove(picked).values == ("-n <= i < n", "0 <= j < d")


def frames(x: Float[Tensor, " n"]) -> Float[Tensor, "n-3 4"]:
    return x.as_strided((x.shape[0] - 3, 4), (1, 1))


def test_a_strided_view_is_proved_where_it_stays_within_its_memory() -> None:
    proof = prove(frames)

    assert proof.conditions == ("n >= 3",)
    for n in (3, 4, 9):
        assert frames(torch.rand(n)).shape == (n - 3, 4)
