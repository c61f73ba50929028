"""Binding: one size for each name, or every disagreement at once with who fixed the axis."""

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Float32, Int
from torch import Tensor

from shaped import ShapeError
from shaped.shapes import Binding, Entry, bind, describe, read_tensor


def entries(**annotations: Any) -> list[Entry]:
    return [Entry(name, read_tensor(annotation, name)) for name, annotation in annotations.items()]


LAYERS = entries(w1=Float32[Tensor, "hidden pixels"], b1=Float32[Tensor, "hidden"], w2=Float32[Tensor, "out hidden"])


def refusal(expected: list[Entry], tensors: list[Any], **options: Any) -> str:
    with pytest.raises(ShapeError) as caught:
        bind(expected, tensors, owner="The batch", **options)
    return str(caught.value)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
def test_each_name_gets_the_size_that_the_tensors_agree_on(hidden: int, pixels: int, out: int) -> None:
    tensors = [torch.zeros(hidden, pixels), torch.zeros(hidden), torch.zeros(out, hidden)]
    binding = bind(LAYERS, tensors, owner="MLP")

    assert binding.sizes == {"hidden": hidden, "pixels": pixels, "out": out}
    assert binding.fixed_by["hidden"] == f"w1 ({hidden}, {pixels})"


def test_all_mismatches_are_reported_at_once_with_who_fixed_each_axis() -> None:
    tensors = [torch.zeros(64, 784), torch.zeros(32, dtype=torch.float64), torch.zeros(10, 32)]

    assert refusal(LAYERS, tensors) == (
        "The batch breaks its signature in 2 of 3 entries.\n"
        '  b1: expected Float32 "hidden" = (64,), got float64 (32,)\n'
        "      axis hidden is 64, set by w1 (64, 784)\n"
        "      pass b1.to(torch.float32), or declare it Float64\n"
        '  w2: expected Float32 "out hidden" = (10, 64), got float32 (10, 32)\n'
        "      axis hidden is 64, set by w1 (64, 784)"
    )


def test_a_wrong_dtype_alone_says_that_the_shape_agrees() -> None:
    assert refusal(entries(y=Int[Tensor, " batch"]), [torch.zeros(4, dtype=torch.bfloat16)]) == (
        "The batch breaks its signature in its one entry.\n"
        '  y: expected Int "batch" = (4,), got bfloat16 (4,)\n'
        "      the shape agrees, the dtype does not: pass y.to(torch.int64), or declare it BFloat16"
    )


def test_what_is_no_dense_tensor_is_a_mismatch_like_any_other() -> None:
    tensors = [numpy.zeros((2, 3)), None, torch.zeros(2, 2).to_sparse()]

    assert refusal(LAYERS, tensors) == (
        "The batch breaks its signature in 3 of 3 entries.\n"
        '  w1: expected Float32 "hidden pixels" = (hidden, pixels), got a ndarray\n'
        "      not a tensor: pass a torch.Tensor of shape [hidden, pixels]\n"
        '  b1: expected Float32 "hidden" = (hidden,), got a NoneType\n'
        "      not a tensor: pass a torch.Tensor of shape [hidden]\n"
        '  w2: expected Float32 "out hidden" = (out, hidden), got float32 (2, 2)\n'
        "      it is sparse or nested: pass a dense tensor"
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])

    assert "it is sparse or nested: pass a dense tensor" in refusal(entries(x=Float[Tensor, "a b"]), [nested])


def test_a_wrong_rank_is_named_and_fixes_no_size() -> None:
    assert refusal(LAYERS, [torch.zeros(2), torch.zeros(5), torch.zeros(3, 5)]) == (
        "The batch breaks its signature in 1 of 3 entries.\n"
        '  w1: expected Float32 "hidden pixels" = (5, pixels), got float32 (2,)\n'
        "      rank 1 instead of 2"
    )


def test_a_fixed_size_is_fixed_by_the_annotation() -> None:
    assert refusal(entries(x=Float[Tensor, "batch 64"]), [torch.zeros(2, 60)]) == (
        "The batch breaks its signature in its one entry.\n"
        '  x: expected Float "batch 64" = (2, 64), got float32 (2, 60)\n'
        "      axis 64 is fixed by the annotation, not 60"
    )


@given(st.integers(1, 9), st.integers(1, 9))
def test_an_expression_fixes_the_one_name_that_it_leaves_open(dim: int, heads: int) -> None:
    expected = entries(up=Float[Tensor, "4*dim+heads"], heads=Float[Tensor, "heads"])
    binding = bind(expected, [torch.zeros(4 * dim + heads), torch.zeros(heads)], owner="MLP")

    assert binding.sizes == {"heads": heads, "dim": dim}


def test_an_expression_with_known_names_is_checked_and_says_who_fixed_them() -> None:
    expected = entries(w=Float[Tensor, "dim"], up=Float[Tensor, "dim 4*dim"])

    assert refusal(expected, [torch.zeros(8), torch.zeros(8, 30)]) == (
        "The batch breaks its signature in 1 of 2 entries.\n"
        '  up: expected Float "dim 4*dim" = (8, 32), got float32 (8, 30)\n'
        "      axis 4*dim is 32, dim = 8, set by w (8,)"
    )


@pytest.mark.parametrize(("dim", "size"), [("2*dim", 7), ("dim//4", 7), ("a*b", 7)])
def test_an_expression_that_fits_no_one_size_is_a_mismatch(dim: str, size: int) -> None:
    message = refusal(entries(x=Float[Tensor, dim]), [torch.zeros(size)])

    assert message.splitlines()[-1].startswith(f"      axis {dim} = 7 does not tell ")
    assert message.endswith("not exactly one size fits")


def test_a_division_by_a_size_that_is_zero_is_a_mismatch() -> None:
    message = refusal(entries(a=Float[Tensor, "a"], x=Float[Tensor, "8//a"]), [torch.zeros(0), torch.zeros(8)])

    assert message.endswith("axis 8//a is no whole number, a = 0, set by a (0,)")


def test_every_tensor_is_on_one_device() -> None:
    tensors = [torch.zeros(2, 3), torch.zeros(2, device="meta"), torch.zeros(4, 2)]

    assert refusal(LAYERS, tensors) == (
        "The batch breaks its signature in 1 of 3 entries.\n"
        '  b1: expected Float32 "hidden" = (2,), got float32 (2,)\n'
        "      on meta, the others on cpu: move it with .to('cpu')"
    )
    assert "move it with .to('meta')" in refusal(LAYERS, tensors, device=torch.device("meta"))


def test_names_that_are_known_already_are_kept_and_not_changed() -> None:
    start = Binding({"hidden": 2}, {"hidden": "w1 (2, 3)"})
    inputs = entries(x=Float[Tensor, "batch hidden"])
    binding = bind(inputs, [torch.zeros(5, 2)], owner="The batch", start=start)

    assert binding.sizes == {"hidden": 2, "batch": 5}
    assert start.sizes == {"hidden": 2}
    assert refusal(inputs, [torch.zeros(5, 3)], start=start).endswith("axis hidden is 2, set by w1 (2, 3)")


@pytest.mark.parametrize("given", [[], [torch.zeros(2)], [torch.zeros(2)] * 4], ids=len)
def test_a_wrong_number_of_tensors_shows_what_is_expected_and_what_came(given: list[Tensor]) -> None:
    assert refusal(LAYERS, given) == (
        f"The batch takes 3 tensors, got {len(given)}.\n"
        "  expected: w1 [hidden, pixels], b1 [hidden], w2 [out, hidden]\n"
        f"  got:      {', '.join(['float32 (2,)'] * len(given)) or 'nothing'}"
    )


def test_things_are_described_with_their_article() -> None:
    assert [describe(value) for value in (torch.zeros(2, 1), 3, "x", None)] == [
        "float32 (2, 1)",
        "an int",
        "a str",
        "a NoneType",
    ]
