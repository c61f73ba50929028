"""A mean is over what was counted: sizes, what a loss divides by, or what a function of the batch says."""

import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ParamList, ProofError, ScalarTrainer, SignatureError, losses

pytestmark = pytest.mark.usefixtures("interpreted")
both = pytest.mark.parametrize("backend", ["eager", "compiled"])


class Head(ParamList):
    w: Float[Tensor, "dim vocab"]


def masked(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return losses.cross_entropy(x @ p.w, y, mask=keep)


def weighted(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return losses.cross_entropy(x @ p.w, y, mask=keep, weights=x[..., 0].abs()) + 0.1 * p.w.square().sum()


def by_hand(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    single = F.cross_entropy((x @ p.w).transpose(1, 2), y, reduction="none")
    return (single * keep).sum() / keep.sum().clamp(min=1)


def mean_of_means(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    single = F.cross_entropy((x @ p.w).transpose(1, 2), y, reduction="none")
    return (single * keep).mean() * (1 / keep.to(single.dtype).mean())


def ignoring(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return F.cross_entropy((x @ p.w).flatten(0, 1), torch.where(keep, y, -100).flatten(), label_smoothing=0.1)


def class_weighted(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    weight = torch.arange(1, p.w.shape[1] + 1, dtype=x.dtype)
    return F.cross_entropy((x @ p.w).flatten(0, 1), torch.where(keep, y, -100).flatten(), weight=weight)


def head() -> Head:
    return Head.init(dim=3, vocab=4, seed=0, dtype=torch.float64)


def tokens(fills: list[int], seq: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of sequences of which so many tokens are kept."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(fills), seq, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (len(fills), seq), generator=generator)
    return x, y, torch.arange(seq) < torch.tensor(fills)[:, None]


# Of one length, so that their union is a batch: full, sparse, empty, and of another number of sequences.
PARTS = [tokens([4, 4], 4, 0), tokens([1, 0], 4, 1), tokens([0, 0], 4, 2), tokens([3, 1, 2], 4, 3)]
UNION = [torch.cat(parts) for parts in zip(*PARTS, strict=True)]


def kept(x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
    return keep.sum()


def union_step(loss: Callable[..., Tensor]) -> Head:
    params = head()
    ScalarTrainer(loss, params).step(*UNION, lr=1.0)
    return params


@both
@pytest.mark.parametrize("samples", [None, "batch*seq", kept], ids=["the loss", "sizes", "a function"])
def test_accumulating_masked_micro_batches_of_any_fill_is_the_step_of_their_union(backend, samples):
    trainer = ScalarTrainer(masked, head(), backend=backend, samples=samples, accumulate=len(PARTS))
    values = [trainer.step(*part, lr=1.0).item() for part in PARTS]

    # Four means of a few roundings each, in float64.
    torch.testing.assert_close(trainer.params.w, union_step(masked).w, rtol=1e-13, atol=1e-13)
    assert all(map(math.isfinite, values))
    assert trainer.steps == 1


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(weighted, marks=pytest.mark.slow),
        by_hand,
        pytest.param(mean_of_means, marks=pytest.mark.slow),
        ignoring,
        class_weighted,
    ],
)
def test_what_a_loss_divides_by_is_read_off_its_graph(loss):
    static = ("vocab",) if loss is class_weighted else ()
    trainer = ScalarTrainer(loss, head(), accumulate=len(PARTS), static=static)
    for part in PARTS:
        trainer.step(*part, lr=1.0)

    wanted = head()
    ScalarTrainer(loss, wanted, static=static).step(*UNION, lr=1.0)
    torch.testing.assert_close(trainer.params.w, wanted.w, rtol=1e-13, atol=1e-13)


@both
def test_one_compiled_step_of_all_sizes_counts_what_each_batch_keeps(backend):
    trainer = ScalarTrainer(masked, head(), backend=backend, accumulate=4, sizes="dynamic")
    parts = [tokens([2, 3], 5, 0), tokens([1, 1, 1], 3, 1), tokens([0, 2], 2, 2), tokens([7, 4], 7, 3)]
    total, mean = 0.0, torch.zeros_like(trainer.params.w)
    for part in parts:
        count = part[2].sum().item()
        mean, total = mean + count * trainer.backward(*part).w, total + count
    before = trainer.params.w.clone()
    for part in parts:
        trainer.step(*part, lr=1.0)

    torch.testing.assert_close(trainer.params.w, before - mean / total, rtol=1e-13, atol=1e-13)


def test_a_compiled_step_asks_the_function_only_while_it_is_made():
    asked = []

    def counting(x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
        asked.append(1)
        return keep.sum()

    trainer = ScalarTrainer(masked, head(), backend="compiled", samples=counting, accumulate=2)
    for part in PARTS[:2]:
        trainer.step(*part, lr=1.0)
    made = len(asked)
    for part in PARTS[:2] * 2:
        trainer.step(*part, lr=1.0)

    assert len(asked) == made
    assert trainer.steps == 3


@both
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_an_update_of_batches_without_samples_moves_nothing_and_is_none(backend, nonfinite):
    trainer = ScalarTrainer(ignoring, head(), backend=backend, nonfinite=nonfinite, accumulate=2)
    before = trainer.get_params()
    for _ in range(2):
        trainer.adamw_step(*PARTS[2], lr=1.0)  # the loss itself is 0/0 here

    assert torch.equal(trainer.params.w, before.w)
    assert (trainer.steps, trainer.skipped, trainer.waiting) == (0, 0, 0)
    for part in (PARTS[2], PARTS[0]):
        trainer.adamw_step(*part, lr=1.0)
    assert trainer.steps == 1


def two_masks(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return losses.cross_entropy(x @ p.w, y, mask=keep) + losses.cross_entropy(x @ p.w, y, mask=y > 0)


def mask_and_mean(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return losses.cross_entropy(x @ p.w, y, mask=keep) + 0.1 * (x @ p.w).logsumexp(-1).square().mean()


def hardest(
    p: Head, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    single = F.cross_entropy((x @ p.w).transpose(1, 2), y, reduction="none")
    return (single * (single > 0.1)).sum() / (single > 0.1).sum()  # a count that the parameters choose


@pytest.mark.parametrize(
    ("loss", "samples"),
    [
        (two_masks, None),
        pytest.param(hardest, None, marks=pytest.mark.slow),
        pytest.param(mask_and_mean, "batch*seq", marks=pytest.mark.slow),
    ],
)
def test_a_loss_of_several_counts_is_accumulated_by_a_function_only(loss, samples):
    with pytest.raises(SignatureError) as caught:
        ScalarTrainer(loss, head(), accumulate=2, samples=samples)

    assert str(caught.value) == (
        f"`{loss.__name__}` divides by several counts (masks, ignored targets, and plain means beside them): "
        "no count makes accumulated batches the step of their union. Pass samples= a function of the batch, such as "
        "`lambda x, y, keep: keep.sum()`"
    )
    trainer = ScalarTrainer(loss, head(), accumulate=2, samples=kept)
    assert trainer.count(*PARTS[1]) == 1.0
    with pytest.warns(UserWarning, match="divides by several counts .* depends on how they were cut"):
        assert ScalarTrainer(loss, head()).count(*PARTS[1]) == 2.0


@pytest.mark.parametrize(
    ("samples", "count"),
    [
        (None, 4.0),
        ("batch*seq", 4.0),
        ("batch", 2 * 4 / 8),  # of two sequences the share that is kept
        (lambda x, y, keep: keep.any(1).sum(), 2.0),
        (lambda x, y, keep: x.shape[0], 2.0),
        (lambda x, y, keep: keep.double().mean(), 0.5),
        (lambda *batch: 3, 3.0),
    ],
)
def test_a_count_is_a_number_that_sizes_or_values_give(samples, count):
    trainer = ScalarTrainer(masked, head(), samples=samples)

    assert trainer.count(*tokens([3, 1], 4, 0)) == count


def any_axes(p: Head, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean()


def test_the_axes_that_lead_the_first_input_are_counted_together():
    trainer = ScalarTrainer(any_axes, head())

    for shape, count in (((3,), 1.0), ((5, 3), 5.0), ((2, 5, 3), 10.0)):
        assert trainer.count(torch.zeros(shape, dtype=torch.float64)) == count


def two_inputs(p: Head, x: Float[Tensor, "batch dim"], *, keep: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    return losses.mse(x @ p.w, torch.zeros_like(x @ p.w))


@both
def test_a_function_takes_the_batch_as_the_loss_does(backend):
    trainer = ScalarTrainer(
        two_inputs, head(), backend=backend, accumulate=2, samples=lambda x, *, keep: (x[:, 0].abs() * keep).sum()
    )
    x, keep = torch.ones(4, 3, dtype=torch.float64), torch.tensor([True, False, True, True])

    assert trainer.count(x, keep=keep) == 3.0
    trainer.step(x, keep=keep, lr=1.0)
    trainer.step(2 * x, keep=keep, lr=1.0)
    assert trainer.steps == 1


@pytest.mark.parametrize(
    ("samples", "error", "said"),
    [
        (lambda x: 1, SignatureError, "samples does not take a batch of `masked`, which is (x, y, keep)"),
        (lambda x, y, keep: keep, ProofError, "result   [batch, seq], declared a scalar"),
        (lambda x, y, keep: "12", ProofError, "result   a str, declared a scalar"),
        (3, SignatureError, 'samples is 3; it is an expression over dimension names, such as "batch*seq", or a func'),
        ("tokens", SignatureError, "samples='tokens': `tokens` is no dimension of the inputs"),
    ],
)
def test_what_counts_no_samples_is_refused_before_anything_runs(samples, error, said):
    with pytest.raises(error) as caught:
        ScalarTrainer(masked, head(), samples=samples)

    assert said in str(caught.value)


@both
@pytest.mark.parametrize("count", [-1.0, math.nan, math.inf])
def test_a_count_below_0_or_not_finite_is_an_error_and_changes_nothing(backend, count):
    def samples(x: Tensor, y: Tensor, keep: Tensor) -> Any:
        return torch.where(keep.all(), count, 1.0)

    trainer = ScalarTrainer(masked, head(), backend=backend, accumulate=2, samples=samples)
    before = trainer.get_params()
    trainer.step(*PARTS[1], lr=1.0)
    full = tokens([4, 4], 4, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"samples gives {count:g} for this batch; a count is a number from 0 on"):
            trainer.step(*full, lr=1.0)

    assert trainer.waiting == 1
    assert torch.equal(trainer.params.w, before.w)


PAD = 0


def not_padded(x: Tensor, y: Tensor, keep: Tensor) -> Tensor:
    return (y != PAD).sum()


@both
def test_a_number_that_the_function_reads_from_outside_is_followed(backend, monkeypatch):
    trainer = ScalarTrainer(masked, head(), backend=backend, samples=not_padded, accumulate=3)
    full = tokens([4, 4], 4, 0)
    zeros, ones = ((full[1] != n).sum().item() for n in (0, 1))
    trainer.step(*full, lr=1.0)
    assert trainer._shared.counters.weight.item() == zeros
    monkeypatch.setitem(globals(), "PAD", 1)
    trainer.step(*full, lr=1.0)

    assert trainer._shared.counters.weight.item() == zeros + ones
    assert trainer.count(*full) == ones


def test_a_tensor_that_the_function_reads_from_outside_is_refused():
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0])
    with pytest.raises(SignatureError, match=r"samples reads .*from outside: make the tensor an input of the loss"):
        ScalarTrainer(masked, head(), samples=lambda x, y, keep: weight[y].sum())


class FourClasses(ParamList):
    w: Float[Tensor, "dim 4"]


WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)


def weighted_from_outside(
    p: FourClasses, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return F.cross_entropy((x @ p.w).flatten(0, 1), torch.where(keep, y, -100).flatten(), weight=WEIGHT)


@both
def test_class_weights_from_outside_are_part_of_the_count(backend):
    first, second = FourClasses(head().w.detach()), FourClasses(head().w.detach())
    trainer = ScalarTrainer(weighted_from_outside, first, backend=backend, accumulate=len(PARTS))
    for part in PARTS:
        trainer.step(*part, lr=1.0)
    ScalarTrainer(weighted_from_outside, second).step(*UNION, lr=1.0)

    torch.testing.assert_close(first.w, second.w, rtol=1e-13, atol=1e-13)
    _, y, keep = UNION
    assert trainer.count(*UNION) == pytest.approx(WEIGHT[y[keep]].sum().item())


@both
def test_a_count_goes_by_what_lies_outside_when_the_batch_comes(backend, monkeypatch):
    trainer = ScalarTrainer(weighted_from_outside, FourClasses(head().w.detach()), backend=backend, accumulate=3)
    _, y, keep = UNION
    assert trainer.count(*UNION) == pytest.approx(WEIGHT[y[keep]].sum().item())
    heavier = torch.tensor([5.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    monkeypatch.setitem(globals(), "WEIGHT", heavier)
    count = heavier[y[keep]].sum().item()
    assert trainer.count(*UNION) == pytest.approx(count)
    trainer.step(*UNION, lr=1.0)
    monkeypatch.setitem(globals(), "WEIGHT", 2 * heavier)
    trainer.step(*UNION, lr=1.0)

    assert trainer._shared.counters.weight.item() == pytest.approx(3 * count)


def test_backends_are_compared_on_a_batch_without_samples_too():
    trainer = ScalarTrainer(masked, head(), backend="compiled", accumulate=2)

    for part in (PARTS[0], PARTS[2]):
        assert trainer.compare_backends(*part).agree


@both
def test_gradients_that_wait_are_stepped_when_asked_for(backend):
    trainer = ScalarTrainer(masked, head(), backend=backend, accumulate=8)
    assert trainer.step_waiting() == 0
    for part in PARTS:
        trainer.step(*part, lr=1.0)

    assert trainer.step_waiting() == 4
    assert (trainer.steps, trainer.waiting) == (1, 0)
    torch.testing.assert_close(trainer.params.w, union_step(masked).w, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (lambda x, y: x.shape[0] * random.randint(1, 5), "samples reads Python's `random`: a count is"),
        (lambda x, y: (torch.rand(x.shape[0]) > 0.5).sum() + 1, "samples reads random numbers"),
        (lambda x, y: F.dropout(torch.ones(4)).sum(), "samples reads random numbers"),
        (lambda x, y: time.time(), "samples reads the clock"),
    ],
)
def test_a_count_by_chance_or_by_the_clock_is_refused(samples: Any, said: str, backend: Any) -> None:
    def loss(p: Head, x: Float[Tensor, "batch dim"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return F.cross_entropy(x @ p.w, y)

    batch = PARTS[0][0][:, 0], PARTS[0][1][:, 0]
    with pytest.raises(SignatureError) as caught:
        ScalarTrainer(loss, head(), backend=backend, samples=samples, accumulate=2).step(*batch, lr=0.1)

    assert str(caught.value).startswith(said)
