"""Views in which one axis has the place of another: planted ones are found, and meant ones are not blamed."""

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ProofError, prove
from shaped.proof.misplaced import order

B, S, H, D = sympy.symbols("b s h d", positive=True, integer=True)
NAMES = {B, S, H, D}


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ((B, S), (S, B), "moved"),
        ((B, S, H * D), (B, H, S, D), "moved"),
        ((B, H, S, D), (B, S, H * D), "moved"),
        ((S, B, D), (B, S * D), "moved"),
        ((S, 4), (4, S), "moved"),
        ((B, S, 4 * D), (B, 4, S, D), "moved"),
        ((B, S, H * D), (B, S, H, D), "kept"),
        ((B, S, H, D), (B, S, H * D), "kept"),
        ((B, 1, S), (1, B, S, 1), "kept"),
        ((B * S,), (S, B), "kept"),  # which of the two comes first within an axis is not written anywhere
        ((B, 4, S), (2 * B, 2 * S), "kept"),
        ((B, 6), (3, 2 * B), "mixed"),
        ((B, H, S, D + 1), (B, H, D + 1, S), "mixed"),
        ((), (1,), "kept"),
    ],
)
def test_a_view_keeps_the_order_of_axes_or_gives_one_the_place_of_another(before: Any, after: Any, found: str) -> None:
    assert order([sympy.sympify(n) for n in before], [sympy.sympify(n) for n in after], NAMES) == found


def pair(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.view(x.shape[1], x.shape[0])


def pair_by_reshape(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return torch.reshape(x, (x.shape[1], x.shape[0]))


def time_first(x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "time batch dim"]:
    batch, time, dim = x.shape
    return x.reshape(time, batch, dim)


def heads(x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch 4 seq dim//4"]:
    batch, seq, dim = x.shape
    return x.view(batch, 4, seq, dim // 4)


def merged(x: Float[Tensor, "batch heads seq head"]) -> Float[Tensor, "batch seq heads*head"]:
    batch, _, seq, _ = x.shape
    return x.reshape(batch, seq, -1)


def channels(x: Float[Tensor, "batch height width rgb"]) -> Float[Tensor, "batch rgb height width"]:
    batch, height, width, rgb = x.shape
    return x.view(batch, rgb, height, width)


def tokens(x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch height*width dim"]:
    batch, dim, height, width = x.shape
    return x.view(batch, height * width, dim)


def groups(x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "seq batch*dim"]:
    return x.reshape(x.shape[1], -1)


def met(x: Float[Tensor, "a b"], w: Float[Tensor, "b a"]) -> Float[Tensor, ""]:
    return (x.view(x.shape[1], x.shape[0]).exp() * w).sum()


def summed_over_one(x: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    return x.view(x.shape[1], x.shape[0]).mean(0).square().sum()


FAULTS = [met, summed_over_one, pair, pair_by_reshape, time_first, heads, merged, channels, tokens, groups]


@pytest.mark.parametrize("program", FAULTS)
def test_an_axis_in_the_place_of_another_is_refused_as_silent(program: Callable[..., Tensor]) -> None:
    with pytest.raises(ProofError) as error:
        prove(program)

    assert "an axis takes the place of another" in error.value.goal.silent


def test_the_hint_is_the_transpose_that_was_forgotten() -> None:
    hints = []
    for program in (pair, heads, merged):
        with pytest.raises(ProofError) as error:
            prove(program)
        hints.append(error.value.goal.hint)

    assert hints == [
        "a transpose moves them; did you mean x.transpose(0, 1).reshape(x.shape[1], x.shape[0]) ?",
        "a transpose moves them; did you mean x.view(batch, seq, 4, dim // 4).transpose(1, 2) ?",
        "a transpose moves them; did you mean x.transpose(1, 2).reshape(batch, seq, -1) ?",
    ]


def split(x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch 4 seq dim//4"]:
    batch, seq, dim = x.shape
    return x.view(batch, seq, 4, dim // 4).transpose(1, 2)


def windows(x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b*(h//4)*(w//4) 16 c"]:
    b, h, w, c = x.shape
    return x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)


def shuffled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def shifted(x: Float[Tensor, "b h q k"]) -> Float[Tensor, "b h q k"]:
    """Relative positions, as in Transformer-XL: rows are moved by one entry each, on purpose."""
    b, h, q, k = x.shape
    padded = torch.cat([x.new_zeros(b, h, q, 1), x], -1).view(b, h, k + 1, q)
    return padded[:, :, 1:].view(b, h, q, k)


def heads_within_batch(x: Float[Tensor, "time batch dim"]) -> Float[Tensor, "batch*4 time dim//4"]:
    time, batch, dim = x.shape
    return x.view(time, batch * 4, dim // 4).transpose(0, 1)


def only_summed(x: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    y = x.view(x.shape[1], x.shape[0])
    return (y * y).sum()


def flat_again(x: Float[Tensor, "a b"]) -> Float[Tensor, "a*b"]:
    return x.view(x.shape[1], x.shape[0]).exp().flatten()


def through_one_axis(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.flatten().view(x.shape[1], x.shape[0])


MEANT = [only_summed, flat_again, through_one_axis]


@pytest.mark.parametrize("program", [*MEANT, split, windows, shuffled, shifted, heads_within_batch])
def test_what_is_split_merged_or_shifted_on_purpose_is_not_blamed(program: Callable[..., Tensor]) -> None:
    assert prove(program).steps
