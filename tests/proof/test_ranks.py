"""`*batch` stands for any number of axes: proved at 0 to 3, and what holds for some only says for which."""

import itertools
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, Proof, ProofError, ScalarTrainer, ShapeError, SignatureError, Unprovable, prove


class Line(ParamList):
    w: Float[Tensor, "features classes"]


def logits(p: Line, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch classes"]:
    return torch.tanh(x @ p.w)


def loss(p: Line, x: Float[Tensor, "*batch features"], y: Float[Tensor, "*batch classes"]) -> Float[Tensor, ""]:
    return (logits(p, x) - y).square().mean()


def last_axes(x: Float[Tensor, "*batch seq dim"]) -> Float[Tensor, "*batch seq seq"]:
    return (x @ x.mT).softmax(-1)


def two_kinds(x: Float[Tensor, "*batch features"], w: Float[Tensor, "*heads features"]) -> Float[Tensor, "*heads 2"]:
    return torch.stack([w.sum(-1), w.amax(-1) + x.mean()], -1)


def halved(x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features//2"]:
    return x.unflatten(-1, (-1, 2)).sum(-1)


def drops_the_first(x: Float[Tensor, "*batch features"]) -> Float[Tensor, " features"]:
    return x.amax(tuple(range(x.dim() - 1))) if x.dim() > 1 else x


def with_a_size_of_its_own(x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
    if x.dim() == 3:
        assert x.shape[0] <= 16
    return 2 * x


def first_two(x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
    return x.transpose(0, 1).transpose(0, 1)


def a_row_of_sums(x: Float[Tensor, "*batch features"]) -> Float[Tensor, " features"]:
    return x.sum(0)


@cache
def proved(function: Any) -> Proof:
    return prove(function)


@pytest.mark.parametrize("function", [logits, loss, last_axes], ids=lambda function: function.__name__)
def test_a_program_over_the_last_axes_is_proved_at_each_number_of_axes(function: Any):
    proof = proved(function)

    assert proof.conditions == ()
    assert sorted(proof.ranks) == [(0,), (1,), (2,), (3,)]
    assert ", of 0 to 3 axes" in str(proof)
    assert proof.dims[0] == "*batch"


def test_the_axes_are_written_out_in_each_proof():
    proofs = proved(last_axes).ranks

    assert [proof.dims for proof in proofs.values()] == [
        ("seq", "dim"),
        ("batch1", "seq", "dim"),
        ("batch1", "batch2", "seq", "dim"),
        ("batch1", "batch2", "batch3", "seq", "dim"),
    ]


@pytest.mark.slow
def test_two_names_are_proved_at_each_pair_of_numbers():
    assert sorted(prove(two_kinds).ranks) == list(itertools.product(range(4), repeat=2))


def test_a_condition_of_every_number_of_axes_is_stated_once():
    assert prove(halved).conditions == ("features % 2 == 0",)


@pytest.mark.slow
def test_a_condition_of_some_numbers_of_axes_says_of_which():
    assert prove(with_a_size_of_its_own).conditions == ("batch1 <= 16 where *batch has 2 axes",)


def test_a_program_that_reduces_whatever_axes_there_are_is_proved():
    conditions = prove(drops_the_first).conditions

    assert all("batch" not in condition for condition in conditions)


def test_a_failure_says_at_which_number_of_axes():
    with pytest.raises(ProofError) as caught:
        prove(a_row_of_sums)

    line = a_row_of_sums.__code__.co_firstlineno + 1
    assert str(caught.value).splitlines()[:3] == [
        "`a_row_of_sums` does not return what it declares where *batch has 0 axes.",
        f"  test_ranks.py:{line}   return x.sum(0)",
        "  result   [], declared [features]",
    ]


def test_one_number_of_axes_has_one_axis():
    def needs_two(x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return x if x.dim() != 2 else x.transpose(0, 2)

    with pytest.raises(ProofError) as caught:
        prove(needs_two)

    assert caught.value.title == "`needs_two` is not well-shaped where *batch has 1 axis."


def test_a_program_that_depends_on_data_is_unprovable_whatever_the_number_of_axes():
    def branches(x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return x if x.sum() > 0 else -x

    with pytest.raises(Unprovable, match=r"where \*batch has 0 axes"):
        prove(branches)


def test_three_names_are_too_many():
    def f(x: Float[Tensor, "*a n"], y: Float[Tensor, "*b n"], z: Float[Tensor, "*c n"]) -> Float[Tensor, ""]:
        return x.sum() + y.sum() + z.sum()

    with pytest.raises(SignatureError, match="more than 2 names"):
        prove(f)


def batch(*axes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(axes))
    return torch.rand(*axes, 3, generator=generator), torch.rand(*axes, 2, generator=generator)


AXES: list[tuple[int, ...]] = [
    (5,),
    (),
    (2, 3),
    (4, 1, 2),
    (1,),
    (2, 1, 2, 2),
]  # the last is more than a statement says


def test_a_trainer_takes_batches_of_any_number_of_axes():
    params = Line.init(features=3, classes=2, seed=0)
    w = params.w.detach().clone().requires_grad_()
    trainer = ScalarTrainer(loss, params)
    plain = torch.optim.SGD([w], lr=0.1)
    for axes in AXES:
        x, y = batch(*axes)
        plain.zero_grad()
        expected = F.mse_loss(torch.tanh(x @ w), y)
        expected.backward()
        plain.step()

        torch.testing.assert_close(trainer.step(x, y, lr=0.1), expected.detach())
    torch.testing.assert_close(trainer.params.w, w)


def test_tensors_of_different_numbers_of_axes_are_refused_and_nothing_changes():
    trainer = ScalarTrainer(loss, Line.init(features=3, classes=2))
    before = trainer.get_params()
    x, _ = batch(2, 3)
    _, y = batch(2)
    with pytest.raises(ShapeError, match="rank 2 instead of 3"):
        trainer.step(x, y, lr=0.1)

    assert torch.equal(before.w, trainer.params.w)


def embeds(p: Line, tokens: Int[Tensor, "*batch seq"]) -> Float[Tensor, ""]:
    return p.w[tokens].mean()


def test_indices_of_any_number_of_axes_are_proved():
    assert prove(embeds).conditions == ()
