"""Conditions and assumptions: relations that are decided as what they are, never as the text that people see."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, Proof, ScalarTrainer, SignatureError, init, prove
from shaped.proof.conditions import Assumption, Condition, follows, needed
from shaped.shapes import read_signature


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


def halved(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d//2"]:
    y, gate = x.chunk(2, dim=-1)
    return y * gate


def after(p: Float[Tensor, "p d"], x: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
    return x[:, p.shape[0] :].sum(1)


def either_way(x: Float[Tensor, "a b"], y: Float[Tensor, "c d"]) -> Float[Tensor, "a b"]:
    return x * 2 if x.shape[0] % y.shape[1] == 0 else x


def windows(x: Float[Tensor, "a a"], y: Float[Tensor, " b"]) -> Float[Tensor, "a*a"]:
    return x.unfold(1, 2, 2).sum() + x.flatten()


def largest(x: Float[Tensor, "a b"]) -> Float[Tensor, " 3"]:
    return x.flatten().topk(3).values


def rounded(x: Float[Tensor, "b c h"]) -> Float[Tensor, "b c h//2"]:
    return torch.nn.functional.interpolate(x, scale_factor=0.5)


PROGRAMS = {
    halved: ("d % 2 == 0",), after: (), either_way: (), windows: ("a >= 2",), largest: ("a*b >= 3",),
    rounded: ("h >= 2",),
}  # fmt: skip


@cache
def proved(function: Callable[..., Any]) -> Proof:
    return prove(function)


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda function: function.__name__)
def test_a_condition_is_what_torch_needs_and_no_more(function):
    proof, signature = proved(function), read_signature(function)

    assert proof.conditions == PROGRAMS[function]
    for point in itertools.product(range(1, 5), repeat=len(proof.dims)):
        sizes = dict(zip(proof.dims, point, strict=True))
        tensors = [torch.rand([dim.evaluate(sizes) for dim in entry.spec.dims]) for entry in signature.entries]
        try:
            declared = [dim.evaluate(sizes) for dim in signature.result[0].dims]
            runs = list(function(*tensors).shape) == declared
        except (RuntimeError, IndexError, ValueError):
            runs = False

        assert runs == all(condition.holds(sizes) for condition in proof.side_conditions), sizes


@pytest.mark.parametrize("function", [halved, largest, windows, rounded])
def test_what_a_proof_lists_may_be_assumed(function):
    conditions = proved(function).conditions

    assert prove(function, assume=conditions).conditions == conditions


def test_a_condition_that_follows_from_the_others_is_not_stated() -> None:
    several = ["n >= 3", "n >= 5", "m % 4 == 0", "m <= n", "n >= 5", "m <= n + 1"]

    assert [c.text for c in needed(list(map(Condition.parse, several)))] == ["m % 4 == 0", "m <= n", "n >= 5"]
    assert [c.text for c in needed(list(map(Condition.parse, ["m % 4 == 0", "m % 2 == 0"])))] == ["m % 4 == 0"]
