"""How entries are drawn: by seed and path, in the dtype that fits, at sizes that are given."""

import math
from typing import Any, cast

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import BFloat16, Float, Float32, Int
from torch import Tensor

from shaped import ParamList, SignatureError, init
from tests.parameter_lists import MLP, bits, declare, gpt, message, mlp


@given(st.integers(-(2**70), 2**70))
def test_init_is_a_function_of_the_seed(seed: int) -> None:
    assert bits(mlp(seed=seed)) == bits(mlp(seed=seed))
    assert bits(mlp(seed=seed)) != bits(mlp(seed=seed + 1))


def test_init_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    mlp()

    assert torch.equal(torch.get_rng_state(), before)


def test_adding_an_entry_changes_no_other() -> None:
    class Wider(ParamList):
        first: Float[Tensor, "pixels pixels"]
        w1: Float[Tensor, "pixels hidden"]
        w2: Float[Tensor, "hidden classes"]

    wide, params = Wider.init(pixels=3, hidden=2, classes=4), mlp()

    assert torch.equal(wide.w1, params.w1)
    assert torch.equal(wide.w2, params.w2)


def test_a_declared_initialiser_is_used_and_otherwise_matrices_are_drawn_and_vectors_are_zero() -> None:
    class Plain(ParamList):
        w: Float[Tensor, "a b"]
        b: Float[Tensor, " b"]

    plain = Plain.init(a=3, b=2)

    assert mlp().b1.tolist() == [1.0, 1.0]
    assert plain.b.tolist() == [0.0, 0.0]
    assert 0 < plain.w.abs().max() <= 1 / math.sqrt(3)


def test_the_dtype_is_that_of_the_entries_that_admit_it() -> None:
    class Mixed(ParamList):
        w: Float[Tensor, " a"]
        norm: Float32[Tensor, " a"]
        n: Int[Tensor, " a"]

    params = Mixed.init(a=2, dtype=torch.bfloat16)

    assert [t.dtype for t in params] == [torch.bfloat16, torch.float32, torch.int64]
    assert mlp(dtype=torch.float64).w1.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dtype": torch.int64}, ValueError, "dtype is torch.int64; it is a floating-point torch.dtype"),
        ({"dtype": "float32"}, ValueError, "dtype is 'float32'; it is a floating-point torch.dtype"),
        (
            {"dtype": torch.complex64},
            SignatureError,
            'dtype is torch.complex64, which no entry admits: `w1: Float "pixels hidden"`, `b1: Float "hidden"` and '
            '`w2: Float "hidden classes"`',
        ),
        ({"seed": 1.5}, ValueError, "seed is 1.5; it is a whole number"),
        ({"seed": None}, ValueError, "seed is None; it is a whole number"),
    ],
)
def test_an_option_of_init_that_is_not_usable_is_refused(options: Any, error: Any, text: str) -> None:
    assert message(error, lambda: mlp(**options)) == text


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_refused_with_torchs_reason(device: Any) -> None:
    assert message(ValueError, lambda: mlp(device=device)).startswith(f"device '{device}' cannot be used: ")


def test_all_that_is_wrong_with_sizes_is_reported_at_once() -> None:
    assert message(SignatureError, lambda: MLP.init(pixels=0, hiden=2, classes=cast(int, 2.5))) == (
        "MLP has the dimensions `pixels`, `hidden` and `classes`: `hidden` missing; "
        "`hiden` is not one of them; did you mean `hidden`?; pixels = 0 is not a positive whole number; "
        "classes = 2.5 is not a positive whole number"
    )
    assert message(SignatureError, lambda: gpt(blocks=-1)).endswith("blocks = -1 is not a whole number")


@pytest.mark.parametrize("size", [numpy.int64(3), torch.tensor(3)])
def test_any_whole_number_is_a_size(size: Any) -> None:
    assert mlp(pixels=size).dims["pixels"] == 3
    assert type(mlp(pixels=size).dims["pixels"]) is int


@pytest.mark.parametrize("size", [3.0, "3", True, None, torch.tensor(3.0)])
def test_nothing_else_is_a_size(size: Any) -> None:
    assert f"pixels = {size!r} is not a positive whole number" in message(SignatureError, lambda: mlp(pixels=size))


def test_a_dimension_named_like_an_option_of_init_is_explained() -> None:
    assert message(SignatureError, declare(w=Float[Tensor, "seed"]).init) == (
        "Bad has the dimensions `seed`: `seed` missing; `seed` is the name of an argument of init"
    )


@pytest.mark.parametrize(
    ("annotation", "sizes", "text"),
    [
        (Float[Tensor, "a-5"], {"a": 3}, "w : [a-5] would have the shape (-2,)"),
        (Float[Tensor, "a//b"], {"a": 1, "b": 2}, "w : [a//b] would have the shape (0,)"),
        (Float[Tensor, "a//(b-2)"], {"a": 1, "b": 2}, "w : [a//(b-2)] divides by zero at these sizes"),
        (Float[Tensor, "a"], {"a": 10**30}, f"w : [a] would have the shape ({10**30},)"),
    ],
)
def test_sizes_that_give_no_shape_are_refused(annotation: Any, sizes: Any, text: str) -> None:
    assert message(SignatureError, lambda: declare(w=annotation).init(**sizes)) == text


def test_an_initialiser_that_refuses_a_shape_says_for_which_entry() -> None:
    class Bad(ParamList):
        w: Float[Tensor, " a"] = init.orthogonal()

    assert message(SignatureError, lambda: Bad.init(a=2)) == (
        "w : [a] = (2,) by init.orthogonal(1.0): init.orthogonal needs rank 2 or more, and the shape is (2,)"
    )


def test_a_narrow_annotation_draws_in_its_own_dtype() -> None:
    assert declare(w=BFloat16[Tensor, "a b"]).init(a=2, b=2)[0].dtype == torch.bfloat16
