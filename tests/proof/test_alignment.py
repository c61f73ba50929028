"""ctc_loss over a static time is proved for every batch, and is torch's, with torch's gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ParamList, ProofError, ScalarTrainer, init, prove
from shaped.proof.alignment import ctc_loss


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("sizes", [(7, 4, 5, 3), (2, 4, 3, 3), (1, 2, 3, 1)])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_recursion_gives_torchs_loss_and_gradient(
    sizes: tuple[int, int, int, int], reduction: str, normalised: bool
) -> None:
    time, batch, classes, labels = sizes
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(time, batch, classes, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(1, classes, (batch, labels), generator=generator)
    given = torch.randint((time + 1) // 2, time + 1, (batch,), generator=generator)
    wanted = torch.randint(0, labels + 1, (batch,), generator=generator)
    y = logits.log_softmax(-1) if normalised else logits - 3
    losses = [f(y, targets, given, wanted, reduction=reduction, zero_infinity=True) for f in (ctc_loss, F.ctc_loss)]
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in losses]

    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_cannot_be_aligned_is_infinitely_unlikely() -> None:
    y, targets = torch.zeros(2, 1, 3).log_softmax(-1), torch.ones(1, 3, dtype=torch.int64)

    assert ctc_loss(y, targets, (2,), (3,)).isinf()


def by_lengths(x: Float[Tensor, "5 n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.log_softmax(-1), y, torch.full_like(ends, 5), ends)


def each(x: Float[Tensor, "5 n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return F.ctc_loss(x.log_softmax(-1), y, torch.full_like(ends, 5), ends, reduction="none")


def by_numbers(x: Float[Tensor, "5 2 c"], y: Int[Tensor, "2 s"]) -> Float[Tensor, ""]:
    return nn.CTCLoss()(x.log_softmax(-1), y, (5, 5), (1, 1))


@pytest.mark.parametrize("function", [by_lengths, each, by_numbers])
def test_it_is_proved_for_all_sizes_but_the_time(function: Callable[..., Any]) -> None:
    assert prove(function).conditions == ()


def test_lengths_of_another_batch_are_refuted() -> None:
    def wrong(x: Float[Tensor, "5 n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " m"]) -> Float[Tensor, ""]:
        return F.ctc_loss(x.log_softmax(-1), y, ends, ends)

    with pytest.raises(ProofError):
        prove(wrong)


class Weights(ParamList):
    w: Float[Tensor, "d c"] = init.ones()


def loss(p: Weights, x: Float[Tensor, "t n d"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss((x @ p.w).log_softmax(-1), y, torch.full_like(ends, len(x)), ends)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_step_is_plain_torchs(backend: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, start = torch.randn(4, 3, 2, generator=generator), torch.randn(2, 4, generator=generator)
    y, ends = torch.randint(1, 4, (3, 2), generator=generator), torch.tensor([2, 1, 2])
    w = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(Weights(w=w), x, y, ends), w)
    params = Weights(w=start.clone())
    ScalarTrainer(loss, params, backend=backend, static=("t",)).step(x, y, ends, lr=0.1)

    torch.testing.assert_close(params.w, start - 0.1 * gradient)
