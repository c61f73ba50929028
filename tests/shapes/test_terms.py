"""Terms are Python: what is printed reads back as the same term, and means what Python's own `eval` makes of it."""

import math
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaped import SignatureError
from shaped.shapes import PYTHON, Term

NAMES = ("batch", "seq", "experts", "n", "k")
BUILTINS = {"__builtins__": {}, **{name: function for name, function in PYTHON.items() if name.isalnum()}}

sizes = st.fixed_dictionaries({name: st.integers(1, 12) for name in NAMES})
leaves = st.sampled_from(NAMES).map(Term.name) | st.sampled_from([0, 1, 2, 3, 7, -1, -4, 0.5, -2.5, 1e-7]).map(
    Term.number
)


def wider(below: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    """Every operation that a size expression can have."""
    powers = st.sampled_from([0, 1, 2, 3]).map(Term.number)
    return st.one_of(
        st.builds(Term.of, st.sampled_from(["+", "-", "*", "//", "%", "/", "max", "min"]), below, below),
        st.builds(Term.of, st.sampled_from(["neg", "ceil", "floor", "int", "round", "sqrt", "log2", "abs"]), below),
        st.builds(Term.of, st.sampled_from(["**", "<<", ">>"]), below, powers),
        st.builds(Term.of, st.sampled_from(["&", "|", "^"]), below, below),
        st.builds(Term.of, st.just("max"), below, below, below),
    )


def joined(below: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    both = st.sampled_from(["and", "or"])
    return st.one_of(
        st.builds(Term.of, both, below, below),
        st.builds(Term.of, both, below, below, below),
        st.builds(Term.of, st.just("not"), below),
    )


expressions = st.recursive(leaves, wider, max_leaves=8)
comparisons = st.builds(Term.of, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), expressions, expressions)
relations = st.recursive(comparisons, joined, max_leaves=4)
choices = st.builds(Term.of, st.just("if"), relations, expressions, expressions)
terms = expressions | relations | choices | st.builds(Term.of, st.just("+"), choices, choices)


def outcome(function: Any, *args: Any) -> Any:
    """A value, or the kind of its error."""
    try:
        value = function(*args)
    except (ArithmeticError, ValueError, TypeError) as error:
        return type(error)
    return "nan" if isinstance(value, float) and math.isnan(value) else value


@settings(max_examples=300)
@given(terms)
def test_what_is_printed_reads_back_as_the_same_term(term: Term) -> None:
    assert Term.parse(str(term)) == term


@settings(max_examples=300)
@given(terms, sizes)
def test_a_term_means_what_python_makes_of_its_text(term: Term, values: dict[str, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python remarks on `not 3`
        code = compile(str(term), "<text>", "eval")
    expected = outcome(lambda: eval(code, dict(BUILTINS), values))

    assert outcome(term.evaluate, values) == expected


@pytest.mark.parametrize(
    ("text", "at", "value"),
    [
        ("batch*seq//(2*experts) >= 4", {"batch": 3, "seq": 5, "experts": 4}, False),
        ("batch*seq//2*experts >= 4", {"batch": 3, "seq": 5, "experts": 4}, True),
        ("n*k % (n*seq) != 0", {"n": 2, "k": 3, "seq": 2}, True),
        ("n*k % n*seq != 0", {"n": 2, "k": 3, "seq": 2}, False),
        ("3 % (n - 5)", {"n": 1}, -1),
        ("-n**2", {"n": 3}, -9),
        ("(-n)**2", {"n": 3}, 9),
        ("n - (k - 2)", {"n": 3, "k": 5}, 0),
    ],
)
def test_brackets_are_kept_where_they_carry_the_meaning(text: str, at: dict[str, int], value: int) -> None:
    assert Term.parse(text).evaluate(at) == value
    assert Term.parse(str(Term.parse(text))).evaluate(at) == value


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("batch * seq // (2 * experts)>=4", "batch*seq//(2*experts) >= 4"),
        ("(n // k) * seq", "(n//k)*seq"),
        ("n - ((k + 1) // 2)", "n - (k + 1)//2"),
        ("n + k % 2", "n + (k % 2)"),
        ("n * -2", "n*(-2)"),
        ("batch >= 2 or (seq >= 2 and n == 1)", "batch >= 2 or seq >= 2 and n == 1"),
    ],
)
def test_a_term_is_printed_as_people_write_it(text: str, printed: str) -> None:
    assert str(Term.parse(text)) == printed


@pytest.mark.parametrize("text", ["n / (k - k) == 1", "other == 1", "sqrt(0 - n) == 2"])
def test_a_relation_without_a_value_does_not_hold(text: str) -> None:
    assert not Term.parse(text).holds({"n": 3, "k": 2})


def test_an_operand_that_does_not_decide_is_not_evaluated() -> None:
    relation = Term.parse("k == 0 or n % k == 0")

    assert relation.holds({"n": 3, "k": 0})


@pytest.mark.parametrize("text", ["x.size(0)", "n == k == 2", "[n]", "open('f')", "n +", "'n'", "max()", "f(n)"])
def test_what_is_no_arithmetic_over_names_is_refused(text: str) -> None:
    with pytest.raises(SignatureError, match="is no expression over sizes"):
        Term.parse(text)
