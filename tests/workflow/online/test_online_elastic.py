"""Elastic weight consolidation: the Fisher diagonal against autograd, the term against its formula, and forgetting."""

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ProofError, ScalarTrainer, ShapeError, SignatureError, init
from shaped.workflow.online import elastic, fisher_diagonal
from tests.models import MLP, batch, mlp, mlp_loss


def by_autograd(params: MLP, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The mean of squared gradients, an example at a time."""
    leaves = [t.detach().clone().requires_grad_() for t in params]
    total, count = [torch.zeros_like(t) for t in leaves], 0
    for x, y in data:
        for i in range(len(x)):
            gradients = torch.autograd.grad(mlp_loss(MLP(*leaves), x[i : i + 1], y[i : i + 1]), leaves)
            total = [t + g.square() for t, g in zip(total, gradients, strict=True)]
            count += 1
    return [t / count for t in total]


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_fisher_diagonal_is_the_mean_of_squared_gradients_of_single_examples(chunk: int | None) -> None:
    params = mlp(dtype=torch.float64)
    data = [batch(5, seed=1, dtype=torch.float64), batch(3, seed=2, dtype=torch.float64)]
    found = fisher_diagonal(mlp_loss, params, data, chunk=chunk)

    assert isinstance(found, MLP)
    for mine, reference in zip(found, by_autograd(params, data), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=0)


class Mean(ParamList):
    m: Float[Tensor, " dim"]


def gaussian(p: Mean, x: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    return 0.5 * (x - p.m).square().sum(1).mean()


def test_at_the_mean_of_a_gaussian_it_is_the_inverse_of_its_variance() -> None:
    x = torch.randn(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    params = Mean(x.mean(0))
    found = fisher_diagonal(gaussian, params, [x])
    squared_mean = ScalarTrainer(gaussian, params).backward(x)

    # Variance 1, so 1 in each entry; the sample's variance errs by sqrt(2/20000) = 0.01.
    torch.testing.assert_close(found.m, torch.ones(2, dtype=torch.float64), rtol=0.05, atol=0)
    assert squared_mean.m.abs().max() < 1e-12, "the square of the mean gradient would have been 0"


def test_labels_that_the_model_draws_give_the_fisher_information_in_the_strict_sense() -> None:
    class Logit(ParamList):
        a: Float[Tensor, " one"] = init.zeros()

    def loss(p: Logit, x: Float[Tensor, "batch one"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        return F.binary_cross_entropy_with_logits(x @ p.a, y)

    params = Logit(torch.tensor([1.5], dtype=torch.float64))
    x, y = torch.ones(40_000, 1, dtype=torch.float64), torch.ones(40_000, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = fisher_diagonal(
        loss, params, [(x, y)], sample=lambda p, x, y: torch.bernoulli((x @ p.a).sigmoid(), generator=generator)
    )
    given = fisher_diagonal(loss, params, [(x, y)])
    probability = 1 / (1 + math.exp(-1.5))

    assert drawn.a.item() == pytest.approx(probability * (1 - probability), rel=0.02)
    assert given.a.item() == pytest.approx((1 - probability) ** 2, rel=1e-9)


def test_a_frozen_entry_has_no_fisher_information() -> None:
    found = fisher_diagonal(mlp_loss, mlp(frozen=("w1",)), [batch()])

    assert found.w1.abs().sum() == 0
    assert found.w2.abs().sum() > 0


def test_the_term_and_its_gradient_follow_the_formula_and_are_proved() -> None:
    params, data = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    anchor = mlp(seed=3, dtype=torch.float64)
    fisher = fisher_diagonal(mlp_loss, params, [data])
    memory = elastic(mlp_loss, params, fisher, anchor=anchor, strength=7.0)
    trainer = ScalarTrainer(memory.loss, memory.params)
    value, gradients = trainer.loss_and_backward(*data)
    plain, plain_gradients = ScalarTrainer(mlp_loss, params).loss_and_backward(*data)
    parts = list(zip(params, anchor, fisher, plain_gradients, strict=True))

    assert trainer.proof.conditions == ()
    assert "for all batch, pixels, hidden, classes >= 1" in str(trainer.proof)
    expected = float(plain) + 3.5 * sum(float((f * (p - a).square()).sum().detach()) for p, a, f, _ in parts)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    for mine, (p, a, f, g) in zip(gradients.model, parts, strict=True):
        torch.testing.assert_close(mine, (g + 7.0 * f * (p - a)).detach(), rtol=1e-10, atol=1e-14)
    trainer.adamw_step(*data, lr=0.1)  # moves the model in place, and neither anchor nor fisher
    assert memory.model.w1.data_ptr() == params.w1.data_ptr()
    assert not torch.equal(params.w1, mlp(dtype=torch.float64).w1)
    assert all(map(torch.equal, [*anchor, *fisher], [*trainer.params.anchor, *trainer.params.fisher]))


def line(p: Mean, x: Float[Tensor, "batch dim"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return 0.5 * (x @ p.m - y).square().mean()


def test_what_was_learned_first_is_kept_where_the_second_task_leaves_room() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=generator)
    first = (x * torch.tensor([1.0, 0.0]), x[:, 0] * 2.0)  # tells of the first entry alone
    second = (x * torch.tensor([0.3, 1.0]), -x[:, 1])  # of both, above all of the second
    known = Mean(torch.tensor([2.0, 0.0]))  # solves the first task
    # At a perfect fit the data's own labels have no gradient left, so they say nothing of what matters.
    none = fisher_diagonal(line, known, [first])
    fisher = fisher_diagonal(
        line, known, [first], sample=lambda p, x, y: x @ p.m + torch.randn(400, generator=generator)
    )
    params = known.values()
    memory = elastic(line, params, fisher, strength=50.0)
    trainer, plain = ScalarTrainer(memory.loss, memory.params), ScalarTrainer(line, other := known.values())
    for _ in range(400):
        trainer.step(*second, lr=0.02)  # the curvature is 50, so below 2/50
        plain.step(*second, lr=0.1)
    kept, forgot = (float(line(p, *first).detach()) for p in (params, other))

    assert none.m.abs().max() == 0
    assert kept < 0.001 < 1 < forgot
    assert params.m[1].item() == pytest.approx(-1.0, abs=0.1)


class Rect(ParamList):
    w: Float[Tensor, "features out"]


def transposed(p: Rect, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    return (x @ p.w.T).square().mean()


def test_a_mistake_in_the_loss_is_shown_at_its_own_line() -> None:
    params = Rect.init(features=3, out=2, seed=0)
    memory = elastic(transposed, params, Rect(torch.ones(3, 2)))
    with pytest.raises(ProofError) as caught:
        ScalarTrainer(memory.loss, memory.params)

    first = inspect.getsourcelines(transposed)[1]
    assert f"test_online_elastic.py:{first + 1}   return (x @ p.w.T).square().mean()" in str(caught.value)
    assert f"x       : [batch, features]     declared at test_online_elastic.py:{first}" in str(caught.value)


class Bare(ParamList):
    w: Float[Tensor, " a"]


def no_list(x: Float[Tensor, " a"]) -> Float[Tensor, ""]:
    return x.sum()


def labelled(p: Mean, x: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return p.m.sum() + x.sum()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda m: fisher_diagonal(gaussian, m, []), ValueError,
         "the Fisher information is a mean over examples, and the data has none"),
        (lambda m: fisher_diagonal(gaussian, m, [torch.zeros(0, 2)]), ValueError,
         "the Fisher information is a mean over examples, and the data has none"),
        (lambda m: elastic(gaussian, m, m, strength=-1.0), ValueError,
         "strength is -1.0; it is a finite number of at least 0"),
        (lambda m: elastic(gaussian, m, Mean(-torch.ones(2))), ValueError, "fisher: m is negative or not finite"),
        (lambda m: elastic(no_list, m, m), SignatureError, "`no_list` has no argument that is a ParamList"),
        (lambda m: elastic(gaussian, m, Mean(torch.ones(3))), ShapeError, "axis dim is 2, set by m"),
    ],
)  # fmt: skip
def test_what_cannot_be_consolidated_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        make(Mean(torch.ones(2)))

    assert message in str(caught.value)
