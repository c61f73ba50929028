"""What is checked in two processes of what they must have alike; run by processes.py."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import RankError
from shaped.backends import CompileError
from shaped.ranks import join
from tests.ranks.processes import MLP, alone, batch, mine, new, raises, rank, same

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
    for name, other in (("weight_decay", 0.5), ("betas", (0.9, 0.5))):  # what comes after one of several numbers, too
        kept, group[name] = group[name], other if rank() else group[name]
        raises(lambda: together.train_step(*mine(0, *batch(0))), RankError, name)
        group[name] = kept
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
def ranks_that_take_other_steps_are_refused_whatever_shapes_they_are_of() -> None:
    first, second, one = new(mesh=join()), new(mesh=join()), alone()
    rows = mine(0, *batch(0))
    mine_first = second if rank() else first
    raises(lambda: mine_first.train_step(*rows), RankError, "the trainer is number", "on rank 0 and number")
    taken = first.loss_and_backward if rank() else first.train_step
    said = "the step is an update on rank 0 and loss_and_backward on rank 1"
    raises(lambda: taken(*rows), RankError, said)
    first.train_step(*rows)
    one.train_step(*batch(0))
    same(first, one)


@alike
def ranks_that_made_different_trainers_are_refused() -> None:
    raises(lambda: new(mesh=join(), max_norm=1.0 + rank()), ValueError, "max_norm", "rank 1")
    factor, weights = 1.0 + rank(), torch.ones(5, dtype=torch.float64) + rank()

    def scaled(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return factor * F.cross_entropy(x @ p.w1[:, :5], y) + p.b1.sum() + p.w2.sum() + p.b2.sum()

    def weighed(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return (weights * (x @ p.w1[:, :5]).square()).mean() + y.sum() * 0.0 + p.b1.sum() + p.w2.sum() + p.b2.sum()

    raises(lambda: new(scaled, mesh=join()), ValueError, "`the proved graph` differ")
    raises(lambda: new(weighed, mesh=join()), ValueError, "`the tensor weights from outside` differ")


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


@alike
def what_one_rank_loads_alone_is_refused_until_all_have_it() -> None:
    for zero in (0, 3):
        together, one = new(mesh=join(), zero=zero), alone()
        first = together.state_dict()
        together.train_step(*mine(0, *batch(0)))
        if rank() == 0:  # as scripts do that load where they save
            together.load_state_dict(first)
        said = "the ranks loaded different states (rank 0: a state of step 0 (checksum", "rank 1: nothing). Nothing was"
        raises(partial(together.train_step, *mine(0, *batch(0))), RankError, *said)
        together.load_state_dict(first)
        for k in range(3):
            together.train_step(*mine(k, *batch(k)))
            one.train_step(*batch(k))
        same(together, one)
        optimizer = together._shared.own_optimizer()
        if rank() == 1:
            optimizer.load_state_dict(optimizer.state_dict())
        raises(partial(together.train_step, *mine(0, *batch(0))), RankError, "rank 1: AdamW's state")
        if zero == 0:
            other = new(mesh=join())
            with torch.no_grad():
                first["params"]["w1"] += rank()
            other.load_state_dict(first)
            raises(partial(other.train_step, *mine(0, *batch(0))), RankError, "rank 1: a state of step 0 (checksum")
