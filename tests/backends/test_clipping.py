"""One clipping and one verdict a step, whoever asks for them: the trainer, its optimizer, or both."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import NonFiniteError, ParamList, ScalarTrainer
from shaped.optim import SGD, AdamW
from shaped_kernels import fusion
from tests.models import batch, mlp, mlp_loss
from tests.trainer.oracle import both


class Line(ParamList):
    a: Float[Tensor, " k"]


def slope(p: Line, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """Its gradient is `x`."""
    return (p.a * x).sum()


X = torch.arange(1.0, 5.0, dtype=torch.float64)


@both
@pytest.mark.parametrize(("trainers", "optimizers"), [(0.5, 0.25), (0.25, 0.5), (0.25, None), (None, 0.25)])
def test_a_gradient_is_clipped_once_to_the_smaller_of_two_limits(backend, trainers, optimizers, interpreted):
    params = Line(torch.zeros(4, dtype=torch.float64))
    optimizer = SGD(params, lr=1.0, max_norm=optimizers)
    trainer = ScalarTrainer(slope, params, backend=backend, optimizer=optimizer, max_norm=trainers)
    trainer.train_step(X)

    # Each clipping divides by the norm and 1e-6: a second one would show at 1e-6.
    torch.testing.assert_close(params.a, -X * (0.25 / (X.norm() + 1e-6)), rtol=1e-14, atol=0.0)
    assert trainer.grad_norm is optimizer.grad_norm
    torch.testing.assert_close(trainer.grad_norm, X.norm())


@both
@pytest.mark.parametrize("skips", [True, False])
def test_a_trainer_decides_what_is_not_finite_whatever_its_optimizer_would_skip(backend, skips, interpreted):
    x = X * torch.inf
    for options in ({}, {"nonfinite": "skip"}):
        params = Line(torch.ones(4, dtype=torch.float64))
        made = SGD(params, lr=1.0, skip_nonfinite=skips)
        trainer = ScalarTrainer(slope, params, backend=backend, optimizer=made, **options)  # type: ignore[arg-type]
        if options:
            trainer.train_step(x)
        else:
            with pytest.raises(NonFiniteError):
                trainer.train_step(x)

        assert (trainer.steps, trainer.skipped) == (0, len(options))
        assert params.a.tolist() == [1.0] * 4


def test_an_update_scales_no_gradient_that_it_is_given():
    class Told(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:
            ctx.x = x
            return (a * x).sum()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
            return ctx.x, None  # the batch itself, not a copy

    grads = [torch.full((3,), 5.0), torch.full((4,), 7.0)]
    for count in (1, 2):
        params = [torch.zeros_like(g, requires_grad=True) for g in grads[:count]]
        AdamW(params, max_norm=0.1).update(grads[:count])
    x = X.float()
    point = torch.zeros(4, requires_grad=True)
    (given,) = torch.autograd.grad(Told.apply(point, x), [point])
    AdamW([point], max_norm=0.1).update([given])

    assert given.data_ptr() == x.data_ptr()
    assert torch.equal(x, X.float())
    assert [g[0].item() for g in grads] == [5.0, 7.0]


def test_an_eager_step_looks_for_the_norm_once(monkeypatch):
    norms = []
    plain = fusion._squares
    monkeypatch.setattr(fusion, "_squares", lambda calls: norms.append(1) or plain(calls))  # type: ignore[func-returns-value]
    params = mlp()
    made = AdamW(params, max_norm=1.0, skip_nonfinite=True)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=made, max_norm=2.0, nonfinite="skip")
    trainer.train_step(*batch())

    assert len(norms) == 1
