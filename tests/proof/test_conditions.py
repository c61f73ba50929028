"""Conditions and assumptions: relations that are decided as what they are, never as the text that people see."""

import itertools

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer, SignatureError, init, prove
from shaped.proof.conditions import Assumption, Condition, follows


class Experts(ParamList):
    w: Float[Tensor, " experts"] = init.ones()


def routed(p: Experts, x: Float[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    batch, seq = x.shape
    if batch * seq // (2 * p.w.shape[0]) >= 4:
        return x.square().mean() * p.w.square().mean()
    return x.sum() * 100 + p.w.square().sum()


def test_each_size_runs_the_branch_that_plain_torch_takes():
    params = Experts.init(experts=4, seed=0)
    trainer = ScalarTrainer(routed, params)
    for batch, seq in itertools.product((2, 3, 5, 8), repeat=2):
        x = torch.ones(batch, seq)
        graph = trainer.proof.graph_at({"batch": batch, "seq": seq, "experts": 4})

        assert graph(params.w, x)[0] == routed(params, x)


@pytest.mark.parametrize("sizes", ["auto", "dynamic"])
def test_the_compiled_trainer_runs_the_branch_that_plain_torch_takes(sizes):
    params = Experts.init(experts=4, seed=0)
    trainer = ScalarTrainer(routed, params, backend="compiled", sizes=sizes)
    for shape in ((3, 5), (8, 8)):
        x = torch.ones(shape)

        assert trainer.forward(x).item() == routed(params, x).item()


@pytest.mark.parametrize(
    ("condition", "assumed"),
    [
        ("seq <= context", ["seq < context"]),
        ("seq <= context", ["seq + 1 <= context"]),
        ("dim % heads == 0", ["dim % heads == 0"]),
        ("n >= 3", ["n >= 5"]),
        ("n >= 3", ["n > 2"]),
        ("a*b >= 3", ["a >= 3"]),
        ("a >= 2 or b >= 2", ["a >= 2"]),
        ("max(a, b) >= 2", ["max(a, b) >= 2"]),
        ("a*b >= a", []),
    ],
)
def test_what_is_weaker_than_the_assumptions_follows_from_them(condition, assumed):
    assert follows(Condition.parse(condition), [Assumption.parse(text) for text in assumed])


@pytest.mark.parametrize(
    ("condition", "assumed"),
    [
        ("seq < context", ["seq <= context"]),
        ("dim % heads == 0", ["dim % 2 == 0", "heads <= 2"]),
        ("n >= 3", ["n >= 2", "m >= 3"]),
        ("a >= 2", ["a >= 2 or b >= 2"]),
        ("sqrt(a) == b", ["a == b"]),
    ],
)
def test_what_is_stronger_than_the_assumptions_does_not_follow(condition, assumed):
    assert not follows(Condition.parse(condition), [Assumption.parse(text) for text in assumed])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n", "`n` is not one comparison"),
        ("n == k == 2", "`n == k == 2` is not one comparison"),
        ("n / 2 == k", "`n / 2 == k` divides with /: sizes are whole numbers"),
        ("n % 0 == 0", "`n % 0 == 0` divides by zero"),
        ("9**9**9 == n", "a power is a number from 0 to 9"),
    ],
)
def test_an_assumption_that_nobody_can_mean_is_refused(text, message):
    with pytest.raises(SignatureError) as caught:
        Assumption.parse(text)

    assert message in str(caught.value)


def bounded(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    assert max(x.shape[0], 2) == x.shape[0] or x.shape[1] >= 3
    return x


def test_a_rounded_fraction_may_be_assumed():
    assert prove(bounded, assume=("ceil(n / 2) >= 2",)).conditions == ("ceil(n / 2) >= 2",)
