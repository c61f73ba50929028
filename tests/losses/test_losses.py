"""Losses: float64 torch is the oracle; masks and weights; nothing is broadcast; every one is provable."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ParamList, ProofError, ScalarTrainer, ShapedError, ShapeError, losses, prove
from shaped.losses import add_loss, loss_terms, with_terms


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int, count: int = 4, seed: int = 9) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


Oracle = Callable[[Tensor, Tensor], Tensor]  # the single losses
REGRESSION: dict[str, tuple[Callable[..., Tensor], Oracle]] = {
    "mse": (losses.mse, lambda p, t: F.mse_loss(p, t, reduction="none")),
    "mae": (losses.mae, lambda p, t: F.l1_loss(p, t, reduction="none")),
    "huber": (
        lambda p, t, **o: losses.huber(p, t, delta=0.7, **o),
        lambda p, t: F.huber_loss(p, t, delta=0.7, reduction="none"),
    ),
    "quantile": (
        lambda p, t, **o: losses.quantile(p, t, q=0.2, **o),
        lambda p, t: torch.where(t > p, 0.2 * (t - p), 0.8 * (p - t)),
    ),
    "binary_cross_entropy": (
        lambda p, t, **o: losses.binary_cross_entropy(p, t.sigmoid(), **o),
        lambda p, t: F.binary_cross_entropy(p.sigmoid(), t.sigmoid(), reduction="none"),
    ),
}
ROWS: dict[str, tuple[Callable[..., Tensor], Oracle]] = {
    "cross_entropy": (
        lambda p, t, **o: losses.cross_entropy(p, t.argmax(-1), label_smoothing=0.1, **o),
        lambda p, t: F.cross_entropy(p, t.argmax(-1), label_smoothing=0.1, reduction="none"),
    ),
    "categorical_cross_entropy": (
        lambda p, t, **o: losses.categorical_cross_entropy(p, t.softmax(-1), **o),
        lambda p, t: F.cross_entropy(p, t.softmax(-1), reduction="none"),
    ),
    "kl_divergence": (
        losses.kl_divergence,
        lambda p, t: F.kl_div(p.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1),
    ),
    "triplet": (
        lambda p, t, **o: losses.triplet(p, t, t.flip(1), margin=0.5, **o),
        lambda p, t: F.triplet_margin_loss(p, t, t.flip(1), margin=0.5, eps=0.0, reduction="none"),
    ),
    "contrastive": (
        lambda p, t, **o: losses.contrastive(p, t, t[:, 0] > 0, margin=2.0, **o),
        lambda p, t: 0.5 * torch.where(
            t[:, 0] > 0, (p - t).norm(dim=1), (2.0 - (p - t).norm(dim=1)).clamp(min=0)
        ).square(),
    ),
}  # fmt: skip
ALL = {**REGRESSION, **ROWS}


@pytest.mark.parametrize("name", ALL)
@given(batch=st.integers(1, 6), seed=st.integers(0, 5))
def test_a_loss_is_the_mean_of_the_single_losses_of_torch(name: str, batch: int, seed: int) -> None:
    loss, oracle = ALL[name]
    p, t = numbers(batch, 3, seed=seed), numbers(batch, 3, seed=seed + 100)
    single = oracle(p, t)

    torch.testing.assert_close(loss(p, t), single.mean())
    torch.testing.assert_close(loss(p, t, reduction="sum"), single.sum())
    torch.testing.assert_close(loss(p, t, reduction="none"), single)


@pytest.mark.parametrize("name", ALL)
def test_weights_make_a_weighted_mean_and_a_mask_is_weights_of_0_and_1(name: str) -> None:
    loss, oracle = ALL[name]
    p, t = numbers(5, 3), numbers(5, 3, seed=1)
    single = oracle(p, t)
    weights, mask = numbers(*single.shape, seed=2).abs(), numbers(*single.shape, seed=3) > 0

    torch.testing.assert_close(loss(p, t, weights=weights), (weights * single).sum() / weights.sum())
    torch.testing.assert_close(loss(p, t, mask=mask), single[mask].mean())
    both = (weights * single)[mask].sum() / weights[mask].sum()
    torch.testing.assert_close(loss(p, t, mask=mask, weights=weights), both)


@pytest.mark.parametrize("name", ALL)
def test_what_is_masked_reaches_neither_the_loss_nor_a_gradient(name: str) -> None:
    loss, _ = ALL[name]
    p, t = numbers(4, 3), numbers(4, 3, seed=1)
    wrong = p.clone()
    wrong[1] = math.nan
    mask = torch.ones(loss(p, t, reduction="none").shape, dtype=torch.bool)
    mask[1] = False
    p.requires_grad_()
    wrong.requires_grad_()
    clean, dirty = loss(p, t, mask=mask), loss(wrong, t, mask=mask)
    expected, found = torch.autograd.grad(clean, p)[0], torch.autograd.grad(dirty, wrong)[0]

    assert torch.equal(clean, dirty)
    assert torch.equal(expected, found)
    assert not found[1].any()


@pytest.mark.parametrize("name", ALL)
def test_with_nothing_left_the_mean_is_0(name: str) -> None:
    loss, _ = ALL[name]
    p, t = numbers(4, 3), numbers(4, 3, seed=1)
    mask = torch.zeros(loss(p, t, reduction="none").shape, dtype=torch.bool)

    assert loss(p, t, mask=mask) == 0


def test_classes_are_the_last_axis_whatever_stands_before_it() -> None:
    logits, target = numbers(2, 3, 5, 4), classes(2, 3, 5)

    torch.testing.assert_close(losses.cross_entropy(logits, target), F.cross_entropy(logits.movedim(-1, 1), target))
    assert losses.cross_entropy(logits, target, reduction="none").shape == (2, 3, 5)
    mask = target > 0
    hidden = torch.where(mask, target, -100)  # what a mask hides need not be a class
    expected = losses.cross_entropy(logits, target, mask=mask)
    torch.testing.assert_close(losses.cross_entropy(logits, hidden, mask=mask), expected)
    assert losses.cross_entropy(logits, target.to(torch.int32)) == losses.cross_entropy(logits, target)


def test_pearson_is_minus_the_correlation_and_0_for_a_constant() -> None:
    p, t = numbers(20), numbers(20, seed=1)
    expected = -torch.corrcoef(torch.stack([p, t]))[0, 1]
    mask = numbers(20, seed=2) > 0

    torch.testing.assert_close(losses.pearson(p, t), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses.pearson(p, t, mask=mask), losses.pearson(p[mask], t[mask]))
    torch.testing.assert_close(losses.pearson(p, t, weights=mask.double()), losses.pearson(p[mask], t[mask]))
    assert losses.pearson(torch.ones(5), torch.ones(5)) == 0


def test_sharpe_is_minus_annualised_mean_over_deviation() -> None:
    positions, returns = numbers(30, 2), 0.01 * numbers(30, 2, seed=1)
    earned = (positions * returns).sum(1)
    expected = -(252**0.5) * earned.mean() / (earned.var(correction=0) + 1e-8).sqrt()
    mask = numbers(30, seed=2) > 0

    torch.testing.assert_close(losses.sharpe(positions, returns, periods=252), expected)
    torch.testing.assert_close(losses.sharpe(earned, torch.ones(30).double(), periods=252), expected)
    found = losses.sharpe(positions, returns, mask=mask)
    torch.testing.assert_close(found, losses.sharpe(positions[mask], returns[mask]))


P, T = torch.zeros(4, 1), torch.zeros(4)


@pytest.mark.parametrize(
    "loss", [losses.mse, losses.mae, losses.huber, losses.quantile, losses.binary_cross_entropy, losses.pearson]
)
def test_a_loss_refuses_to_broadcast_batch_by_1_against_batch(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"needs equal shapes and would broadcast \w+ \[4, 1\] against target \[4\]"):
        loss(P, T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.mse(T, T, mask=P > 0), "mse needs equal shapes and would broadcast prediction [4] against "
         "mask [4, 1]"),
        (lambda: losses.mse(T, T, weights=torch.ones(1)), "mse needs equal shapes and would broadcast prediction [4] "
         "against weights [1]"),
        (lambda: losses.mse(T, T.long()), "mse: target is int64, expected floating point"),
        (lambda: losses.mse(T, T, mask=T), "mse: mask is float32, expected bool"),
        (lambda: losses.mse(T, 1.0),  # type: ignore[arg-type]
         "mse: target is 1.0, not a tensor"),
        (lambda: losses.cross_entropy(T, T.long()), "cross_entropy: logits are [4] and target [4]; classes are the "
         "last axis of logits"),
        (lambda: losses.cross_entropy(P, T), "cross_entropy: target is float32, expected class numbers"),
        (lambda: losses.triplet(T, T, T), "triplet: anchor is [4], expected [batch, dim]"),
        (lambda: losses.contrastive(P, P, T), "contrastive: same is float32, expected bool"),
        (lambda: losses.pearson(P, P), "pearson: prediction is [4, 1], expected [batch]"),
    ],
)  # fmt: skip
def test_a_mismatch_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        call()

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.mse(T, T, reduction="median"),  # type: ignore[arg-type]
            "mse: reduction is 'median'; it is 'mean', 'sum' or 'none'",
        ),
        (lambda: losses.huber(T, T, delta=0), "huber: delta is 0; it is a number above 0"),
        (lambda: losses.quantile(T, T, q=1.0), "quantile: q is 1.0; it is a number above 0 and below 1"),
        (lambda: losses.triplet(P, P, P, margin=math.nan), "triplet: margin is nan; it is a number above 0"),
        (
            lambda: losses.cross_entropy(P, T.long(), label_smoothing=1.0),
            "cross_entropy: label_smoothing is 1.0; it is a number from 0 to below 1",
        ),
    ],
)
def test_an_option_out_of_range_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()

    assert str(caught.value) == message


class Lin(ParamList):
    w: Float[Tensor, "features out"]


def of_numbers(p: Lin, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch out"],
               m: Bool[Tensor, "batch out"], w: Float[Tensor, "batch out"]) -> Float[Tensor, ""]:  # fmt: skip
    h = x @ p.w
    total = losses.mse(h, y, mask=m) + losses.mae(h, y, weights=w) + losses.huber(h, y, mask=m, weights=w)
    return total + losses.quantile(h, y) + losses.binary_cross_entropy(h, y.sigmoid(), mask=m)


def of_classes(p: Lin, x: Float[Tensor, "batch seq features"], y: Int[Tensor, "batch seq"],
               m: Bool[Tensor, "batch seq"]) -> Float[Tensor, ""]:  # fmt: skip
    h = x @ p.w
    total = losses.cross_entropy(h, y, mask=m, label_smoothing=0.1) + losses.kl_divergence(h, h.detach() + 1)
    return total + losses.categorical_cross_entropy(h, h.detach().softmax(-1), mask=m)


def of_vectors(p: Lin, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch features"],
               same: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:  # fmt: skip
    a, b = x @ p.w, y @ p.w
    return losses.triplet(a, b, -b, mask=same) + losses.contrastive(a, b, same)


def of_series(p: Lin, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch out"],
              m: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:  # fmt: skip
    h = x @ p.w
    return losses.pearson(h[:, 0], y[:, 0], mask=m) + losses.sharpe(h, y, mask=m)


@pytest.mark.smoke
@pytest.mark.parametrize("loss", [of_numbers, of_classes, of_vectors, of_series])
def test_every_loss_is_proved_for_all_sizes_as_one_step(loss: Callable[..., Tensor]) -> None:
    proof = prove(loss)
    names = {step.operation for step in proof.steps}

    assert proof.conditions == ()
    assert names & set(vars(losses))
    assert "log_softmax" not in names


def test_in_a_proof_the_mismatch_is_a_goal_at_the_line_of_the_user() -> None:
    def loss(p: Lin, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        h = x @ p.w
        return losses.mse(h, y)

    with pytest.raises(ProofError) as caught:
        prove(loss)
    first, line, marks, operands, goal, said, *_ = str(caught.value).splitlines()

    assert first == "`loss` is not well-shaped."
    assert line.split(maxsplit=1)[1] == "return losses.mse(h, y)"
    assert marks.strip() == "~" * len("losses.mse(h, y)")
    assert operands == "  mse      h : [batch, out], y : [batch]"
    assert goal == "  goal     [batch, out] = [batch]"
    assert said.split(maxsplit=1)[1] == (
        "mse needs equal shapes and would broadcast prediction [batch, out] against target [batch]"
    )


def test_classes_that_do_not_fit_the_logits_are_a_goal_too() -> None:
    def loss(p: Lin, x: Float[Tensor, "batch seq features"], y: Int[Tensor, "seq batch"]) -> Float[Tensor, ""]:
        return losses.cross_entropy(x @ p.w, y)

    with pytest.raises(ProofError, match=r"goal +\[batch, seq\] = \[seq, batch\]"):
        prove(loss)


@with_terms
def of_terms(p: Lin, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch out"]) -> Float[Tensor, ""]:
    """Main and two more."""
    add_loss("decay", 0.1 * p.w.square())
    add_loss("decay", 0.1 * p.w.abs())
    add_loss("bias", p.w.sum())
    return losses.mse(x @ p.w, y)


def test_added_terms_are_reduced_to_scalars_and_summed() -> None:
    p, x, y = Lin.init(features=3, out=2, seed=0), numbers(4, 3).float(), numbers(4, 2).float()
    with torch.no_grad():
        main, decay = F.mse_loss(x @ p.w, y), 0.1 * p.w.square().mean() + 0.1 * p.w.abs().mean()
        expected = main + decay + p.w.sum()

    torch.testing.assert_close(of_terms(p, x, y).detach(), expected)
    terms = loss_terms(of_terms, p, x, y)
    assert list(terms) == ["main", "decay", "bias"]
    torch.testing.assert_close(terms, {"main": main, "decay": decay, "bias": p.w.sum().detach()})
    assert list(loss_terms(losses.mse, y, y)) == ["main"]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_the_proof_and_the_step_are_of_the_sum(backend: str) -> None:
    p, x, y = Lin.init(features=3, out=2, seed=0), numbers(4, 3).float(), numbers(4, 2).float()
    expected = torch.autograd.grad(of_terms(p, x, y), p.w)[0]
    trainer = ScalarTrainer(of_terms, p, backend=backend)  # type: ignore[arg-type]
    loss, gradients = trainer.loss_and_backward(x, y)

    torch.testing.assert_close(loss, of_terms(p, x, y).detach())
    torch.testing.assert_close(gradients.w, expected)
    assert str(trainer.proof).startswith("of_terms : Lin, [batch, features], [batch, out] -> scalar")
    assert of_terms.__doc__ == "Main and two more."


def test_a_term_needs_a_loss_around_it_and_a_name_of_its_own() -> None:
    with pytest.raises(ShapedError) as outside:
        add_loss("decay", T)

    @with_terms
    def wrong(name: str, value: object) -> Tensor:
        add_loss(name, value)  # type: ignore[arg-type]
        return T.sum()

    assert str(outside.value) == (
        "add_loss('decay') belongs inside a loss that is decorated with shaped.losses.with_terms"
    )
    for name, value in (("main", T), ("", T), ("decay", 1.0), ("decay", T.long())):
        with pytest.raises(ValueError, match="add_loss"):
            wrong(name, value)


@pytest.mark.parametrize("name", ALL)
def test_what_a_mask_hides_of_the_weights_counts_for_nothing(name: str) -> None:
    loss, _ = ALL[name]
    p, t = numbers(4, 3), numbers(4, 3, seed=1)
    weights = numbers(*loss(p, t, reduction="none").shape, seed=2).abs()
    mask = numbers(*weights.shape, seed=3) > 0
    odd = torch.where(mask, weights, math.nan)

    assert torch.equal(loss(p, t, mask=mask, weights=odd), loss(p, t, mask=mask, weights=weights))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_of_more_half_precision_numbers_than_they_count_is_right(name: str, dtype: torch.dtype) -> None:
    loss, oracle = ALL[name]
    p, t = numbers(70_000, 2).to(dtype), numbers(70_000, 2, seed=1).to(dtype)
    expected = oracle(p.double(), t.double()).mean().to(dtype)
    mask = torch.ones(loss(p, t, reduction="none").shape, dtype=torch.bool)

    for found in (loss(p, t, mask=mask), loss(p, t, weights=mask.to(dtype))):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)


def test_equal_vectors_of_half_precision_have_no_gradient() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        a = numbers(4, 3).to(dtype).requires_grad_()
        found = losses.triplet(a, a.detach(), a.detach() + 9) + losses.contrastive(a, a.detach(), T == T)

        assert not torch.autograd.grad(found, a)[0].any()


def test_no_class_is_left_out_without_a_mask() -> None:
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        losses.cross_entropy(numbers(3, 4), torch.tensor([0, -100, 1]))


@pytest.mark.parametrize(("scale", "origin"), [(1e12, 0.0), (1.0, 3e5), (1e-3, 10.0)])
def test_pearson_depends_on_neither_unit_nor_origin(scale: float, origin: float) -> None:
    p, t = ((n * scale + origin).float() for n in (numbers(200), numbers(200) + numbers(200, seed=1)))
    expected = -torch.corrcoef(torch.stack([p, t]).double())[0, 1]

    torch.testing.assert_close(losses.pearson(p, t, eps=1e-20).double(), expected, rtol=1e-5, atol=0)


def test_the_terms_of_a_loss_within_a_loss_are_part_of_what_it_returns() -> None:
    @with_terms
    def outer(p: Lin, x: Tensor, y: Tensor) -> Tensor:
        add_loss("own", p.w.sum())
        return of_terms(p, x, y)

    p, x, y = Lin.init(features=3, out=2, seed=0), numbers(4, 3).float(), numbers(4, 2).float()
    terms = loss_terms(outer, p, x, y)

    assert list(terms) == ["main", "own"]
    torch.testing.assert_close(sum(terms.values()), outer(p, x, y).detach())
