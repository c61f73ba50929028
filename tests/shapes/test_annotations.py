"""jaxtyping annotations become specs; what cannot be one is refused with its place and what to write."""

from typing import Annotated, Any

import jaxtyping
import numpy
import pytest
import torch
from jaxtyping import AbstractDtype, Bool, Float, Float32, Int, Key, Num, Shaped
from torch import Tensor, nn

from shaped import SignatureError, dims
from shaped.shapes import Dim, compose, read_tensor, resolve_annotations, spell, split_annotated
from shaped.shapes.annotations import class_of

DTYPES = sorted(
    name
    for name, value in vars(jaxtyping).items()
    if isinstance(value, type) and issubclass(value, AbstractDtype) and value not in (AbstractDtype, Key)
    if name != "Float8e4m3b11fnuz"  # neither has torch
)


@pytest.mark.filterwarnings("ignore:.* support is experimental")
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_class_admits_the_torch_dtypes_that_jaxtyping_lets_through(name: str) -> None:
    kind = getattr(jaxtyping, name)
    admitted = read_tensor(kind[Tensor, "rows"], "x").dtypes
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    tried = {dtype for dtype in every if not str(dtype).startswith(("torch.q", "torch.bits", "torch.float4"))}
    let_through = {dtype for dtype in tried if isinstance(torch.empty(3, dtype=dtype), kind[Tensor, "rows"])}

    assert set(admitted) & tried == let_through
    assert admitted


def test_a_spec_has_the_named_fixed_and_computed_dimensions_of_its_annotation() -> None:
    spec = read_tensor(Float32[Tensor, "batch 3 2*dim rows=7"], "x")

    assert str(spec) == "[batch, 3, 2*dim, 7]"
    assert spec.quoted == 'Float32 "batch 3 2*dim 7"'
    assert spec.dtypes == (torch.float32,)
    assert read_tensor(Float[Tensor, ""], "x").dims == ()


def test_a_parameter_is_as_good_an_array_type_as_a_tensor() -> None:
    assert read_tensor(Float[nn.Parameter, "a"], "w").dims == (Dim("a"),)


@pytest.mark.parametrize(
    ("kind", "floating", "expected"),
    [
        (Float, None, torch.float32),
        (Float, torch.bfloat16, torch.bfloat16),
        (Float32, torch.bfloat16, torch.float32),
        (Int, torch.bfloat16, torch.int64),
        (Bool, None, torch.bool),
        (Num, torch.float64, torch.float64),
        (Shaped, None, torch.float32),
    ],
)
def test_the_default_dtype_is_the_wanted_one_where_it_is_admitted(
    kind: Any, floating: torch.dtype | None, expected: torch.dtype
) -> None:
    assert read_tensor(kind[Tensor, "a"], "x").default_dtype(floating) == expected


@pytest.mark.parametrize("name", ["Float32", "BFloat16", "UInt8", "Int64", "Bool", "Complex64", "Float8e4m3fn"])
def test_the_class_of_a_dtype_is_the_one_that_jaxtyping_has_for_it(name: str) -> None:
    dtype = read_tensor(getattr(jaxtyping, name)[Tensor, ""], "x").dtypes[0]

    assert class_of(dtype) == name


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            Float[Tensor, "... dim"],
            "x: `...` has no name, so an error cannot speak of its axes: write *batch",
        ),
        (
            Float[Tensor, "*_ dim"],
            "x: `*_` has no name, so an error cannot speak of its axes: write *batch",
        ),
        (Float[Tensor, "#batch"], "x: `#batch` is not supported: write the plain name, or 1 for a broadcast axis"),
        (Float[Tensor, "?batch"], "x: `?batch` is not supported: write the plain name, or 1 for a broadcast axis"),
        (Float[Tensor, "_ dim"], "x: `_` is an axis without a name; name it, so that an error can speak of it"),
        (Float[Tensor, "_b dim"], "x: `_b` is an axis without a name; name it, so that an error can speak of it"),
        (Float[Tensor, "dim/2"], "x: `dim/2` divides with /: sizes are whole numbers, write // instead"),
        (
            Float[numpy.ndarray, "a"],
            'x: the array type is `ndarray`, not torch.Tensor; write Float[Tensor, "batch pixels"]',
        ),
        (Float[Any, "a"], 'x: the array type is `Any`, not torch.Tensor; write Float[Tensor, "batch pixels"]'),
        (Key[Tensor, "a"], "x: torch has no dtype that is a Key"),
        (Tensor, 'x: `Tensor` has no shape; write for example Float[Tensor, "batch pixels"]'),
        (list[int], 'x: `list[int]` has no shape; write for example Float[Tensor, "batch pixels"]'),
        (None, 'x: `None` has no shape; write for example Float[Tensor, "batch pixels"]'),
    ],
    ids=str,
)
def test_what_cannot_be_a_spec_is_refused_with_what_to_write(annotation: Any, message: str) -> None:
    with pytest.raises(SignatureError) as caught:
        read_tensor(annotation, "x")

    assert str(caught.value) == message


def test_a_string_that_does_not_resolve_is_refused_with_the_name() -> None:
    def loss(x: "Floaty[Tensor, 'a']") -> None: ...  # type: ignore[name-defined]

    with pytest.raises(SignatureError) as caught:
        resolve_annotations(loss)

    assert str(caught.value) == (
        f"`{loss.__qualname__}`: an annotation is a string that does not resolve (name 'Floaty' is not defined); "
        "define or import the name at the top of the module, or drop `from __future__ import annotations`"
    )


def test_a_string_that_is_no_expression_is_refused() -> None:
    def loss(x: "Float[Tensor, ") -> None: ...  # type: ignore[valid-type]

    with pytest.raises(SignatureError, match="an annotation does not resolve: Forward reference must be an expression"):
        resolve_annotations(loss)


def test_dims_says_which_of_its_names_cannot_be_read() -> None:
    with pytest.raises(SignatureError) as caught:
        dims(cin="rgb/2")

    assert str(caught.value) == ("dims(cin='rgb/2'): `rgb/2` divides with /: sizes are whole numbers, write // instead")


def test_several_dims_compose_from_the_inside_out() -> None:
    inner = Annotated[int, dims(cin="c", cout="2*c")]
    bare, renames = split_annotated(Annotated[inner, dims(c="rgb + 1")])

    assert bare is int
    assert {name: str(dim) for name, dim in renames.items()} == {"c": "rgb+1", "cin": "rgb+1", "cout": "2*(rgb+1)"}
    assert split_annotated(int) == (int, {})


def test_to_compose_with_nothing_changes_nothing() -> None:
    renames = {"a": Dim.parse("2*b")}

    assert compose(renames, {}) == compose({}, renames) == renames


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Tensor, "Tensor"),
        (list[int], "list[int]"),
        (Float[Tensor, "a b"], "Float[Tensor, 'a b']"),
        ("int", "int"),
        (int | None, "int | None"),
    ],
)
def test_an_annotation_is_spelled_as_its_author_wrote_it(annotation: Any, text: str) -> None:
    assert spell(annotation) == text
