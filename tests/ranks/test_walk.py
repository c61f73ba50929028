"""Placements by name: a proved graph on parts against the graph on whole values, and the plans that are refused."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ProofError, ScalarTrainer, ShapeError, SignatureError, init
from shaped.ranks.placements import AxisPlacement, Shard
from tests.ranks.lockstep import on_parts, walked

WIDE = torch.float64
EXACT = 1e-12  # float64 sums in another order; measured below 2e-15


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.normal(0.1)
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.normal(0.1)


def mlp(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(torch.tanh(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)


class Block(ParamList):
    norm1: Float[Tensor, " dim"] = init.ones()
    qkv: Float[Tensor, "dim 3*inner"] = init.normal(0.2)
    out: Float[Tensor, "inner dim"] = init.normal(0.2)
    norm2: Float[Tensor, " dim"] = init.ones()
    up: Float[Tensor, "dim hidden"] = init.normal(0.2)
    down: Float[Tensor, "hidden dim"] = init.normal(0.2)


class GPT(ParamList):
    tokens: Float[Tensor, "vocab dim"] = init.normal(0.5)
    places: Float[Tensor, "context dim"] = init.normal(0.2)
    blocks: list[Block]
    norm: Float[Tensor, " dim"] = init.ones()


def gpt(p: GPT, x: Int[Tensor, "batch seq"], y: Int[Tensor, "batch seq"], heads: int = 4) -> Float[Tensor, ""]:
    h = p.tokens[x] + p.places[: x.shape[1]]
    for b in p.blocks:
        a = F.layer_norm(h, (h.shape[-1],), b.norm1) @ b.qkv
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in a.chunk(3, dim=-1))
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ b.out
        h = h + F.gelu(F.layer_norm(h, (h.shape[-1],), b.norm2) @ b.up) @ b.down
    out = F.layer_norm(h, (h.shape[-1],), p.norm) @ p.tokens.T
    return F.cross_entropy(out.flatten(0, 1), y.flatten())


class Einsums(ParamList):
    q: Float[Tensor, "dim heads head"]
    o: Float[Tensor, "heads head dim"]


def einsums(p: Einsums, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, ""]:
    q = torch.einsum("bsd,dhe->bhse", x, p.q)
    a = torch.softmax(q @ q.mT / q.shape[-1] ** 0.5, -1)
    return F.mse_loss(torch.einsum("bhse,hed->bsd", a @ q, p.o), x)


class Many(ParamList):
    w: Float[Tensor, "pixels hidden"]
    b: Float[Tensor, " hidden"] = init.normal(0.5)
    table: Float[Tensor, "classes hidden"]


def many(p: Many, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Sums, means, the largest, masks, gathers and stacks along and beside the axis in parts."""
    h = torch.addmm(p.b, x, p.w).sin() + F.embedding(y, p.table)
    top = h.amax(-1, keepdim=True)
    spread = torch.where(h > 0, h, 0.1 * h).square().mean(-1) + (h - top).exp().sum(1).log()
    both = torch.stack([h, h.cumsum(0)], 1).select(1, 1).std(0)
    other = F.softmax(h, 1) * F.log_softmax(h, 1)
    rows = torch.cat([h, h * 2], 0).square().sum(0).sqrt().mean() + F.smooth_l1_loss(h, h.detach() + 0.3)
    return spread.mean() + 0.1 * both.sum() + other.sum(-1).mean() + rows + F.huber_loss(h, h.detach() - 2, delta=0.7)


class Logits(ParamList):
    w: Float[Tensor, "dim vocab"]


def beside(p: Logits, x: Float[Tensor, "batch seq dim"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """Classes on the axis after the batch, as cross_entropy takes a sequence; some ignored, and one by one."""
    scores = (x @ p.w).transpose(1, 2)
    each = F.cross_entropy(scores, y, reduction="none")
    return F.cross_entropy(scores, y.masked_fill(y == 3, -100)) + each.square().mean()


class Odd(ParamList):
    w: Float[Tensor, "pixels hidden"]
    v: Float[Tensor, "hidden hidden2"]


def ordered(p: Odd, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return (torch.sort(x @ p.w, -1).values @ p.v).square().mean()


def cut_short(p: Odd, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return ((x @ p.w)[:, :-1] @ p.v[1:]).square().mean()


def unruled(p: Odd, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return torch.linalg.svdvals(x @ p.w).sum() + p.v.sum()


def normed(p: Odd, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    h = x @ p.w
    return (F.layer_norm(h, (h.shape[-1],)) @ p.v).square().mean()


def squared(p: Odd, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    h = x @ p.w
    return (h.T @ h).exp().mean() + p.v.mean()


def overwritten(p: Odd, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    """A sum of parts that one operation has taken, and a view of it that would not see what is written after that."""
    h = x @ p.w @ p.v
    turned, e = h.T, h.exp()
    h.mul_(2.0)
    return turned.square().mean() + e.mean()


@cache
def trained(name: str) -> tuple[ScalarTrainer, tuple[Tensor, ...]]:
    """A proved trainer and a batch; shared by all tests."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 6, generator=g, dtype=WIDE), torch.tensor([0, 3, 1, 2, 3])
    ids = torch.randint(0, 8, (2, 3, 5), generator=g)
    many_, odd = Many.init(pixels=6, hidden=8, classes=4, seed=0), Odd.init(pixels=6, hidden=8, hidden2=3, seed=0)
    made: dict[str, tuple[object, ParamList, tuple[Tensor, ...]]] = {
        "mlp": (mlp, MLP.init(pixels=6, hidden=12, classes=4, seed=0), (x, y)),
        "gpt": (gpt, GPT.init(vocab=8, dim=8, context=6, inner=8, hidden=12, blocks=1, seed=0), (ids[0], ids[1])),
        "einsums": (einsums, Einsums.init(dim=6, heads=4, head=2, seed=0), (x.view(1, 5, 6).expand(3, 5, 6),)),
        "many": (many, many_, (x, y)),
        "beside": (
            beside,
            Logits.init(dim=6, vocab=8, seed=0),
            (x.view(1, 5, 6).expand(3, 5, 6), ids[0, 0].expand(3, 5)),
        ),
    }
    if name not in made:
        return ScalarTrainer({f.__name__: f for f in ODD}[name], odd.to(dtype=WIDE)), (x,)
    loss, params, batch = made[name]
    return ScalarTrainer(loss, params.to(dtype=WIDE)), batch  # type: ignore[arg-type]


ODD = (ordered, cut_short, unruled, normed, squared, overwritten)
SLOW = pytest.mark.slow  # its proof takes some seconds
PLANS = [
    ("mlp", ["hidden"], 2), ("mlp", ["hidden"], 3), ("mlp", ["classes"], 2), ("mlp", ["pixels"], 2),
    pytest.param("gpt", ["hidden", "inner"], 2, marks=SLOW),
    pytest.param("gpt", ["hidden", "inner", "vocab"], 4, marks=SLOW),
    ("einsums", ["heads"], 4), ("einsums", ["head"], 2), ("einsums", ["dim"], 3),
    ("beside", ["vocab"], 2), ("beside", ["vocab"], 4), ("beside", ["dim"], 2),
    ("many", ["hidden"], 2), ("many", ["hidden"], 4), ("many", ["classes"], 2), ("many", ["pixels"], 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "plan", "size"), PLANS, ids=str)
def test_parts_put_together_are_the_loss_and_gradients_of_the_whole(name: str, plan: Sequence[str], size: int) -> None:
    trainer, batch = trained(name)
    loss, gradients = trainer.loss_and_backward(*batch)
    found = on_parts(trainer, batch, plan, size)
    nested = on_parts(trainer, batch, plan, size, columns=2)

    for a, b, c in zip(found, nested, [loss, *gradients], strict=True):
        torch.testing.assert_close(a, c, rtol=EXACT, atol=EXACT * float(c.abs().max()))
        torch.testing.assert_close(b, c, rtol=EXACT, atol=EXACT * float(c.abs().max()))


@SLOW
def test_a_block_of_heads_and_hidden_has_two_sums_a_pass() -> None:
    found = walked(trained("gpt")[0], ["hidden", "inner"])

    assert Counter((c.kind, c.backward) for c in found.walk.collectives) == {("sum", False): 2, ("sum", True): 2}


@pytest.mark.parametrize(
    ("name", "plan", "said"),
    [
        ("ordered", ["hidden"], ["sort(x @ p.w, -1)", "hidden whole"]),
        ("cut_short", ["hidden"], ["[:, :-1]", "hidden whole"]),
        ("unruled", ["hidden"], ["svdvals", "a rule for"]),
        ("normed", ["hidden"], ["layer_norm", "hidden whole"]),
        ("squared", ["hidden"], ["h.T @ h", "one axis in parts"]),
        ("overwritten", ["hidden"], ["h.mul_(2.0)", "sums of parts"]),
        pytest.param("gpt", ["dim"], ["layer_norm", "dim whole"], marks=SLOW),
        pytest.param("gpt", ["context"], ["p.places[: x.shape[1]]", "context whole"], marks=SLOW),
    ],
)
def test_what_must_be_whole_is_refused_at_its_line(name: str, plan: Sequence[str], said: Sequence[str]) -> None:
    with pytest.raises(ProofError) as found:
        walked(trained(name)[0], plan)

    assert [part for part in (*said, "hint", "test_walk.py") if part not in str(found.value)] == []


def test_two_axes_of_a_value_over_one_axis_of_the_mesh_are_refused() -> None:
    with pytest.raises(SignatureError, match=r"w2 : \[hidden, classes\] has tp on two of its axes"):
        walked(trained("mlp")[0], ["hidden", "classes"])


def test_sizes_that_the_axis_does_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="hidden % tp == 0, and hidden = 12 with tp = 5"):
        walked(trained("mlp")[0], ["hidden"], 5)


def test_labels_out_of_range_are_found_on_parts() -> None:
    trainer, (x, y) = trained("mlp")

    with pytest.raises(AssertionError, match="indices 0 to 3, and got 9"):
        on_parts(trainer, (x, y.clone().fill_(9)), ["classes"])


@pytest.mark.parametrize("shard", [Shard(0), Shard(1), Shard(1, 3), Shard(2, 2), None], ids=str)
def test_a_tensor_is_its_parts(shard: Shard | None) -> None:
    whole = torch.arange(4 * 12 * 8.0).view(4, 12, 8)
    layout = AxisPlacement((4, 12, 8), 2, shard)
    parts = [layout.cut(whole, rank) for rank in range(2)]
    found = parts[0] if shard is None else layout.joined(torch.cat([part.reshape(-1) for part in parts]))

    assert torch.equal(found, whole)
    assert all(tuple(part.shape) == layout.local for part in parts)
