"""Which losses ranks may share: a mean over samples is; others are refused before a step, at the line. No processes."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shaped import ParamList, ProofError, SignatureError
from shaped.backends import Program
from shaped.backends.separable import SharedMeans, hold_to_mean

X = Float[Tensor, "batch dim"]
Y = Int[Tensor, " batch"]
Keep = Bool[Tensor, " batch"]
Scalar = Float[Tensor, ""]


class P(ParamList):
    w: Float[Tensor, "dim classes"]


def mean(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(x @ p.w, y)


def penalty(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(x @ p.w, y) + 0.1 * p.w.square().sum()


def ignoring(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(x @ p.w, y, ignore_index=0)


def kept(p: P, x: X, keep: Keep) -> Scalar:
    return ((x @ p.w).square().mean(1) * keep).sum() / keep.sum().clamp(min=1)


def dropping(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(F.dropout(x, 0.3) @ p.w, y)


def of_sequences(p: P, x: Float[Tensor, "batch seq dim"]) -> Scalar:
    return torch.softmax(x @ p.w, 1).square().mean()


def attending(p: P, x: Float[Tensor, "batch seq dim"]) -> Scalar:
    h = x @ p.w
    return F.scaled_dot_product_attention(h, h, h, is_causal=True).square().mean()


MEANS = [mean, penalty, ignoring, kept, dropping, of_sequences, attending]


def total(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(x @ p.w, y, reduction="sum")


def contrastive(p: P, x: X, z: Float[Tensor, "batch dim"]) -> Scalar:
    s = (x @ p.w) @ (z @ p.w).T
    return F.cross_entropy(s, torch.arange(s.shape[0]))


def standardized(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy((x - x.mean(0)) / (x.std(0) + 1e-3) @ p.w, y)


def correlation(p: P, x: X, z: Float[Tensor, " batch"]) -> Scalar:
    h = (x @ p.w).sum(1)
    a, b = h - h.mean(), z - z.mean()
    return -(a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()


def root_of_mean(p: P, x: X) -> Scalar:
    return (x @ p.w).square().mean().sqrt()


def ratio_of_sums(p: P, x: X, keep: Keep) -> Scalar:
    h = (x @ p.w).square().mean(1)
    return (h * keep).sum() / (1.0 + h.sum())


def largest(p: P, x: X) -> Scalar:
    return (x @ p.w).square().amax()


def variance(p: P, x: X) -> Scalar:
    return (x @ p.w).var()


def softmax_over_batch(p: P, x: X, z: Float[Tensor, " batch"]) -> Scalar:
    return (torch.softmax((x @ p.w).sum(1), 0) * z).sum()


def dice(p: P, x: X, keep: Keep) -> Scalar:
    h = torch.sigmoid((x @ p.w).sum(1))
    return 1 - 2 * (h * keep).sum() / (h + keep).sum()


def ranked(p: P, x: X) -> Scalar:
    return (torch.sort((x @ p.w).sum(1)).values * torch.linspace(0, 1, x.shape[0])).mean()


def shifted(p: P, x: X) -> Scalar:
    h = x @ p.w
    return (h[1:] - h[:-1]).square().mean()


def rescaled(p: P, x: X) -> Scalar:
    return (x @ p.w).square().sum() / x.shape[0] ** 2


OTHERS = [
    total, contrastive, standardized, correlation, root_of_mean, ratio_of_sums, largest, variance, softmax_over_batch,
    dice, ranked, shifted, rescaled,
]  # fmt: skip


def hold(loss: Callable[..., Any], samples: Any = None) -> None:
    hold_to_mean(Program(loss, P.init(dim=5, classes=3, seed=0), samples=samples), "batch")


@pytest.mark.parametrize("loss", MEANS, ids=lambda loss: loss.__name__)
def test_a_mean_over_samples_may_be_shared(loss: Callable[..., Any]) -> None:
    hold(loss)


@pytest.mark.parametrize("loss", OTHERS, ids=lambda loss: loss.__name__)
def test_what_is_no_mean_over_samples_is_refused_at_its_line(loss: Callable[..., Any]) -> None:
    with pytest.raises((ProofError, SignatureError)) as found:
        hold(loss)
    said = str(found.value)

    assert f"`{loss.__name__}` is no mean over batch" in said
    assert re.search(r"test_separable\.py:\d+ ", said)


def test_the_count_that_is_given_is_what_parts_are_weighed_by() -> None:
    hold(kept, lambda x, keep: keep.sum())

    with pytest.raises(ProofError, match="no mean over batch"):
        hold(mean, lambda x, y: (y != 0).sum())


def test_a_refusal_says_what_it_is_where_samples_meet_and_what_to_do() -> None:
    with pytest.raises(ProofError) as found:
        hold(contrastive)
    said = re.sub(r"\d+\.\d+", "#", str(found.value))
    said = re.sub(r"py:\d+ +matmul +", "py:N matmul ", said)

    assert said == (
        "`contrastive` is no mean over batch: it is # of 7 drawn samples, and # of 3 and 4 of them. Ranks that each "
        "take their part would train another program.\n"
        "  test_separable.py:N matmul [batch, classes], [classes, batch] -> [batch, batch]\n"
        "  hint  write it as a mean over samples; say samples= where it divides by a count of its own, such as "
        '`lambda x, keep: keep.sum()`; or inside=["batch"], with which all ranks are given whole batches and gather '
        "what an operation must see whole; or leave mesh out"
    )


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Float[Tensor, "batch 5"]) -> Float[Tensor, "batch 3"]:
        return self.b(self.n(self.a(x)).relu())  # type: ignore[no-any-return]


def over(out: Float[Tensor, "batch 3"], y: Int[Tensor, " batch"]) -> Scalar:
    return F.cross_entropy(out, y)


def test_batch_norm_is_refused_in_training_and_not_in_evaluation() -> None:
    hold_to_mean(Program(over, Normed().eval()), "batch")

    with pytest.raises(ProofError, match="no mean over batch"):
        hold_to_mean(Program(over, Normed()), "batch")


def on_small(p: P, x: X, y: Y) -> Scalar:
    each = F.cross_entropy(x @ p.w, y, reduction="none")
    return each.mean() if x.shape[0] > 3 else each.amax()


def of_the_first(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(x @ p.w, y, reduction="none")[:8].mean()


def on_masks(p: P, x: X, keep: Keep | None = None) -> Scalar:
    each = (x @ p.w).square().mean(1)
    return each.mean() if keep is None else (each * keep).amax()


def test_a_branch_on_the_size_of_a_batch_is_compared_where_batches_take_it() -> None:
    with pytest.raises(ProofError, match="no mean over batch"):
        hold(of_the_first)  # on 8 samples and below it is one
    program = Program(on_small, P.init(dim=5, classes=3, seed=0))
    means = SharedMeans(program, "batch", 2, hold_to_mean(program, "batch"))

    def of(rows: int) -> None:
        batch = torch.randn(rows, 5), torch.arange(rows) % 3
        means.hold(program.admit(batch), batch)

    of(12)
    with pytest.raises(ProofError, match=r"of 4 drawn samples, and .* of 2 and 2 of them"):
        of(2)
    of(12)


def test_another_graph_of_other_inputs_is_compared_when_it_comes() -> None:
    program = Program(on_masks, P.init(dim=5, classes=3, seed=0))
    means = SharedMeans(program, "batch", 2, set())
    x, keep = torch.randn(4, 5), torch.arange(4) > 0
    means.hold(program.admit((x, None)), (x, None))

    with pytest.raises(ProofError, match="no mean over batch"):
        means.hold(program.admit((x, keep)), (x, keep))
