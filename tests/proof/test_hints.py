"""A hint is a change of one operand with which the whole program goes through, or there is none."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ParamList, ProofError, Unprovable, prove


class Two(ParamList):
    first: Float[Tensor, "inputs hidden"]
    second: Float[Tensor, "hidden outputs"]
    shift: Float[Tensor, " hidden"]
    offset: Float[Tensor, " outputs"]


class Line(ParamList):
    w: Float[Tensor, "d 1"]
    b: Float[Tensor, " 1"]


def a_transpose_too_many(p: Two, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
    return x @ p.first @ p.second.T


def a_transpose_too_few(q: Float[Tensor, "n d"], k: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return q @ k


def a_transpose_of_a_batch(q: Float[Tensor, "batch n d"], k: Float[Tensor, "batch m d"]) -> Float[Tensor, "batch n m"]:
    return q @ k


def another_parameter(p: Two, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
    return (x @ p.first + p.offset) @ p.second


def an_axis_too_few(x: Float[Tensor, "batch d"], w: Float[Tensor, " batch"]) -> Float[Tensor, "batch d"]:
    return x * w


def an_axis_too_few_in_a_list(x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, "batch d+1"]:
    return torch.cat([x, y], 1)


def an_axis_too_many(x: Float[Tensor, "batch 1"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.mse_loss(x, y)


def a_reduced_axis(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    return x - x.mean(1)


def a_reduced_axis_by_name(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    return x / x.norm(dim=-1)


def channels_last(
    x: Float[Tensor, "batch height width c"], w: Float[Tensor, "o c 3 3"]
) -> Float[Tensor, "batch o height-2 width-2"]:
    return F.conv2d(x, w)


def classes_last(x: Float[Tensor, "batch seq v"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return F.cross_entropy(x, y)


def a_view_of_a_transpose(x: Float[Tensor, "batch n d"]) -> Float[Tensor, "batch d*n"]:
    return x.transpose(1, 2).view(x.shape[0], -1)


def float_classes(x: Float[Tensor, "n c"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.nll_loss(x, y)


def float_tokens(w: Float[Tensor, "v d"], i: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
    return F.embedding(i, w)


def a_bias_of_one(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return ((x @ p.w + p.b - y) ** 2).mean()


HINTS: dict[Callable[..., Any], str] = {
    a_transpose_too_many: "p.second has shape [hidden, outputs]; did you mean x @ p.first @ p.second ?",
    a_transpose_too_few: "k.T has shape [d, m]; did you mean q @ k.T ?",
    a_transpose_of_a_batch: ("k.transpose(-1, -2) has shape [batch, d, m]; did you mean q @ k.transpose(-1, -2) ?"),
    another_parameter: "p.shift has shape [hidden]; did you mean x @ p.first + p.shift ?",
    an_axis_too_few: "w.unsqueeze(-1) has shape [batch, 1]; did you mean x * w.unsqueeze(-1) ?",
    an_axis_too_few_in_a_list: (
        "y.unsqueeze(-1) has shape [batch, 1]; did you mean torch.cat([x, y.unsqueeze(-1)], 1) ?"
    ),
    an_axis_too_many: "x.squeeze(-1) has shape [batch]; did you mean F.mse_loss(x.squeeze(-1), y) ?",
    a_reduced_axis: ("x.mean(1, keepdim=True) has shape [batch, 1]; did you mean x - x.mean(1, keepdim=True) ?"),
    a_reduced_axis_by_name: (
        "x.norm(dim=-1, keepdim=True) has shape [batch, 1]; did you mean x / x.norm(dim=-1, keepdim=True) ?"
    ),
    channels_last: (
        "x.permute(0, 3, 1, 2) has shape [batch, c, height, width]; did you mean F.conv2d(x.permute(0, 3, 1, 2), w) ?"
    ),
    classes_last: (
        "x.transpose(-1, -2) has shape [batch, v, seq]; did you mean F.cross_entropy(x.transpose(-1, -2), y) ?"
    ),
    a_view_of_a_transpose: "did you mean x.transpose(1, 2).reshape(x.shape[0], -1) ?",
    float_classes: "y.long() has shape [n]; did you mean F.nll_loss(x, y.long()) ?",
    float_tokens: "i.long() has shape [n]; did you mean F.embedding(i.long(), w) ?",
    a_bias_of_one: "(x @ p.w + p.b).squeeze(-1) has shape [batch]; did you mean ((x @ p.w + p.b).squeeze(-1) - y) ?",
}
OPEN = {
    a_view_of_a_transpose: "undoing the transpose is tried before reshape",
    a_bias_of_one: "a sum that ends in .b is taken for the parameter b",
}


def name_of(function: Callable[..., Any]) -> str:
    return function.__name__


def hint(function: Callable[..., Any]) -> str:
    with pytest.raises(ProofError) as caught:
        prove(function)
    return caught.value.goal.hint


@pytest.mark.parametrize("function", HINTS, ids=name_of)
def test_a_mistake_gets_the_change_that_mends_it(function: Callable[..., Any], request: pytest.FixtureRequest):
    if function in OPEN:
        request.applymarker(pytest.mark.xfail(reason=OPEN[function], strict=True))

    assert hint(function) == HINTS[function]


@pytest.mark.parametrize("function", [f for f in HINTS if f not in OPEN], ids=name_of)
def test_what_a_hint_says_is_proved_once_it_is_written(function: Callable[..., Any], script_folder: Path):
    """The text of the hint, put into the program by hand."""
    (_, mended) = hint(function).removesuffix(" ?").rsplit("did you mean ", 1)
    body, start = inspect.getsourcelines(function)
    with pytest.raises(ProofError) as caught:
        prove(function)
    source = caught.value.source
    assert source is not None
    marked = source.text[source.marks.index("~") : len(source.marks)]
    body[source.line - start] = body[source.line - start].replace(marked, mended)
    module = script_folder / f"mended_{function.__name__}.py"
    head = inspect.getsource(inspect.getmodule(function)).split("def a_transpose_too_many")[0]  # type: ignore[arg-type]
    module.write_text(head + "".join(body))
    sys.path.insert(0, str(script_folder))
    mended_function = getattr(importlib.import_module(module.stem), function.__name__)

    assert prove(mended_function).setting.signature.name == function.__name__


def the_wrong_order(p: Two, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
    return x @ p.second @ p.first  # x @ p.first would go through, and end in another shape


def a_sum_further_on(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], c: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return a @ b + c  # a @ b.T would go through, and then not fit c


def a_product_further_on(
    x: Float[Tensor, "batch d"], w: Float[Tensor, " batch"], v: Float[Tensor, "d k"]
) -> Float[Tensor, "batch k"]:
    return (x * w) @ v.T  # x * w.unsqueeze(-1) would go through


def another_result(q: Float[Tensor, "n d"], k: Float[Tensor, "m d"]) -> Float[Tensor, "m n"]:
    return q @ k  # q @ k.T would go through, and be [n, m]


@pytest.mark.parametrize(
    "function", [the_wrong_order, a_sum_further_on, a_product_further_on, another_result], ids=name_of
)
def test_a_change_that_gets_one_operation_further_only_is_no_hint(function: Callable[..., Any]):
    assert hint(function) == ""


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda x: x[: int(0.1 * x.shape[0])].sum(0), "write n // 10, in whole numbers"),
        (lambda x: x @ nn.init.trunc_normal_(torch.empty(x.shape[1], 3)).sum(1), "draw it outside, and pass it as an"),
    ],
)
def test_what_is_read_off_a_size_or_drawn_within_says_what_to_write(function: Any, hint: str) -> None:
    def program(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        result: Tensor = function(x)
        return result

    with pytest.raises(Unprovable) as caught:
        prove(program)
    assert hint in str(caught.value)
