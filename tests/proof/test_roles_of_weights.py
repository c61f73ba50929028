"""Roles: what each parameter does in a program, in whatever layout it is written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from shaped import ParamList, ScalarTrainer, ShapeError
from shaped.proof import prove
from shaped.proof.roles import read_roles
from shaped.roles import Roles

X, LABELS = torch.randn(13, 6), torch.randint(0, 5, (13,))
SEQUENCE, IDS = torch.randn(13, 9, 6), torch.randint(0, 11, (13, 9))
IMAGES = torch.randn(13, 4, 11, 11)


def loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS[: len(logits)])


def roles(function: Callable[..., Tensor], *inputs: Tensor, inner: bool = False, **shapes: Any) -> Roles:
    weights = [torch.randn(*shape) for shape in shapes.values()]
    graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*weights, *inputs)
    return read_roles(graph, list(shapes), [tuple(shape) for shape in shapes.values()], inner=inner)


def read(found: Roles) -> Mapping[str, str]:
    return {role.name: str(role.axes) if role.kind == "matrix" else role.kind for role in found}


def then(hidden: Tensor, head: Tensor) -> Tensor:
    return loss(F.relu(hidden) @ head)


def loop(x: Tensor, w: Tensor, o: Tensor) -> Tensor:
    for i in range(3):
        x = x + F.relu(x @ w[i]) @ o[i].T
    return x


def cell(wi: Tensor, wh: Tensor, b: Tensor, x: Tensor) -> Tensor:
    h = c = torch.zeros(13, 7)
    for i in range(3):
        put, keep, new, out = (F.linear(x[:, i], wi, b) + F.linear(h, wh)).chunk(4, 1)
        c = keep.sigmoid() * c + put.sigmoid() * new.tanh()
        h = out.sigmoid() * c.tanh()
    return h


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.unflatten(-1, (-1, 4)).transpose(1, 2) for x in (q, k, v)))


def stacked_qkv(w: Tensor, o: Tensor, head: Tensor, x: Tensor) -> Tensor:
    q, k, v = torch.einsum("btd,dchk->cbhtk", x, w).unbind(0)
    return then(torch.einsum("bhtk,hkd->btd", F.scaled_dot_product_attention(q, k, v), o).mean(1), head)


def blocks_of_heads(w: Tensor, o: Tensor, head: Tensor, x: Tensor) -> Tensor:
    q = x[:, None] @ w
    return then(((q @ q.mT).softmax(-1) @ q @ o).sum(1).mean(1), head)


def fused(w: Tensor, o: Tensor, head: Tensor, x: Tensor, lengths: Sequence[int]) -> Tensor:
    a = attend(*(x @ w).split(list(lengths), -1))
    return then((a.transpose(1, 2).flatten(2) @ o).mean(1), head)


def experts_of_a_batch(r: Tensor, w: Tensor, head: Tensor, x: Tensor) -> Tensor:
    gate, chosen = (x @ r).softmax(-1).max(-1)
    return then(torch.einsum("bdh,bd->bh", w[chosen], x) * gate[:, None], head)


LAYOUTS: list[tuple[str, Callable[..., Tensor], Tensor, dict[str, Any], dict[str, str]]] = [
    ("x @ w", lambda w, h, x: then(x @ w, h), X, {"w": (6, 7), "h": (7, 5)}, {"w": "in out"}),
    ("x @ w.T", lambda w, h, x: then(x @ w.T, h), X, {"w": (7, 6), "h": (7, 5)}, {"w": "out in"}),
    ("linear", lambda w, b, h, x: then(F.linear(x, w, b), h), X, {"w": (7, 6), "b": (7,), "h": (7, 5)},
     {"w": "out in", "b": "bias"}),
    ("einsum", lambda w, h, x: then(torch.einsum("oi,bi->bo", w, x), h), X, {"w": (7, 6), "h": (7, 5)},
     {"w": "out in"}),
    ("product and sum", lambda w, h, x: then((x[:, :, None] * w).sum(1), h), X, {"w": (6, 7), "h": (7, 5)},
     {"w": "in out"}),
    ("conv2d", lambda w, h, x: then(F.conv2d(x, w).mean((2, 3)), h), IMAGES, {"w": (7, 4, 3, 3), "h": (7, 5)},
     {"w": "out in in in"}),
    ("groups", lambda w, h, x: then(F.conv2d(x, w, groups=2).mean((2, 3)), h), IMAGES,
     {"w": (6, 2, 3, 3), "h": (6, 5)}, {"w": "(2 out) in in in"}),
    ("depthwise", lambda w, h, x: then(F.conv2d(x, w, groups=4).mean((2, 3)), h), IMAGES,
     {"w": (4, 1, 3, 3), "h": (4, 5)}, {"w": "vector"}),
    ("conv1d", lambda w, h, x: then(F.conv1d(x.mT, w).mean(2), h), SEQUENCE, {"w": (7, 6, 3), "h": (7, 5)},
     {"w": "out in in"}),
    ("transposed, stride 1", lambda w, h, x: then(F.conv_transpose2d(x, w).mean((2, 3)), h), IMAGES,
     {"w": (4, 7, 3, 3), "h": (7, 5)}, {"w": "in out in in"}),
    ("transposed, as a stride", lambda w, h, x: then(F.conv_transpose2d(x, w, stride=2).mean((2, 3)), h), IMAGES,
     {"w": (4, 7, 2, 2), "h": (7, 5)}, {"w": "in out out out"}),
    ("transposed, two taps", lambda w, h, x: then(F.conv_transpose1d(x.mT, w, stride=2).mean(2), h), SEQUENCE,
     {"w": (6, 7, 4), "h": (7, 5)}, {"w": "in out (2:in 2:out)"}),
    ("layers", lambda w, o, h, x: then(loop(x, w, o), h), X, {"w": (3, 6, 7), "o": (3, 6, 7), "h": (6, 5)},
     {"w": "batch in out", "o": "batch out in"}),
    ("heads", blocks_of_heads, SEQUENCE, {"w": (2, 6, 3), "o": (2, 3, 6), "h": (6, 5)},
     {"w": "out in out", "o": "in in out"}),
    ("stacked qkv", stacked_qkv, SEQUENCE, {"w": (6, 3, 2, 3), "o": (2, 3, 6), "h": (6, 5)},
     {"w": "in batch out out", "o": "in in out"}),
    ("fused qkv", lambda w, o, h, x: fused(w, o, h, x, (8, 8, 8)), SEQUENCE, {"w": (6, 24), "o": (8, 6), "h": (6, 5)},
     {"w": "in (3 out)", "o": "in out"}),
    ("fused gates", lambda wi, wh, b, h, x: then(cell(wi, wh, b, x), h), SEQUENCE,
     {"wi": (28, 6), "wh": (28, 7), "b": (28,), "h": (7, 5)}, {"wi": "(4 out) in", "wh": "(4 out) in", "b": "bias"}),
    ("parts", lambda w, h, x: then(F.silu(x @ w[:, :7]) * (x @ w[:, 7:]), h), X, {"w": (6, 14), "h": (7, 5)},
     {"w": "in (2 out)"}),
    ("added product", lambda w, a, b, h, x: then(F.linear(x, w + 2.0 * (b @ a)), h), X,
     {"w": (7, 6), "a": (2, 6), "b": (7, 2), "h": (7, 5)}, {"w": "out in", "a": "out in", "b": "out in"}),
    ("adapter", lambda a, b, h, x: then(x @ a @ b, h), X, {"a": (6, 2), "b": (2, 7), "h": (7, 5)},
     {"a": "in out", "b": "in out"}),
    ("experts", experts_of_a_batch, X, {"r": (6, 4), "w": (4, 6, 7), "h": (7, 5)},
     {"r": "in out", "w": "batch in out"}),
    ("embedding", lambda e, w, h, x: then((F.embedding(x, e) @ w).mean(1), h), IDS,
     {"e": (11, 6), "w": (6, 7), "h": (7, 5)}, {"e": "embedding", "w": "in out"}),
    ("one hot", lambda e, h, x: then((F.one_hot(x, 11).float() @ e).mean(1), h), IDS, {"e": (11, 6), "h": (6, 5)},
     {"e": "embedding"}),
    ("normed", lambda v, g, h, x: then(F.linear(x, g[:, None] * v / v.norm(dim=1, keepdim=True)), h), X,
     {"v": (7, 6), "g": (7,), "h": (7, 5)}, {"v": "out in", "g": "scale"}),
    ("layer norm", lambda w, g, b, h, x: then(F.layer_norm(x @ w, (7,), g, b), h), X,
     {"w": (6, 7), "g": (7,), "b": (7,), "h": (7, 5)}, {"w": "in out", "g": "scale", "b": "bias"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "inputs", "shapes", "expected"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS]
)
def test_axes_are_known_in_any_layout(
    program: Callable[..., Tensor], inputs: Tensor, shapes: Mapping[str, Sequence[int]], expected: Mapping[str, str]
) -> None:
    found = read(roles(program, inputs, **dict[str, Any](shapes)))

    assert found == {**expected, "h": "unembedding"}


def test_unequal_maps_side_by_side_are_matrices_of_their_own() -> None:
    def grouped(w: Tensor, o: Tensor, h: Tensor, x: Tensor) -> Tensor:
        q, k, v = (x @ w).split([8, 4, 4], -1)
        return then((attend(q, k, v).transpose(1, 2).flatten(2) @ o).mean(1), h)

    found = roles(grouped, SEQUENCE, w=(6, 16), o=(8, 6), h=(6, 5))["w"]

    assert found.axes is not None
    assert (str(found.axes), [block.size for block in found.axes.blocks]) == (
        "in (8+4+4 out)", [(1, 8, 6), (1, 4, 6), (1, 4, 6)],
    )  # fmt: skip


def test_a_table_that_is_looked_up_and_contracted_is_an_embedding() -> None:
    def tied(e: Tensor, w: Tensor, position: Tensor, x: Tensor) -> Tensor:
        h = e[x] + position
        return F.cross_entropy(((h + F.relu(h @ w)) @ e.T).flatten(0, 1), x.flatten())

    found = read(roles(tied, IDS, e=(11, 6), w=(6, 6), position=(9, 6)))

    assert found == {"e": "embedding", "w": "in out", "position": "bias"}


def test_a_weight_that_is_used_both_ways_is_ambiguous_but_in_an_inner_gradient() -> None:
    def tied(w: Tensor, x: Tensor) -> Tensor:
        return ((F.relu(x @ w) @ w.T - x) ** 2).mean()

    assert read(roles(tied, X, w=(6, 7))) == {"w": "ambiguous"}
    assert read(roles(tied, X, inner=True, w=(6, 7))) == {"w": "in out"}


def test_recurrent_layers_of_torch_have_their_gates_apart() -> None:
    lstm, gru = torch.nn.LSTM(6, 7, batch_first=True), torch.nn.GRU(7, 5, batch_first=True)
    weights = [*lstm.parameters(), *gru.parameters()]

    def program(*given: Tensor) -> Tensor:
        first = dict(zip(dict(lstm.named_parameters()), given[:4], strict=True))
        second = dict(zip(dict(gru.named_parameters()), given[4:8], strict=True))
        h = torch.func.functional_call(lstm, first, (given[9],))[0]
        return then(torch.func.functional_call(gru, second, (h,))[0].mean(1), given[8])

    shapes = {f"w{i}": tuple(w.shape) for i, w in enumerate(weights)} | {"h": (5, 5)}
    gates = [str(role.axes) for role in roles(program, SEQUENCE, **dict[str, Any](shapes)) if role.kind == "matrix"]

    assert gates == ["(4 out) in", "(4 out) in", "(3 out) in", "(3 out) in"]


def test_weights_on_constant_data_have_roles() -> None:
    def field(w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, 8).view(4, 2)
        return (torch.tanh(torch.tanh(grid @ w1) @ w2) @ w3).pow(2).mean()

    assert read(roles(field, w1=(2, 7), w2=(7, 6), w3=(6, 5))) == {"w1": "in out", "w2": "in out", "w3": "unembedding"}


def test_what_goes_through_an_unknown_operation_is_ambiguous_and_not_guessed() -> None:
    found = roles(lambda w, h, x: then(x @ torch.as_strided(w, (6, 7), (7, 1)), h), X, w=(6, 7), h=(7, 5))

    assert str(found).splitlines()[1].split("  ")[-1].strip() == "its axes are not followed through `as_strided`"


class Net(ParamList):
    table: Float[Tensor, "vocab dim"]
    w: Float[Tensor, "dim 2*dim"]
    gain: Float[Tensor, " dim"]
    head: Float[Tensor, "dim vocab"]


def net(p: Net, x: Int[Tensor, "batch seq"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    gate, up = (p.table[x] @ p.w).chunk(2, -1)
    return F.cross_entropy((F.silu(gate) * up * p.gain).mean(1) @ p.head, y)


def test_a_trainers_proof_tells_roles_at_its_sizes() -> None:
    trainer = ScalarTrainer(net, Net.init(vocab=11, dim=6))

    assert (
        str(trainer.proof.roles)
        == """\
parameter  shape    axes        role         why
table      [11, 6]  -           embedding    looked up by axis 0
w          [6, 12]  in (2 out)  matrix       fan-in 6, fan-out 6, 2 of them
gain       [6]      -           scale        multiplied with activations
head       [6, 11]  in out      unembedding  fan-in 6, fan-out 11; no other weights come after it"""
    )


def test_roles_need_sizes() -> None:
    with pytest.raises(ShapeError, match=r"roles are read at known sizes, and dim, vocab is not"):
        _ = prove(net).roles
