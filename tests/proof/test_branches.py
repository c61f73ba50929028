"""Branches that a trace did not take, and sizes at which it would."""

from collections.abc import Callable

import pytest
import sympy
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._sympy.functions import PythonMod

from shaped import prove
from shaped.proof.branches import together
from shaped.proof.plans import size_hints_where
from shaped.proof.symbolic import Plan, World
from shaped.shapes import Dim

HINTS = {"n": 48, "m": 240, "k": 336}


def test_two_equalities_that_define_each_other_are_not_put_into_one_plan() -> None:
    base = Plan(HINTS)
    one, other = Plan(HINTS, equal={"n": Dim("k")}), Plan(HINTS, equal={"k": Dim("n")})
    chained = Plan(HINTS, equal={"k": Dim("m")})

    assert together(base, one, other) is None
    assert together(base, one, chained) == Plan(HINTS, equal={"n": Dim("k"), "k": Dim("m")})


def test_sizes_beyond_a_threshold_of_torchs_may_be_divisible_ones_and_few_elements_may_be_alike() -> None:
    world = World(("a", "b", "c"), Plan(hints := {"a": 240, "b": 336, "c": 528}))
    a, b, c = world.symbols
    even, few = sympy.Eq(PythonMod(a, 2), 0), a * b * c < 21

    beyond = size_hints_where(3 * a <= 20480, world, world.plan, sympy.false, [even])
    alike = size_hints_where(few, world, world.plan, sympy.true)

    assert beyond == {**hints, "a": 20496}
    assert alike == {"a": 2, "b": 2, "c": 2}


def kept(x: Float[Tensor, "h w d"]) -> Float[Tensor, "h w d"]:
    return x[::4, ::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_each_axis_that_must_be_divisible_is_found_after_the_other() -> None:
    assert prove(kept).conditions == ("h % 4 == 0", "w % 4 == 0", "d % 4 == 0")


def shortened(x: Float[Tensor, "n n"], y: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    return x[: min(x.shape[0], max(y.shape[0] - 2, 1))].sum()


def spread(x: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    return x.flatten()[torch.arange(abs(x.shape[0] - x.shape[1]))].sum()


@pytest.mark.parametrize("function", [shortened, spread])
def test_what_is_the_larger_of_two_or_a_distance_may_equal_a_size(function: Callable[..., Tensor]) -> None:
    assert prove(function).conditions == ()
