"""Facts about sizes: whatever is shown is true at every size, and the facts that programs need are shown."""

import itertools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import (
    CeilToInt,
    FloatTrueDiv,
    FloorDiv,
    FloorToInt,
    Max,
    Min,
    Mod,
    PythonMod,
    ToFloat,
)

from shaped.proof.arithmetic import constant, holds, nonnegative
from shaped.proof.relations import tidy
from shaped.proof.rounded import whole

A, B = sympy.symbols("a b", integer=True, positive=True)
BATCH, HEIGHT, WIDTH, DIM, HEADS, LENGTH, TIME, KERNEL = sympy.symbols(
    "batch height width dim heads length time kernel", integer=True, positive=True
)
SIZES = [dict(zip((A, B), sizes, strict=True)) for sizes in itertools.product(range(2, 13), repeat=2)]
ORDERS: dict[Any, Callable[[int, int], bool]] = {
    sympy.Ge: operator.ge,
    sympy.Gt: operator.gt,
    sympy.Le: operator.le,
    sympy.Lt: operator.lt,
}
RELATIONS = {**ORDERS, sympy.Eq: operator.eq, sympy.Ne: operator.ne}

numbers = st.integers(1, 5)
atoms = st.sampled_from([A, B]) | numbers.map(sympy.Integer)


def wider(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Size expressions one operation deeper, as programs make them."""
    return st.one_of(
        st.builds(operator.add, below, below),
        st.builds(operator.sub, below, below),
        st.builds(operator.mul, below, atoms),
        st.builds(FloorDiv, below, numbers.map(sympy.Integer)),
        st.builds(PythonMod, below, numbers.map(sympy.Integer)),
        st.builds(FloorDiv, below, st.sampled_from([A, B])),
        st.builds(PythonMod, below, st.sampled_from([A, B])),
        st.builds(Max, below, atoms),
        st.builds(Min, below, atoms),
    )


expressions = st.recursive(atoms, wider, max_leaves=5)
simple = st.recursive(atoms, lambda below: st.builds(operator.add, below, below), max_leaves=3)


def value(expression: Any, sizes: dict[Any, int]) -> int:
    """Python's own arithmetic on the tree: what a size is when the program runs."""
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return sizes[expression]
    parts = [value(part, sizes) for part in expression.args]
    name = type(expression).__name__
    if name == "FloorDiv":
        return parts[0] // parts[1]
    if name in ("PythonMod", "Mod"):
        return parts[0] % parts[1]
    if name in ("Max", "Min"):
        return max(parts) if name == "Max" else min(parts)
    result = parts[0]
    for part in parts[1:]:
        result = {"Add": operator.add, "Mul": operator.mul, "Pow": operator.pow}[name](result, part)
    return result


Fact = tuple[Any, Any, Any]  # relation, left, right


def related(sides: st.SearchStrategy[Any], kinds: Iterable[Any]) -> st.SearchStrategy[Fact]:
    return st.tuples(st.sampled_from(list(kinds)), sides, sides)


def true_at(fact: Fact, sizes: dict[Any, int]) -> bool:
    kind, left, right = fact
    return bool(RELATIONS[kind](value(left, sizes), value(right, sizes)))


@settings(max_examples=400)
@given(fact=related(expressions, RELATIONS), known=st.lists(related(simple, ORDERS), max_size=2))
def test_what_holds_is_true_at_every_size_that_satisfies_what_is_given(fact: Fact, known: list[Fact]):
    shown = holds(fact[0](*fact[1:]), [k[0](*k[1:]) for k in known])
    if shown:
        wrong = [s for s in SIZES if all(true_at(k, s) for k in known) and not true_at(fact, s)]

        assert not wrong, f"{fact} given {known} is false at {wrong[0]}"


@settings(max_examples=300)
@given(expression=expressions, known=st.lists(related(simple, ORDERS), max_size=2), data=st.data())
def test_no_bound_is_shown_that_is_above_the_least_value(expression: Any, known: list[Fact], data: st.DataObject):
    values = [value(expression, s) for s in SIZES if all(true_at(k, s) for k in known)]
    if not values:
        return
    given_facts = [k[0](*k[1:]) for k in known]
    met = data.draw(st.sampled_from(sorted(set(values))))

    assert not holds(sympy.Ge(expression, min(values) + 1), given_facts)
    assert not holds(sympy.Lt(expression, max(values)), given_facts)
    assert not holds(sympy.Ne(expression, met), given_facts)


@settings(max_examples=300)
@given(expression=expressions)
def test_a_constant_is_the_value_at_every_size(expression: Any):
    found = constant(expression)
    if found is not None:
        assert {value(expression, sizes) for sizes in SIZES} == {int(found)}


@settings(max_examples=300)
@given(expression=expressions, low=st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_what_is_shown_nonnegative_is_so_from_the_smallest_sizes_on(expression: Any, low: tuple[int, int]):
    if nonnegative(expression, dict(zip((A, B), low, strict=True))):
        for a, b in itertools.product(range(low[0], low[0] + 9), range(low[1], low[1] + 9)):
            try:
                found = value(expression, {A: a, B: b})
            except ZeroDivisionError:  # no size there at all
                continue

            assert found >= 0


SHOWN: list[tuple[Any, tuple[Any, ...]]] = [  # facts that programs need, and what is given for them
    # sizes and products of at least 2
    (sympy.Ge(TIME - 1, 1), ()),
    (sympy.Ne(BATCH * TIME, 1), ()),
    (sympy.Ge(BATCH * TIME * DIM, TIME * DIM), ()),
    (sympy.Ge(BATCH**2, BATCH), ()),
    (sympy.And(sympy.Ge(BATCH, 2), sympy.Ge(BATCH + TIME, 4)), ()),
    (sympy.Le(BATCH * TIME * DIM, 2**63 - 1), ()),  # torch asks; no tensor is that large
    # pooling and strides
    (sympy.Ge(FloorDiv(HEIGHT, 2), 1), ()),
    (sympy.Lt(FloorDiv(HEIGHT, 2), HEIGHT), ()),
    (sympy.Le(2 * FloorDiv(HEIGHT, 2), HEIGHT), ()),
    (sympy.Ge(FloorDiv(HEIGHT, 2) * FloorDiv(WIDTH, 2), FloorDiv(WIDTH, 2)), ()),
    (sympy.Ge(FloorDiv(HEIGHT, 2) * FloorDiv(WIDTH, 2), 1), ()),
    (sympy.Ge(FloorDiv(FloorDiv(HEIGHT, 2), 2), 1), (sympy.Ge(HEIGHT, 4),)),
    (sympy.Gt(FloorDiv(HEIGHT - 3, 2) + 1, 0), (sympy.Ge(HEIGHT, 3),)),
    (sympy.Eq(FloorDiv(HEIGHT - 1, 2) + 1, FloorDiv(HEIGHT + 1, 2)), ()),
    (sympy.Eq(FloorDiv(HEIGHT, 2) + FloorDiv(HEIGHT + 1, 2), HEIGHT), ()),
    (sympy.Eq(2 * FloorDiv(HEIGHT, 2) + PythonMod(HEIGHT, 2), HEIGHT), ()),
    (sympy.Lt(2 * FloorDiv(HEIGHT + WIDTH, 2), HEIGHT + WIDTH + 1), ()),
    (sympy.Ge(HEIGHT**2, FloorDiv(HEIGHT**2, 3) + 1), ()),
    (sympy.Ge(HEIGHT**2 * WIDTH, FloorDiv(HEIGHT**2 * WIDTH, 3) + 1), ()),
    (sympy.Lt(3 * FloorDiv(HEIGHT + 2 * WIDTH - 1, 3), HEIGHT + 2 * WIDTH), ()),
    (sympy.Ge((HEIGHT - 2) * (WIDTH - 2), WIDTH - 2), (sympy.Ge(HEIGHT, 3), sympy.Ge(WIDTH, 3))),
    (sympy.Ge(4 * FloorDiv(LENGTH + 3, 4), LENGTH), ()),
    # windows over time
    (sympy.Gt(TIME - KERNEL + 1, 0), (sympy.Ge(TIME, KERNEL),)),
    (sympy.Gt(TIME - KERNEL + 1, 0), (sympy.Le(KERNEL, TIME),)),
    (sympy.Ne(TIME - KERNEL + 1, 0), (sympy.Ge(TIME, KERNEL),)),
    (sympy.Ge(TIME - KERNEL, 1), (sympy.Gt(TIME, KERNEL),)),
    (sympy.Gt(TIME - 2 * KERNEL + 2, 0), (sympy.Ge(TIME, 2 * KERNEL - 1),)),
    (sympy.Ge(FloorDiv(TIME - KERNEL, 2) + 1, 1), (sympy.Ge(TIME, KERNEL),)),
    # chunk and split
    (sympy.Eq(FloorDiv(BATCH * LENGTH + LENGTH - 1, LENGTH), BATCH), ()),
    (sympy.Eq(FloorDiv(3 * DIM - 1, DIM), 2), ()),
    (sympy.Eq(FloorDiv(BATCH, BATCH + 1), 0), ()),
    (sympy.Eq(PythonMod(BATCH, BATCH + 1), BATCH), ()),
    (sympy.Lt(PythonMod(TIME, 4), 4), ()),
    (sympy.Ge(FloorDiv(DIM, HEADS), 1), (sympy.Ge(DIM, HEADS),)),
    # what follows from what is given
    (sympy.Lt(TIME, LENGTH + 1), (sympy.Le(TIME, LENGTH),)),
    (sympy.Le(BATCH * TIME, BATCH * LENGTH), (sympy.Le(TIME, LENGTH),)),
    (sympy.Le(TIME, DIM), (sympy.Le(TIME, LENGTH), sympy.Le(LENGTH, DIM))),
    (sympy.Or(sympy.Ge(BATCH, 3), sympy.Ge(TIME, 3)), (sympy.Ge(TIME, 4),)),
    (sympy.Or(sympy.Ge(BATCH, 3), sympy.Ge(TIME, 3)), (sympy.Or(sympy.Ge(BATCH, 3), sympy.Ge(TIME, 5)),)),
]


@pytest.mark.parametrize(("fact", "known"), SHOWN, ids=str)
def test_a_fact_that_programs_need_is_shown(fact: Any, known: tuple[Any, ...]):
    assert holds(fact, known)


NOT_SHOWN: list[tuple[Any, tuple[Any, ...]]] = [  # as near to the above as can be, and false somewhere
    (sympy.Ge(TIME - 1, 2), ()),
    (sympy.Ge(FloorDiv(HEIGHT, 2), 2), ()),
    (sympy.Ge(2 * FloorDiv(HEIGHT + WIDTH, 2), HEIGHT + WIDTH), ()),
    (sympy.Ge(FloorDiv(HEIGHT, 4), 1), (sympy.Ge(HEIGHT, 3),)),
    (sympy.Gt(TIME - KERNEL + 1, 0), ()),
    (sympy.Gt(TIME - KERNEL, 0), (sympy.Ge(TIME, KERNEL),)),
    (sympy.Gt(TIME - KERNEL, 0), (sympy.Ge(TIME, DIM),)),
    (sympy.Eq(FloorDiv(3 * DIM + 2, DIM), 3), ()),
    (sympy.Eq(PythonMod(BATCH, LENGTH), BATCH), ()),
    (sympy.Or(sympy.Ge(BATCH, 3), sympy.Ge(TIME, 3)), ()),
    (sympy.Or(sympy.Ge(BATCH, 3), sympy.Ge(TIME, 3)), (sympy.Or(sympy.Ge(BATCH, 3), sympy.Ge(TIME, 2)),)),
    (sympy.And(sympy.Ge(BATCH, 2), sympy.Ge(TIME, 3)), ()),
    (sympy.Le(TIME, LENGTH), (sympy.Le(LENGTH, TIME),)),
    (sympy.Ge(BATCH, 2**40), ()),
]


@pytest.mark.parametrize(("fact", "known"), NOT_SHOWN, ids=str)
def test_a_fact_that_is_false_at_some_size_is_not_shown(fact: Any, known: tuple[Any, ...]):
    assert not holds(fact, known)


def test_the_smallest_size_of_a_symbol_may_be_another_than_2():
    fact = sympy.Ge(TIME - 2, 0)

    assert holds(fact)
    assert not holds(fact, least={TIME: 1})
    assert holds(sympy.Ge(TIME - 5, 0), least={TIME: 5})


@pytest.mark.parametrize(
    ("size", "number"),
    [
        (FloorDiv(3 * DIM - 1, DIM), 2),
        (FloorDiv(4 * DIM + 1, DIM), 4),
        (FloorDiv(DIM, DIM + 1), 0),
        (Max(1, DIM) - DIM, 0),
        (FloorDiv(DIM, 3) + FloorDiv(DIM + 1, 3) + FloorDiv(DIM + 2, 3) - DIM, 0),
        (2 * FloorDiv(DIM, 2) - DIM, None),
        (FloorDiv(DIM + 3, DIM), None),  # 2 at 2 and at 3, then 1
        (FloorDiv(DIM, 2), None),
        (DIM, None),
    ],
    ids=str,
)
def test_a_size_that_is_one_number_everywhere_is_found_to_be_so(size: Any, number: int | None):
    assert constant(size) == number


alone = st.recursive(
    st.just(A) | numbers.map(sympy.Integer),
    lambda below: st.one_of(
        st.builds(operator.add, below, below),
        st.builds(operator.sub, below, below),
        st.builds(FloorDiv, below, st.integers(2, 4).map(sympy.Integer)),
        st.builds(PythonMod, below, st.integers(2, 4).map(sympy.Integer)),
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(related(alone, RELATIONS))
def test_a_tidy_relation_is_true_at_the_same_sizes(fact: Fact):
    kind, left, right = fact
    relation = kind(left, right)
    if relation in (sympy.true, sympy.false):
        return
    written = tidy(relation)
    for size in range(1, 30):
        parts = written.args if isinstance(written, sympy.Or) else (written,)
        now = any(true_at((type(part), *part.args), {A: size}) for part in parts)

        assert now == true_at(fact, {A: size}), (relation, written, size)


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (sympy.Eq(A - FloorDiv(A + 1, 2), FloorDiv(A + 1, 2)), sympy.Eq(PythonMod(A, 2), 0)),
        (sympy.Ne(3 * FloorDiv(A, 3), A), sympy.Ne(PythonMod(A, 3), 0)),
        (sympy.Eq(2 * FloorDiv(A, 2) + 1, A), sympy.Eq(PythonMod(A, 2), 1)),
        (sympy.Ge(CeilToInt(FloatTrueDiv(ToFloat(A), sympy.Float(2.0))), 3), sympy.Ge(A, 5)),
    ],
)
def test_a_relation_that_hangs_on_a_rest_is_written_as_one(fact: Any, text: Any):
    assert tidy(fact) == text


def test_a_maximum_is_taken_case_by_case():
    assert holds(sympy.Ne(A * B, A * Max(1, B - HEADS)))
    assert holds(sympy.Le(Min(A, B), A))
    assert not holds(sympy.Ne(A * B, A * Max(2, B - HEADS)))


@pytest.mark.parametrize("factor", [0.5, 0.25, 1.5, 2.0, 0.1, 1 / 3])
@pytest.mark.parametrize(("kind", "rounding"), [(CeilToInt, math.ceil), (FloorToInt, math.floor)])
def test_a_rounded_product_is_the_same_in_whole_numbers(kind: Any, rounding: Callable[[float], int], factor: float):
    written = whole(kind(sympy.Float(factor) * ToFloat(A)))
    for size in range(1, 40):
        expected = rounding(factor * size)

        assert int(written.subs({A: size})) == expected


@pytest.mark.parametrize("kind", [sympy.Eq, sympy.Ne, sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt])
@pytest.mark.parametrize("times", [1, 32, -3])
def test_a_question_about_padding_is_one_about_the_rest(kind: Any, times: int) -> None:
    n = sympy.Symbol("n", integer=True, positive=True)
    more = Mod(8 - Mod(n, 8), 8)
    padded = 8 * FloorDiv(n + 7, 8)
    for fact in (kind(times * padded, times * n, evaluate=False), kind(times * (n + more), times * n, evaluate=False)):
        asked = whole(fact)

        assert not any(type(atom) is FloorDiv for atom in asked.atoms(sympy.Function))
        assert all(asked.subs(n, i) == fact.subs(n, i) for i in range(1, 30))
