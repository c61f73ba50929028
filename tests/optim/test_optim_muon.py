"""Muon with proved roles: layouts, groups, both backends, state, refusals."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer
from shaped.optim import AdamW, Muon

X, Y = torch.randn(16, 6), torch.randn(16, 3)
Loss = Callable[..., Tensor]


class Rows(ParamList):
    w: Float[Tensor, "ins hidden"]
    gate: Float[Tensor, "hidden 2*hidden"]
    b: Float[Tensor, " hidden"]
    head: Float[Tensor, "hidden outs"]


def rows(p: Rows, x: Float[Tensor, "batch ins"], y: Float[Tensor, "batch outs"]) -> Float[Tensor, ""]:
    left, right = (torch.tanh(x @ p.w + p.b) @ p.gate).chunk(2, 1)
    return F.mse_loss((left * right) @ p.head, y)


class Columns(ParamList):
    w: Float[Tensor, "hidden ins"]
    left: Float[Tensor, "hidden hidden"]
    right: Float[Tensor, "hidden hidden"]
    b: Float[Tensor, " hidden"]
    head: Float[Tensor, "outs hidden"]


def columns(p: Columns, x: Float[Tensor, "batch ins"], y: Float[Tensor, "batch outs"]) -> Float[Tensor, ""]:
    h = torch.tanh(F.linear(x, p.w, p.b))
    return F.mse_loss(F.linear(torch.einsum("oh,bh->bo", p.left, h) * (h @ p.right.T), p.head), y)


def as_columns(p: Rows) -> Columns:
    left, right = p.gate.chunk(2, 1)
    return Columns(*(t.T.contiguous() if t.dim() > 1 else t.clone() for t in (p.w, left, right, p.b, p.head)))


def start() -> Rows:
    return Rows.init(ins=6, hidden=4, outs=3, seed=1)


def test_the_same_net_stored_in_any_layout_takes_the_same_steps() -> None:
    make = partial(Muon, lr=0.05, adjust_lr_fn="original")
    one, other = start(), as_columns(start())
    trainers = [ScalarTrainer(rows, one, optimizer=make), ScalarTrainer(columns, other, optimizer=make)]
    for _ in range(4):
        for trainer in trainers:
            trainer.train_step(X, Y)

    for mine, theirs in zip(as_columns(one), other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_table_tells_how_each_parameter_is_read() -> None:
    muon = Muon(ScalarTrainer(rows, start()))

    assert (
        muon.table
        == """\
parameter  shape   axes        matrices  scale  rule   role
w          [6, 4]  in out      4x6       0.49   Muon   matrix
gate       [4, 8]  in (2 out)  2x4x4     0.4    Muon   matrix
b          [4]     -           -         -      AdamW  bias: added to activations, or used with them entry by entry
head       [4, 3]  -           -         -      AdamW  unembedding: fan-in 4, fan-out 3; no other weights come after it\
"""
    )


def test_the_others_take_the_step_of_adamw() -> None:
    mine, theirs = start(), start()
    trainer = ScalarTrainer(rows, mine, optimizer=partial(Muon, lr=0.01, others={"betas": (0.8, 0.9), "lr": 0.002}))
    peer = ScalarTrainer(rows, theirs, optimizer=AdamW(theirs, lr=0.002, betas=(0.8, 0.9), weight_decay=0.1))
    trainer.train_step(X, Y)
    peer.train_step(X, Y)

    assert torch.equal(mine.head, theirs.head)
    assert torch.equal(mine.b, theirs.b)
    assert not torch.equal(mine.w, theirs.w)


@pytest.mark.slow
def test_both_backends_agree_with_all_options_and_go_on_from_a_saved_state_and_with_another_switch() -> None:
    make = partial(Muon, lr=0.05, roles={"head": "in out"}, max_norm=0.1, skip_nonfinite=True, ema_decay=0.9)
    eager = ScalarTrainer(rows, start(), optimizer=make)
    compiled = eager.with_backend("compiled")
    first = eager.state_dict()
    there = [compiled.train_step(X, Y), compiled.train_step(X, Y)]
    assert eager.optimizer is not None
    for group in eager.optimizer.param_groups:
        group["nesterov"] = False
    there.append(compiled.train_step(X, Y))
    agree = compiled.compare_backends(X, Y).agree
    eager.load_state_dict(first)
    here = [eager.train_step(X, Y), eager.train_step(X, Y)]
    for group in eager.optimizer.param_groups:
        group["nesterov"] = False
    here.append(eager.train_step(X, Y))

    assert agree
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Float[Tensor, "batch 2 length"]) -> Float[Tensor, "batch 3"]:
        return self.second(self.first(x).relu().mean(-1))


def net_loss(prediction: Float[Tensor, "batch 3"], y: Float[Tensor, "batch 3"]) -> Float[Tensor, ""]:
    return F.mse_loss(prediction, y)


def test_modules_have_roles_too() -> None:
    trainer = ScalarTrainer(net_loss, Net(), optimizer=Muon)
    trainer.train_step(torch.randn(5, 2, 7), torch.randn(5, 3))

    assert isinstance(trainer.optimizer, Muon)
    assert [line.split()[-1] if "Muon" in line else "AdamW" for line in trainer.optimizer.table.splitlines()[1:]] == [
        "matrix", "AdamW", "AdamW", "AdamW",
    ]  # fmt: skip


class Tied(ParamList):
    w: Float[Tensor, "ins hidden"]


def tied(p: Tied, x: Float[Tensor, "batch ins"]) -> Float[Tensor, ""]:
    return F.mse_loss(torch.tanh(x @ p.w) @ p.w.T, x)


def test_an_ambiguous_role_is_refused_where_it_matters_with_what_to_write() -> None:
    with pytest.raises(ValueError) as raised:
        ScalarTrainer(tied, Tied.init(ins=6, hidden=4), optimizer=partial(Muon, adjust_lr_fn="original"))

    assert str(raised.value) == (
        "Muon cannot tell how 1 of 1 parameters are read as matrices.\n"
        "  w [6, 4]: axis 0 is contracted with activations in one place and left over in another\n"
        '  say what its axes are: Muon(trainer, roles={"w": "out in"}); or leave it to AdamW: roles={"w": "adamw"}'
    )
    ScalarTrainer(tied, Tied.init(ins=6, hidden=4), optimizer=Muon).train_step(X)  # the other scale is one both ways


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(Muon, roles={"hed": "in out"}), "roles: there is no parameter `hed`; did you mean `head`?"),
        (partial(Muon, others={"momentum": 0.9}), "others: AdamW has no momentum; "
         "it has lr, weight_decay, betas, eps, amsgrad"),
        (lambda program: AdamW(3), "params is of type int; it is tensors, named tensors or groups"),
        (lambda program: len(program), "optimizer: <lambda> is called with the proof, as Muon is, and that raised "
         "object of type 'Program' has no len(); of others give the optimizer itself, as in AdamW(params)"),
        (partial(Muon, lr=-1.0), "lr must be a finite number >= 0, got -1.0"),
        (partial(Muon, momentum=1.0), "momentum must be in [0, 1), got 1.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        ScalarTrainer(rows, start(), optimizer=make)

    assert str(raised.value) == said


def test_it_needs_a_proof() -> None:
    with pytest.raises(ValueError, match=r"Muon takes a ScalarTrainer, whose proof says .*, got list"):
        Muon([torch.nn.Parameter(torch.randn(3, 3))])  # type: ignore[arg-type]
