"""What is asked of sizes, and how."""

import sympy

from shaped.proof.arithmetic import clauses
from shaped.proof.symbolic import Plan, World


def test_a_question_of_many_relations_is_asked_by_its_parts() -> None:
    world = World(["n"], Plan({"n": 40}))
    (n,) = world.symbols
    few, many = (sympy.And(*(sympy.Ne(n, size) for size in range(3, last))) for last in (6, 15))

    assert world.asks(few)
    assert world.asks(many)
    assert not world.asks(sympy.Not(many))
    assert {question.fact for question in world.env.asked} == {few, *many.args}


def testclauses_are_those_of_the_normal_forms_of_a_question_and_its_negation() -> None:
    n = sympy.Symbol("n", integer=True)
    a, b, c, d = (sympy.Ne(n, size) for size in range(4))

    assert clauses(a) == (1, 1)
    assert clauses(sympy.And(a, b, c)) == (3, 1)
    assert clauses(sympy.Or(a, b, c)) == (1, 3)
    assert clauses(sympy.Or(sympy.And(a, b), sympy.And(c, d))) == (4, 2)
    assert clauses(sympy.Not(sympy.Or(sympy.And(a, b), sympy.And(c, d)), evaluate=False)) == (2, 4)
