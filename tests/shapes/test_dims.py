"""Dimension expressions: they mean what Python's integer arithmetic means, and solving inverts evaluating."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shaped import SignatureError
from shaped.shapes import Dim

NAMES = ("batch", "dim", "heads", "α")
sizes = st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES})
leaves = st.sampled_from(NAMES) | st.integers(0, 9).map(str)
expressions = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", " + ", " // "]), inner).map(
            lambda parts: f"({parts[0]}){parts[1]}({parts[2]})"
        )
        | inner.map(lambda text: f"-({text})")
        | st.tuples(inner, st.integers(0, 3)).map(lambda parts: f"({parts[0]})**{parts[1]}")
    ),
    max_leaves=6,
)


def parsed(text: str) -> Dim:
    try:
        return Dim.parse(text)
    except SignatureError as error:
        assume("divides by zero" not in str(error))
        raise


def python_value(text: str, values: dict[str, int]) -> int:
    try:
        return int(eval(text, {}, values))
    except ZeroDivisionError:
        assume(False)
        raise


@given(expressions, sizes)
def test_an_expression_evaluates_as_python_does_and_so_does_its_printed_text(text: str, values: dict[str, int]) -> None:
    expected = python_value(text, values)
    dim = parsed(text)

    assert dim.evaluate(values) == expected
    assert Dim.parse(str(dim)) == dim
    assert Dim.parse(str(dim)).evaluate(values) == expected


@given(expressions, sizes)
def test_what_solve_gives_evaluates_back_to_the_value(text: str, values: dict[str, int]) -> None:
    value = python_value(text, values)
    dim = parsed(text)
    for unknown in dim.names:
        known = {name: size for name, size in values.items() if name != unknown}
        solved = dim.solve(value, known)

        assert solved is None or dim.evaluate({**known, solved[0]: solved[1]}) == value


@given(st.integers(1, 20), st.integers(-20, 20), st.integers(1, 50))
def test_a_linear_expression_is_solved_for_its_one_unknown_name(slope: int, offset: int, size: int) -> None:
    dim = Dim.parse(f"{slope}*dim + heads - {offset}" if offset >= 0 else f"{slope}*dim + heads + {-offset}")

    assert dim.solve(slope * size + 3 - offset, {"heads": 3}) == ("dim", size)


@pytest.mark.parametrize("text", ["dim//8", "dim%2000", "dim**2", "dim*heads", "dim - dim", "8"])
def test_a_value_that_several_sizes_give_is_not_solved(text: str) -> None:
    assert Dim.parse(text).solve(8, {}) is None


def test_a_value_that_no_size_gives_is_not_solved() -> None:
    assert Dim.parse("2*dim").solve(7, {}) is None
    assert Dim.parse("dim + 5").solve(3, {}) is None


@given(expressions, expressions, sizes)
def test_to_substitute_and_evaluate_is_to_evaluate_twice(text: str, inner: str, values: dict[str, int]) -> None:
    value = python_value(inner, values)
    expected = python_value(text, {**values, "dim": value})
    try:
        substituted = parsed(text).substitute({"dim": parsed(inner)})
    except SignatureError as error:  # the substituted expression holds a division by a literal zero
        assume("divides by zero" not in str(error))
        raise

    assert substituted.evaluate(values) == expected


def test_texts_with_other_spaces_and_parentheses_are_one_dimension() -> None:
    assert Dim.parse(" 2 * (dim) ") == Dim.parse("2*dim")
    assert Dim.parse("2*3") == Dim.parse("6")
    assert Dim.parse("ﬁ") == Dim.parse("fi"), "identifiers are normalised as Python normalises them"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim/2", "`dim/2` divides with /: sizes are whole numbers, write // instead"),
        ("dim//0", "`dim//0` divides by zero"),
        ("3%(1-1)", "`3%(1-1)` divides by zero"),
        ("dim +", "`dim +` is not a dimension: write a name, an integer, or 2*dim, dim//heads"),
        ("", "`` is not a dimension: write a name, an integer, or 2*dim, dim//heads"),
        ("f(dim)", "`f(dim)` is not a dimension: only names, integers, + - * // % and ** are allowed"),
        ("2.5", "`2.5` is not a dimension: only names, integers, + - * // % and ** are allowed"),
        ("True", "`True` is not a dimension: only names, integers, + - * // % and ** are allowed"),
        ("9**9**9", "`9**9**9`: a power is a number from 0 to 9, as in size**2"),
        ("2**dim", "`2**dim`: a power is a number from 0 to 9, as in size**2"),
    ],
)
def test_what_is_no_integer_arithmetic_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(SignatureError) as caught:
        Dim.parse(text)

    assert str(caught.value) == message
