"""ctc_loss is proved for every time, batch and number of labels, and is torch's, with torch's gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ExecutorError, ParamList, ProofError, ScalarTrainer, init, prove
from shaped.proof.alignment import ctc_loss


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("sizes", [(7, 4, 5, 3), (2, 4, 3, 3), (1, 2, 3, 1)])
def test_as_one_operation_it_gives_torchs_loss_and_gradient(sizes: tuple[int, int, int, int], reduction: str) -> None:
    time, batch, classes, labels = sizes
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(time, batch, classes, generator=generator).log_softmax(-1).requires_grad_()
    targets = torch.randint(1, classes, (batch, labels), generator=generator)
    given = torch.randint((time + 1) // 2, time + 1, (batch,), generator=generator)
    wanted = torch.randint(0, labels + 1, (batch,), generator=generator)
    losses = [f(y, targets, given, wanted, reduction=reduction, zero_infinity=True) for f in (ctc_loss, F.ctc_loss)]
    gradients = [torch.autograd.grad(loss.sum(), y, retain_graph=True)[0] for loss in losses]

    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_aligned_is_infinitely_unlikely() -> None:
    y, targets = torch.zeros(2, 1, 3).log_softmax(-1), torch.ones(1, 3, dtype=torch.int64)

    assert ctc_loss(y, targets, (2,), (3,)).isinf()


def by_lengths(x: Float[Tensor, "5 n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.log_softmax(-1), y, torch.full_like(ends, 5), ends)


def each(x: Float[Tensor, "5 n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return F.ctc_loss(x.log_softmax(-1), y, torch.full_like(ends, 5), ends, reduction="none")


def by_numbers(x: Float[Tensor, "5 2 c"], y: Int[Tensor, "2 s"]) -> Float[Tensor, ""]:
    return nn.CTCLoss()(x.log_softmax(-1), y, (5, 5), (1, 1))


def over_time(x: Float[Tensor, "t n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.log_softmax(-1), y, ends, ends, reduction="sum", zero_infinity=True)


@pytest.mark.parametrize("function", [by_lengths, each, by_numbers, over_time])
def test_it_is_proved_for_all_sizes(function: Callable[..., Any]) -> None:
    assert prove(function).conditions == ()


def other_lengths(x: Float[Tensor, "t n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " m"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.log_softmax(-1), y, ends, ends)


def other_targets(x: Float[Tensor, "t n c"], y: Int[Tensor, "m s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.log_softmax(-1), y, ends, ends)


def batch_first(x: Float[Tensor, "n t c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.log_softmax(-1), y, ends, ends)


@pytest.mark.parametrize("function", [other_lengths, other_targets, batch_first])
def test_lengths_and_targets_of_another_batch_are_refuted(function: Callable[..., Any]) -> None:
    with pytest.raises(ProofError, match="is not well-shaped"):
        prove(function)


class Weights(ParamList):
    w: Float[Tensor, "d c"] = init.ones()


def loss(p: Weights, x: Float[Tensor, "t n d"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss((x @ p.w).log_softmax(-1), y, torch.full_like(ends, len(x)), ends)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_step_is_plain_torchs_at_every_time(backend: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 4, generator=generator)
    params = Weights(w=start.clone())
    trainer = ScalarTrainer(loss, params, backend=backend)
    for time, rows in ((4, 3), (6, 2), (3, 4)):
        x, ends = torch.randn(time, rows, 2, generator=generator), torch.tensor([2, 1, 2, 1])[:rows]
        y, w = torch.randint(1, 4, (rows, 2), generator=generator), params.w.detach().clone().requires_grad_()
        value = loss(Weights(w=w), x, y, ends)
        (gradient,) = torch.autograd.grad(value, w)
        torch.testing.assert_close(trainer.step(x, y, ends, lr=0.1), value.detach())
        torch.testing.assert_close(params.w.detach(), w.detach() - 0.1 * gradient)


@pytest.mark.usefixtures("interpreted")
def test_compiled_lengths_and_labels_beyond_are_refused_and_nothing_is_read_there() -> None:
    params = Weights(w=torch.ones(2, 4))
    trainer = ScalarTrainer(loss, params, backend="compiled")
    x, y, ends = torch.randn(4, 3, 2), torch.ones(3, 2, dtype=torch.int64), torch.tensor([2, 1, 2])
    trainer.step(x, y, ends, lr=0.1)
    before = params.w.detach().clone()
    for wrong in ((x, y, ends + 1), (x, y + 3, ends), (x, y, -ends)):
        with pytest.raises(ExecutorError, match="ctc_loss takes lengths within the time and the labels"):
            trainer.step(*wrong, lr=0.1)
        assert torch.equal(params.w, before)
