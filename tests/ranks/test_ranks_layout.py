"""Even flat parts, and what moves over the ranks together."""

import math
from typing import Any

import pytest
import torch

from shaped.backends.planned_parts import NestedPlacement
from shaped.ranks import Placement, units
from shaped.ranks.placements import AxisPlacement, Shard

SHAPES = [(), (1,), (5,), (2, 3), (4, 0, 2), (3, 5, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_parts_of_a_tensor_are_even_and_make_it_up(shape: tuple[int, ...], size: int) -> None:
    layout = Placement(shape, size)
    whole = torch.arange(1.0, 1.0 + layout.numel).reshape(shape)
    parts = [layout.cut(whole, rank) for rank in range(size)]

    assert {part.shape for part in parts} == {(layout.length,)}
    assert layout.length * size - layout.numel < size
    assert torch.equal(layout.whole(torch.cat(parts)), whole)
    assert torch.equal(torch.cat(parts), layout.flat(whole))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_bounds_are_the_entries_of_a_part_without_its_padding(shape: tuple[int, ...], size: int) -> None:
    layout = Placement(shape, size)
    whole = torch.arange(1.0, 1.0 + layout.numel).reshape(shape)
    entries = [whole.reshape(-1)[slice(*layout.bounds(rank))] for rank in range(size)]

    assert torch.equal(torch.cat(entries), whole.reshape(-1))
    for rank, own in enumerate(entries):
        assert torch.equal(layout.padded(own), layout.cut(whole, rank))


def test_a_part_is_a_tensor_of_its_own() -> None:
    whole = torch.ones(4)
    part = Placement((4,), 2).cut(whole, 0)
    part.zero_()

    assert torch.equal(whole, torch.ones(4))


def test_large_entries_move_by_themselves_and_small_ones_together_up_to_that_size() -> None:
    large, small = 2**18, 2**16

    assert units([large, small, large + 4, small, small, small, small, 0, large, 0]) == [
        [0], [1, 3, 4, 5], [2], [6, 7, 9], [8]
    ]  # fmt: skip


LAID: list[tuple[Any, list[Any]]] = [
    (Placement(shape, size), list(range(size))) for shape in SHAPES for size in (1, 2, 3, 7)
]
for axis in (
    AxisPlacement((12, 5), 2, Shard(0, 3)),
    AxisPlacement((5, 4, 2), 2, Shard(1)),
    AxisPlacement((3,), 2, None),
):
    LAID.append((axis, [0, 1]))
    for flat in (Placement(axis.local, 3), None):
        LAID.append((NestedPlacement(axis, flat), [(across, column) for across in (0, 1) for column in range(3)]))


@pytest.mark.parametrize(("layout", "places"), LAID, ids=str)
def test_the_blocks_of_all_parts_make_a_tensor_up(layout: Any, places: list[Any]) -> None:
    whole = torch.arange(1.0, 1.0 + math.prod(layout.shape)).reshape(layout.shape)
    made, counts = torch.zeros_like(whole), torch.zeros_like(whole)
    for place in places:
        for block in layout.boxes(layout.cut(whole, place), place):
            box = tuple(slice(o, o + n) for o, n in zip(block.offsets, block.values.shape, strict=True))
            made[box] = block.values
            counts[box] += 1

    assert torch.equal(made, whole)
    assert counts.numel() == 0 or counts.min() == counts.max() or isinstance(layout, NestedPlacement)
