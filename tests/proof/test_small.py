"""Conditions about size expressions, such as seq - 1 and height//2: no more and no less than what torch needs.

The oracle is torch: a program runs at all sizes from 1 to 8, and has to go through, with the declared result, exactly
where the conditions hold.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shaped import Proof, prove
from shaped.proof.conditions import Condition
from shaped.shapes import read_signature

LARGEST = 8


def differences(x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq-1 dim"]:
    return x[:, 1:] - x[:, :-1]


def without_the_axis(x: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq-1"]:
    return x[:, 1:].squeeze(1)


def greatest_but_the_first(x: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
    return x[:, 1:].amax(1)


def corner(x: Float[Tensor, "batch height width"]) -> Float[Tensor, " batch"]:
    return x[:, 1:, 2:].amax((1, 2))


def from_the_third(x: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq-2"]:
    y = x[:, 2:]
    return y - y[:, :1]


def pooled(x: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 1 height//2 width//2"]:
    return F.max_pool2d(x, 2)


def pooled_and_normalised(x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height//2 width//2"]:
    return F.instance_norm(F.avg_pool2d(x, 2))


def pooled_and_convolved(
    x: Float[Tensor, "batch 1 height"], w: Float[Tensor, "1 1 3"]
) -> Float[Tensor, "batch 1 height//2-2"]:
    return F.conv1d(F.avg_pool1d(x, 2), w)


def convolved(x: Float[Tensor, "batch c t"], w: Float[Tensor, "d c k"]) -> Float[Tensor, "batch d t-k+1"]:
    return F.conv1d(x, w)


def dilated(x: Float[Tensor, "1 1 t"], w: Float[Tensor, "1 1 k"]) -> Float[Tensor, "1 1 t-2*k+2"]:
    return F.conv1d(x, w, dilation=2)


def dilated_channels(x: Float[Tensor, "batch c t"], w: Float[Tensor, "d c k"]) -> Float[Tensor, "batch d t-2*k+2"]:
    return F.conv1d(x, w, dilation=2)


def strided(x: Float[Tensor, "batch 1 t"], w: Float[Tensor, "1 1 3"]) -> Float[Tensor, "batch 1 (t-3)//2+1"]:
    return F.conv1d(x, w, stride=2)


def convolved_and_pooled(x: Float[Tensor, "batch 1 t"], w: Float[Tensor, "1 1 k"]) -> Float[Tensor, " batch"]:
    return F.conv1d(x, w).amax((1, 2))


def rows(x: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch (height-1)*width"]:
    return x[:, 1:].flatten(1)


def interleaved(x: Float[Tensor, "batch t"]) -> Float[Tensor, "batch t//2"]:
    return x[:, 0::2][:, : x.shape[1] // 2] + x[:, 1::2]


def three(x: Float[Tensor, "batch t"]) -> Float[Tensor, "batch 3"]:
    return x[:, 1:4]


def first_quarter(x: Float[Tensor, "batch t"]) -> Float[Tensor, " batch"]:
    return x[:, : x.shape[1] // 4].amax(1)


def pooled_twice(x: Float[Tensor, "1 1 height width"]) -> Float[Tensor, "1 1 height//4 width//4"]:
    return F.max_pool2d(F.max_pool2d(x, 2), 2)


PROGRAMS: dict[Callable[..., Any], tuple[str, ...] | None] = {  # the conditions; None where only their truth counts
    differences: (),
    without_the_axis: ("seq != 2",),  # at seq = 2 the axis goes, at 1 it has size 0 and stays
    greatest_but_the_first: ("seq >= 2",),
    corner: None,
    from_the_third: ("seq >= 2",),  # at 2 nothing is left, as declared; at 1 the result would have to be -1 long
    pooled: ("height >= 2", "width >= 2"),
    pooled_and_normalised: ("height >= 2", "width >= 2", "height >= 4 or width >= 4"),
    pooled_and_convolved: ("height >= 6",),
    convolved: ("t >= k",),
    dilated: ("t >= 2*k - 1",),
    dilated_channels: ("t >= 2*k - 1",),
    strided: ("t >= 3",),
    convolved_and_pooled: ("t >= k",),
    rows: (),
    interleaved: (),
    three: ("t >= 4",),
    first_quarter: None,
    pooled_twice: ("height >= 4", "width >= 4"),
}
OPEN = {
    pooled_and_convolved: "a batch of one is excluded, though it runs",
}


@functools.cache
def proved(function: Callable[..., Any]) -> Proof:
    return prove(function)


def runs(function: Callable[..., Any], sizes: Mapping[str, int]) -> bool:
    """Whether torch runs it at these sizes and the result is what is declared."""
    signature = read_signature(function)
    tensors = [torch.rand([d.evaluate(sizes) for d in entry.spec.dims]) for entry in signature.entries]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = signature.call(tensors)
    except (RuntimeError, IndexError, ValueError):
        return False
    return list(result.shape) == [d.evaluate(sizes) for d in signature.result[0].dims]


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda function: function.__name__)
def test_a_program_runs_exactly_where_its_conditions_hold(function: Callable[..., Any], request: pytest.FixtureRequest):
    if function in OPEN:
        request.applymarker(pytest.mark.xfail(reason=OPEN[function], strict=True))
    proof = proved(function)
    conditions = [Condition.parse(text) for text in proof.conditions]
    names = [name for name in proof.dims if name not in ("batch", "c", "d")]
    for point in itertools.product(range(1, LARGEST + 1), repeat=len(names)):
        sizes = {"batch": 2, "c": 3, "d": 2} | dict(zip(names, point, strict=True))

        assert runs(function, sizes) == all(condition.holds(sizes) for condition in conditions), sizes
    expected = PROGRAMS[function]

    assert expected is None or sorted(proof.conditions) == sorted(expected)


BATCHES = [differences, pooled, convolved, strided, interleaved]


@pytest.mark.parametrize("function", BATCHES, ids=lambda function: function.__name__)
def test_a_batch_of_one_is_covered_by_the_same_conditions(function: Callable[..., Any]):
    sizes = dict.fromkeys(proved(function).dims, 5) | {"batch": 1, "k": 1}

    assert runs(function, sizes)
    proved(function).check({name: sizes[name] for name in proved(function).dims})


def test_a_large_size_satisfies_what_the_small_ones_suggest():
    proof = proved(convolved)

    proof.check({"batch": 1, "c": 1, "d": 1, "t": 1000, "k": 1000})
    with pytest.raises(ValueError, match="t >= k, and t = 999, k = 1000"):
        proof.check({"batch": 1, "c": 1, "d": 1, "t": 999, "k": 1000})


def asks_about_an_expression(x: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
    half = x.shape[1] // 2
    return x[:, :half].sum(1) if half > 3 else x.sum(1)


def asks_and_needs_it(x: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
    return x.sum(1) if x.shape[1] - 1 > 3 else x.sum(0)


def test_a_question_about_an_expression_is_dropped_if_both_answers_go_through():
    assert prove(asks_about_an_expression).conditions == ()


def test_a_question_about_an_expression_is_a_condition_if_one_answer_fails():
    (text,) = prove(asks_and_needs_it).conditions

    assert [n for n in range(1, 9) if Condition.parse(text).holds({"seq": n})] == [5, 6, 7, 8]
