"""Losses that draw: eager on the random numbers of compiled code."""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shaped import ExecutorError, ParamList, ScalarTrainer
from shaped.backends import draws


class P(ParamList):
    w: Float[Tensor, "dim out"]


def drawn(p: P, x: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    y = F.dropout(x @ p.w, 0.5) * torch.bernoulli(torch.sigmoid(x @ p.w))
    return (y * torch.rand_like(x[:, :1]) + torch.randn(p.w.shape[1])).square().mean()


@pytest.mark.slow
def test_a_loss_that_draws_is_held_on_the_numbers_of_the_compiled_code(monkeypatch):
    x = torch.linspace(-1, 1, 18).reshape(3, 6)
    trainers = [ScalarTrainer(drawn, P.init(dim=6, out=4, seed=0), backend="compiled", verify=v) for v in (True, False)]
    after = []
    for trainer in trainers:
        torch.manual_seed(3)
        trainer.adamw_step(x, lr=0.1)
        after.append(torch.rand(3))

    assert [(e.held, e.note) for e in trainers[0].executors] == [(True, "")]
    assert torch.equal(trainers[0].params.w, trainers[1].params.w)
    assert torch.equal(*after)

    theirs = draws._Replay._next
    monkeypatch.setattr(draws._Replay, "_next", lambda *arguments: 1 - theirs(*arguments))
    with pytest.raises(ExecutorError, match="compiled code is not the program"):
        trainers[0].forward(x)
