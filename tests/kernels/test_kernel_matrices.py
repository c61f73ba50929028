"""Axes: a tensor as batches of matrices, and the text that says so."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shaped_kernels.matrices import read_axes

TEXTS = [
    ("in out", (6, 7)), ("out in", (7, 6)), ("batch in out", (3, 6, 7)), ("out in in in", (7, 4, 3, 2)),
    ("(2 out) in in", (6, 3, 5)), ("in (3 out)", (4, 9)), ("in (8+2+2 out)", (3, 12)), ("(4+1 out) in", (5, 3)),
    ("in out (2:in 2:out)", (3, 5, 4)), ("in (2:out 3:batch 4:out)", (5, 24)),
]  # fmt: skip


@given(st.sampled_from(TEXTS))
def test_a_text_is_read_back_as_it_prints_and_blocks_are_put_where_they_were_taken(
    case: tuple[str, tuple[int, ...]],
) -> None:
    text, shape = case
    axes, tensor = read_axes(text, shape), torch.randn(shape)
    parts = [block.put(block.take(tensor)) for block in axes.blocks]
    axis = axes.cut[0] if axes.cut is not None else 0

    assert str(axes) == text
    assert torch.equal(torch.cat(parts, axis), tensor)
    assert all(block.take(tensor).shape == block.size for block in axes.blocks)


def test_rows_are_fan_out_and_columns_fan_in() -> None:
    tensor = torch.randn(4, 9)
    taken = read_axes("in (3 out)", (4, 9)).blocks[0].take(tensor)

    assert all(torch.equal(taken[i], tensor[:, 3 * i : 3 * i + 3].T) for i in range(3))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("in", "w has the shape [4, 9] and 'in' names 1 axes"),
        ("in outside", "w: 'outside' in 'in outside' is none of them"),
        ("in (2 out)", "w: (2 out) in 'in (2 out)' does not split an axis of 9"),
        ("in (2+3 out)", "w: (2+3 out) in 'in (2+3 out)' does not split an axis of 9"),
        ("in in", "w: 'in in' has no `out`, so it is no matrix"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_axes(text, (4, 9), "w")

    example = 'write a word for each axis, `in`, `out` or `batch`, as in "batch in out" or "in (3 out)"'
    assert str(raised.value) == f"roles: {said}; {example}"
