"""Names that lie within the program and are gathered where an operation must see them whole, against one process.

The losses are those that ranks cannot share by taking rows, since they are no mean over their batch.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ProofError, ScalarTrainer, init
from tests.ranks.lockstep import on_parts
from tests.ranks.test_separable import OTHERS, P, Scalar, X, Y
from tests.ranks.test_walk import EXACT, WIDE


def batch_norm(p: P, x: X, y: Y) -> Scalar:
    return F.cross_entropy(F.batch_norm(x, None, None, training=True) @ p.w, y)


def hardest(p: P, x: X, y: Y) -> Scalar:
    each = F.cross_entropy(x @ p.w, y, reduction="none")
    return each.topk(3).values.mean() + each.logsumexp(0)


def pairs(p: P, x: X, y: Y) -> Scalar:
    h = (x @ p.w)[:, 0]
    return (F.softplus(h[None] - h[:, None]) * (y[:, None] > y[None])).mean()


def covariance(p: P, x: X) -> Scalar:
    h = torch.tanh(x @ p.w)
    return (h.T @ h / x.shape[0] - torch.eye(h.shape[1], dtype=h.dtype)).square().sum()


def neighbours(p: P, x: X) -> Scalar:
    h = torch.tanh(x @ p.w)
    return (h - h.roll(1, 0)).square().mean() + h.cumsum(0).square().mean()


def by_class(p: P, x: X, y: Y) -> Scalar:
    each = F.cross_entropy(x @ p.w, y, reduction="none")
    return torch.zeros(3, dtype=each.dtype).index_add(0, y, each).square().mean()


MORE: list[Callable[..., Any]] = [batch_norm, hardest, pairs, covariance, neighbours, by_class]


def drawn(trainer: ScalarTrainer, **sizes: int) -> list[Tensor]:
    generator, found = torch.Generator().manual_seed(3), []
    for entry in trainer._program.inputs:
        values = torch.randn([int(d.evaluate(sizes)) for d in entry.spec.dims], generator=generator)
        if not (dtype := trainer._program.batch.dtype(entry)).is_floating_point:
            values = (values * 9).long().abs() % (2 if dtype == torch.bool else 3)
        found.append(values.to(dtype))
    return found


def held(loss: Callable[..., Any], params: ParamList, *names: str, **sizes: int) -> None:
    trainer = ScalarTrainer(loss, params)
    batch = drawn(trainer, **sizes)
    graph = trainer._program.admit(batch).graph
    with torch.no_grad():
        wholes = graph(*trainer._program.plain, *batch)
    for mine, whole in zip(on_parts(trainer, batch, names, inside=True), wholes, strict=True):
        torch.testing.assert_close(mine, whole, rtol=EXACT, atol=EXACT * float(whole.detach().abs().max()))


LOSSES = [loss if loss in MORE else pytest.param(loss, marks=pytest.mark.slow) for loss in [*MORE, *OTHERS]]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_loss_that_is_no_mean_over_its_batch_is_exact_with_the_batch_in_parts_within(
    loss: Callable[..., Any],
) -> None:
    held(loss, P.init(dim=5, classes=3, seed=0, dtype=WIDE), "batch", batch=8, dim=5)


class Block(ParamList):
    norm: Float[Tensor, " dim"] = init.ones()
    qkv: Float[Tensor, "dim 3*inner"]
    out: Float[Tensor, "inner dim"]


def attending(p: Block, x: Float[Tensor, "batch seq dim"], y: Float[Tensor, "batch seq dim"]) -> Scalar:
    h = F.layer_norm(x, (x.shape[-1],), p.norm)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (h @ p.qkv).chunk(3, -1))
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.mse_loss(x + torch.tanh(a.transpose(1, 2).flatten(2) @ p.out), y)


def test_a_sequence_in_parts_is_gathered_for_attention() -> None:
    held(attending, Block.init(dim=4, inner=8, seed=0, dtype=WIDE), "seq", batch=3, seq=6, dim=4)


def test_a_name_that_is_not_asked_for_inside_is_refused_and_not_gathered() -> None:
    trainer = ScalarTrainer(hardest, P.init(dim=5, classes=3, seed=0, dtype=WIDE))

    with pytest.raises(ProofError, match="batch whole, and a rank has a part of it"):
        on_parts(trainer, drawn(trainer, batch=8, dim=5), ["batch"])
