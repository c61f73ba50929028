"""What is checked in two processes of what they must have alike; run by processes.py."""

import warnings
from collections.abc import Callable

import torch

from shaped import RankError
from shaped.backends import CompileError
from shaped.ranks import join
from tests.ranks.processes import alone, batch, mine, new, raises, rank, same

ALIKE: dict[str, Callable[[], None]] = {}


def alike(function: Callable[[], None]) -> Callable[[], None]:
    ALIKE[function.__name__] = function
    return function


@alike
def ranks_that_step_by_different_updates_are_refused_and_go_on_once_they_are_alike() -> None:
    together, one = new(mesh=join(), accumulate=2), alone(accumulate=2)
    before, group = together.get_params(), together._shared.own_optimizer().param_groups[0]
    group["lr"] = 0.01 * (1 + rank())
    said = "the ranks step by different updates: lr is 0.01 on rank 0 and 0.02 on rank 1. Nothing was updated."
    raises(lambda: together.train_step(*mine(0, *batch(0))), RankError, said)
    assert together.waiting == 0
    group["lr"] = 0.01
    for k in range(3):
        together.train_step(*mine(k, *batch(k)))
        one.train_step(*batch(k))
    group["lr"] = 0.01 * (1 + rank())
    raises(together.step_waiting, RankError, said)
    group["lr"] = 0.01
    assert together.step_waiting() == one.step_waiting() == 1
    same(together, one)
    assert not torch.equal(before[0], together.get_params()[0])


@alike
def ranks_that_made_different_trainers_are_refused() -> None:
    raises(lambda: new(mesh=join(), max_norm=1.0 + rank()), ValueError, "max_norm", "rank 1")


@alike
def a_rank_that_leaves_the_compiler_goes_on_with_those_that_stay() -> None:
    together, one = new(mesh=join(), backend="auto" if rank() == 0 else "eager"), alone()
    if rank() == 0:
        with warnings.catch_warnings(action="ignore"):
            together._backend.leave(CompileError("no compiler"))  # type: ignore[attr-defined]
    for k in range(3):
        together.train_step(*mine(k, *batch(k)))
        one.train_step(*batch(k))
    same(together, one)
