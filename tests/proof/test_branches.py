"""Branches that a trace did not take, two at a time."""

from shaped.proof.branches import together
from shaped.proof.symbolic import Plan
from shaped.shapes import Dim

HINTS = {"n": 48, "m": 240, "k": 336}


def test_two_equalities_that_define_each_other_are_not_put_into_one_plan() -> None:
    base = Plan(HINTS)
    one, other = Plan(HINTS, equal={"n": Dim("k")}), Plan(HINTS, equal={"k": Dim("n")})
    chained = Plan(HINTS, equal={"k": Dim("m")})

    assert together(base, one, other) is None
    assert together(base, one, chained) == Plan(HINTS, equal={"n": Dim("k"), "k": Dim("m")})
