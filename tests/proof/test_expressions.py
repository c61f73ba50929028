"""A size that torch's sympy holds, the term that is made of it, its text, and `assume`: one meaning in all four."""

import itertools
import operator
from typing import Any

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Max, Min, PythonMod

from shaped.proof.conditions import Assumption
from shaped.proof.expressions import sympy_of, term_of, without_fractions
from shaped.proof.symbolic import Plan, World
from shaped.shapes import Dim, Term
from tests.proof.test_arithmetic import RELATIONS, value

NAMES = ("a", "b", "c")
SYMBOLS = {name: sympy.Symbol(name, integer=True, positive=True) for name in NAMES}
leaves = st.sampled_from(list(SYMBOLS.values())) | st.sampled_from([1, 2, 3, 4, 6, -1, -3]).map(sympy.Integer)
points = st.fixed_dictionaries({name: st.integers(1, 12) for name in NAMES})


def nonzero(operation: Any) -> Any:
    def divided(a: Any, b: Any) -> Any:
        assume(b != 0)
        return operation(a, b)

    return divided


def wider(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Size expressions one operation deeper, divisors of any form."""
    operations = [operator.add, operator.sub, operator.mul, nonzero(FloorDiv), nonzero(PythonMod), Max, Min]
    return st.one_of(
        st.tuples(st.sampled_from(operations), below, below).map(lambda parts: parts[0](parts[1], parts[2])),
        below.map(lambda size: size**2),
    )


expressions = st.recursive(leaves, wider, max_leaves=6)


def made(kind: Any, left: Any, right: Any) -> Any:
    fact = kind(left, right)
    assume(fact not in (sympy.true, sympy.false))
    return fact


facts = st.builds(made, st.sampled_from(list(RELATIONS)), expressions, expressions)


def true_at(fact: Any, sizes: dict[str, int]) -> bool:
    at = {SYMBOLS[name]: size for name, size in sizes.items()}
    return bool(RELATIONS[type(fact)](*(value(side, at) for side in fact.args)))


@settings(max_examples=200, deadline=None)
@given(expressions, points)
def test_a_size_is_the_same_number_in_sympy_and_as_a_term(size: Any, sizes: dict[str, int]) -> None:
    try:
        expected = value(size, {SYMBOLS[name]: n for name, n in sizes.items()})
    except ZeroDivisionError:
        return

    assert term_of(size).evaluate(sizes) == expected
    assert Term.parse(str(term_of(size))) == term_of(size)


@settings(max_examples=200, deadline=None)
@given(facts, points)
def test_a_condition_reads_back_in_assume_as_what_it_was(fact: Any, sizes: dict[str, int]) -> None:
    term = term_of(fact)
    try:
        expected = true_at(fact, sizes)
    except ZeroDivisionError:
        return

    assert term.holds(sizes) == expected
    assert Assumption.parse(str(term)).term == term


@settings(max_examples=200, deadline=None)
@given(facts, points)
def test_a_term_in_sympy_is_true_where_the_fact_is(fact: Any, sizes: dict[str, int]) -> None:
    try:
        back, expected = sympy_of(term_of(fact), SYMBOLS), true_at(fact, sizes)
    except ZeroDivisionError:
        return
    if back in (sympy.true, sympy.false):
        assert (back is sympy.true) == expected
    else:
        assert true_at(back, sizes) == expected


quotients = st.sampled_from(["q", "q*heads", "q*heads + rest", "q*q", "q*batch", "3", "heads", "batch", "q - 1"])


@settings(max_examples=100, deadline=None)
@given(st.lists(quotients, min_size=2, max_size=2), st.sampled_from(["+", "*", "//", "%", "-"]), st.integers(0, 1))
def test_a_size_over_a_quotient_is_written_over_the_name_that_it_divides(
    sides: list[str], operation: str, rest: int
) -> None:
    plan = Plan({"dim": 48, "heads": 6, "batch": 7}, multiples={"dim": Dim("heads")}, rests={"dim": rest})
    world = World(("dim", "heads", "batch"), plan)
    symbols = {name: symbol for symbol, name in world.symbols.items()}
    inner = {"q": symbols["dim//heads"], "heads": symbols["heads"], "batch": symbols["batch"], "rest": rest}
    term = Term.parse(f"({sides[0]}) {operation} ({sides[1]})")
    shown = world.term(sympy_of(term, {name: sympy.sympify(size) for name, size in inner.items()}))
    for q, heads, batch in itertools.product((2, 3, 5), (2, 3, 4), (2, 3)):
        meant = term.evaluate({"q": q, "heads": heads, "batch": batch, "rest": rest})

        assert shown.evaluate({"dim": q * heads + rest, "heads": heads, "batch": batch}) == meant, str(shown)


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (lambda a, b, c: sympy.Ge(FloorDiv(a * b, 2 * c), 4), "a*b//(2*c) >= 4"),
        (lambda a, b, c: sympy.Ne(PythonMod(a * b, a * c + 1), 0), "a*b % (a*c + 1) != 0"),
        (lambda a, b, c: sympy.Eq(PythonMod(a, b * c), 0), "a % (b*c) == 0"),
        (lambda a, b, c: sympy.Eq(PythonMod(3, a + b), 0), "3 % (a + b) == 0"),
        (lambda a, b, c: sympy.Eq(a - FloorDiv(a + 1, 2), FloorDiv(a + 1, 2)), "a - (a + 1)//2 == (a + 1)//2"),
        (lambda a, b, c: sympy.Ne(a, Max(1, b - c)), "a != max(1, b - c)"),
        (lambda a, b, c: sympy.Le(3, a), "a >= 3"),
        (lambda a, b, c: sympy.Eq(a / 2, b, evaluate=False), "a == 2*b"),
    ],
)
def test_a_relation_is_printed_with_the_brackets_that_it_needs(fact: Any, text: str) -> None:
    assert str(term_of(without_fractions(fact(*SYMBOLS.values())))) == text
