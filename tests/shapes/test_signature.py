"""Signatures: every annotated callable is read, whatever it is wrapped in; the rest is refused by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Union

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from shaped import ParamList, ShapeError, SignatureError
from shaped.shapes import read_signature


class Line(ParamList):
    w: Float[Tensor, "features"]


def scaled(p: Line, x: Float[Tensor, "batch features"], scale: float = 2.0) -> Float[Tensor, " batch"]:
    return x @ p.w * scale


def passed_through(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a wrapper runs inside a trace")

    return wrapper


class Scaled:
    def __call__(self, p: Line, x: Float[Tensor, "batch features"], scale: float = 2.0) -> Float[Tensor, " batch"]:
        return x @ p.w * scale

    def method(self, p: Line, x: Float[Tensor, "batch features"], scale: float = 2.0) -> Float[Tensor, " batch"]:
        return x @ p.w * scale


@pytest.mark.parametrize(
    "function",
    [
        scaled,
        passed_through(scaled),
        passed_through(passed_through(scaled)),
        jaxtyped(typechecker=beartype)(scaled),
        functools.partial(scaled, scale=2.0),
        Scaled(),
        Scaled().method,
    ],
    ids=["plain", "wrapped", "wrapped twice", "jaxtyped", "partial", "callable object", "bound method"],
)
def test_a_callable_is_read_and_called_whatever_it_is_wrapped_in(function: Callable[..., Any]) -> None:
    signature = read_signature(function)
    w, x = torch.ones(3), torch.ones(2, 3)

    assert [entry.path for entry in signature.entries] == ["w", "x"]
    assert [argument.kind for argument in signature.arguments] == ["parameters", "tensor", "static"]
    assert str(signature).endswith(" : Line, [batch, features] -> [batch]")
    assert signature.call([w, x]).tolist() == [6.0, 6.0]


def test_keyword_only_arguments_are_passed_by_name() -> None:
    def loss(x: Float[Tensor, " a"], *, y: Float[Tensor, " a"], minus: bool = True) -> Float[Tensor, " a"]:
        return x - y if minus else x + y

    signature = read_signature(loss)

    assert [argument.keyword for argument in signature.arguments] == [False, True, True]
    assert signature.call([torch.tensor([3.0]), torch.tensor([1.0])]).item() == 2.0


def test_a_plain_argument_with_a_default_of_none_is_static() -> None:
    def loss(x: Float[Tensor, " a"], rate: float | None = None) -> Float[Tensor, " a"]:
        return x if rate is None else x * rate

    assert [argument.kind for argument in read_signature(loss).arguments] == ["tensor", "static"]


def test_a_tuple_of_tensors_is_a_result() -> None:
    def both(x: Float[Tensor, "a b"]) -> tuple[Float[Tensor, " a"], Float[Tensor, ""]]:
        return x.sum(1), x.sum()

    signature = read_signature(both)

    assert len(signature.result) == 2
    assert str(signature) == "both : [a, b] -> [a], scalar"


def test_an_entry_knows_the_line_that_declares_it() -> None:
    params, inputs = read_signature(scaled).entries
    field = inspect.getsourcelines(Line)[1] + 1

    assert params.origin == (__file__, field)
    assert inputs.origin == (__file__, inspect.getsourcelines(scaled)[1])


def no_result(x: Float[Tensor, " a"]): ...  # type: ignore[no-untyped-def]
def unannotated(x, y: Float[Tensor, " a"]) -> Float[Tensor, " a"]: ...  # type: ignore[no-untyped-def, empty-body]
def many(*xs: Float[Tensor, " a"]) -> Float[Tensor, ""]: ...  # type: ignore[empty-body]
def named(**xs: Float[Tensor, " a"]) -> Float[Tensor, ""]: ...  # type: ignore[empty-body]
def plain(x: Float[Tensor, " a"], scale: bool) -> Float[Tensor, ""]: ...  # type: ignore[empty-body]
def bare(x: Tensor) -> Float[Tensor, ""]: ...  # type: ignore[empty-body]
def base(p: ParamList) -> Float[Tensor, ""]: ...  # type: ignore[empty-body]
def nothing(x: Float[Tensor, " a"]) -> None: ...
def wrong_result(x: Float[Tensor, " a"]) -> tuple[Float[Tensor, ""], int]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_result, '`no_result` has no return annotation; a loss returns Float[Tensor, ""]'),
        (
            unannotated,
            '`unannotated`, argument `x` has no annotation; write for example `x: Float[Tensor, "batch features"]`',
        ),
        (
            many,
            "`many`, argument `xs`: name each argument instead of *xs; a signature is fixed",
        ),
        (
            named,
            "`named`, argument `xs`: name each argument instead of **xs; a signature is fixed",
        ),
        (plain, "`plain`, argument `scale` is a plain bool: give it a default, which the proof then uses"),
        (
            bare,
            "`bare`, argument `x`: `Tensor` has no shape; "
            'annotate it as a ParamList or as Float[Tensor, "batch features"]',
        ),
        (base, "`base`, argument `p`: ParamList declares no entries; annotate with the class that is passed"),
        (
            nothing,
            "`nothing`, its result: `NoneType` has no shape; "
            'annotate it as a ParamList or as Float[Tensor, "batch features"]',
        ),
        (
            wrong_result,
            "`wrong_result`, its result, `result[1]`: `int` has no shape; "
            'annotate it as a ParamList or as Float[Tensor, "batch features"]',
        ),
        (3, "3 is not a function with annotated arguments"),
        (Line, "`Line` is a class, not a function with annotated arguments"),
        (torch.relu, "`relu` is built in and says nothing of its shapes: wrap it in a function"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_what_is_not_annotated_is_refused_with_what_to_write(function: Any, message: str) -> None:
    with pytest.raises(SignatureError) as caught:
        read_signature(function)

    assert str(caught.value) == message


def test_an_integer_input_has_its_own_dtypes() -> None:
    def f(y: Int[Tensor, " a"]) -> Int[Tensor, " a"]:
        return y

    assert read_signature(f).entries[0].spec.default_dtype() == torch.int64


def weighed(x: Float[Tensor, "b"], beta: float, n: int, m: Float[Tensor, "b"] | None = None) -> Float[Tensor, "b"]:
    return x * beta * n if m is None else x * beta * n * m


def test_a_plain_number_without_a_default_is_an_input_without_axes():
    found = {entry.path: entry.spec.quoted for entry in read_signature(weighed).entries}

    assert found == {"x": 'Float "b"', "beta": 'Float ""', "n": 'Int ""', "m": 'Float "b"'}


def test_an_optional_input_that_is_left_out_is_none_for_each_of_its_tensors():
    signature = read_signature(weighed)

    assert signature.arrange(["x", "beta"], {"n": "n"}) == ["x", "beta", "n", None]
    assert [entry.path for entry in signature.without(["m"]).entries] == ["x", "beta", "n"]
    assert signature.without(["m"]).call([torch.ones(2), 3.0, 2]).tolist() == [6.0, 6.0]


@pytest.mark.parametrize("annotation", [Float[Tensor, "b"] | None, Union[None, Float[Tensor, "b"]]])  # noqa: UP007
def test_an_input_with_none_in_its_annotation_may_be_none_without_a_default(annotation):
    def masked(m: annotation) -> Float[Tensor, "b"]:  # type: ignore[valid-type]
        raise AssertionError

    assert read_signature(masked).arrange([None], {}) == [None]


def test_a_default_number_stands_for_an_input_without_axes():
    def scaled(x: Float[Tensor, "b"], t: Float[Tensor, ""] = 2.0) -> Float[Tensor, "b"]:  # type: ignore[assignment]
        return x * t

    def wrong(x: Float[Tensor, "b"] = 2.0) -> Float[Tensor, "b"]:  # type: ignore[assignment]
        return x

    assert read_signature(scaled).arrange(["x"], {}) == ["x", 2.0]
    with pytest.raises(SignatureError, match=r"`x` has the default 2\.0: the default of an input is a number where"):
        read_signature(wrong)


def test_a_plain_value_with_a_default_says_how_it_becomes_an_input():
    def smoothed(x: Float[Tensor, "b"], by: float = 0.1) -> Float[Tensor, "b"]:
        return x * by

    with pytest.raises(ShapeError, match="`by` is a plain value, and the proof is for its default"):
        read_signature(smoothed).arrange(["x"], {"by": 0.2})
