"""Recurrent layers over a time that is a name: proved, and the same as torch's on both backends."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ParamList, ProofError, ScalarTrainer, init, prove
from shaped.backends.program import Program
from shaped.proof import recurrent

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_as_one_operation_and_its_gradients_are_torchs(kind: str, both_ways: bool, batch_first: bool):
    torch.manual_seed(0)
    options: dict[str, Any] = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    net = KINDS[kind](3, 4, num_layers=2, bidirectional=both_ways, batch_first=batch_first, bias=both_ways, **options)
    x = torch.randn(5, 6, 3, requires_grad=True)
    held = torch.zeros(4 if both_ways else 2, 5 if batch_first else 6, 4)
    state = [held, held] if kind == "lstm" else [held]
    weights = list(net._flat_weights)
    given = (net.bias, 2, both_ways, batch_first)
    results = recurrent._Layer.apply(kind, given, len(state), x, *state, *weights)
    exact, states = net(x)
    expected = [exact, *(states if kind == "lstm" else [states])]
    leaves = [x, *weights]
    mine, theirs = (torch.autograd.grad([r.square().sum() for r in some], leaves) for some in (results, expected))

    torch.testing.assert_close(list(results), expected)
    torch.testing.assert_close(mine, theirs)
    assert recurrent._like(kind, x, state, weights, *given)[0].stride() == results[0].stride()


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Float[Tensor, "batch time 3"]) -> Float[Tensor, "batch time 1"]:
        states, _ = self.rnn(x)
        return self.out(states)


def loss(net: Tagger, x: Float[Tensor, "batch time 3"], y: Float[Tensor, "batch time 1"]) -> Float[Tensor, ""]:
    return F.mse_loss(net(x), y)


@pytest.mark.slow
def test_one_compiled_step_serves_every_time_and_is_the_eager_one():
    ends = []
    for backend in ("eager", "compiled"):
        torch.manual_seed(0)
        trainer = ScalarTrainer(loss, Tagger(), backend=backend, sizes="dynamic")
        losses = [trainer.adamw_step(torch.ones(2, time, 3), torch.zeros(2, time, 1), lr=0.1) for time in (5, 3, 7)]
        ends.append([*losses, *trainer.get_params()])

        assert trainer.proof.conditions == ()
    torch.testing.assert_close(*ends)


class Gates(ParamList):
    into: Float[Tensor, "3*hidden inputs"]
    within: Float[Tensor, "3*hidden hidden"]
    head: Float[Tensor, " hidden"] = init.ones()


def last(p: Gates, x: Float[Tensor, "time batch inputs"]) -> Float[Tensor, ""]:
    start = x.new_zeros(1, x.shape[1], p.head.shape[0])
    states, _ = torch.gru(x, start, [p.into, p.within], False, 1, 0.0, True, False, False)
    return (states[-1] @ p.head).mean()


def turned(p: Gates, x: Float[Tensor, "time batch inputs"]) -> Float[Tensor, ""]:
    start = x.new_zeros(1, x.shape[1], p.head.shape[0])
    states, _ = torch.gru(x, start, [p.into.T, p.within], False, 1, 0.0, True, False, False)
    return (states[-1] @ p.head).mean()


def test_a_layer_of_ones_own_parameters_is_proved_at_every_size():
    assert prove(last).conditions == ()
    with pytest.raises(ProofError, match="a layer's weight of the input has the shape"):
        prove(turned)


def shortened(x: Float[Tensor, "time batch 3"], w: Float[Tensor, "6 3"], u: Float[Tensor, "6 2"]) -> Tensor:
    return torch.gru(x[2:], x.new_zeros(1, x.shape[1], 2), [w, u], False, 1, 0.0, True, False, False)[0]


def test_a_time_of_none_is_a_condition():
    shortened.__annotations__["return"] = Float[Tensor, "time-2 batch 2"]

    assert prove(shortened).conditions == ("time >= 3",)


def dropping(x: Float[Tensor, "time batch 3"]) -> Float[Tensor, "time batch 4"]:
    return DROPPING(x)[0]  # type: ignore[no-any-return]


DROPPING = nn.GRU(3, 4, num_layers=2, dropout=0.5)


def test_what_drops_between_layers_is_proved_at_every_time():
    assert prove(dropping).conditions == ()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_dropout_between_them_are_torchs_one_by_one(kind: str, both_ways: bool, packed: bool):
    torch.manual_seed(0)
    options: dict[str, Any] = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    net = KINDS[kind](3, 4, num_layers=3, dropout=1.0, bidirectional=both_ways, batch_first=not packed, **options)
    held = torch.randn(6 if both_ways else 3, 5, 4)
    state = (held, held.sin()) if kind == "lstm" else held
    if packed:
        rows = nn.utils.rnn.pack_padded_sequence(torch.randn(6, 5, 3), torch.tensor([6, 4, 4, 2, 1]))
        given: list[Any] = [rows.data, rows.batch_sizes, state, net._flat_weights, True, 3, 1.0, True, both_ways]
    else:
        given = [torch.randn(5, 6, 3), state, net._flat_weights, True, 3, 1.0, True, both_ways, True]

    torch.testing.assert_close(recurrent.layer_of(kind)(*given), getattr(torch, kind)(*given))


class Packed(nn.Module):
    def __init__(self, kind: str, inputs: int = 3, hidden: int = 4) -> None:
        super().__init__()
        options: dict[str, Any] = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
        self.rnn = KINDS[kind](inputs, hidden, batch_first=True, bidirectional=True, **options)
        self.out = nn.Linear(2 * hidden, 1)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(x, ends, batch_first=True, enforce_sorted=False)
        states, last = self.rnn(rows)
        padded, counts = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        last = last[0] if isinstance(last, tuple) else last
        scaled: Tensor = self.out(padded).squeeze(-1).sum(1) / counts
        return scaled + last.sum((0, 2))


def over_packed(net: Packed, x: Float[Tensor, "batch time 3"], ends: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return net(x, ends).square().mean()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_steps_as_plain_torch_does(kind: str, backend: Any, interpreted: None):
    torch.manual_seed(0)
    net = Packed(kind)
    trainer = ScalarTrainer(over_packed, copy.deepcopy(net), backend=backend, sizes="dynamic")

    assert trainer.proof.conditions == ()
    for batch, time in ((5, 6), (3, 2), (1, 1)):
        x, ends = torch.randn(batch, time, 3), torch.randint(1, time + 1, (batch,))
        expected = over_packed(net, x, ends)
        net.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        value, gradients = trainer.loss_and_backward(x, ends)

        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(list(gradients), [p.grad for p in net.parameters()])


def longer(x: Float[Tensor, "batch time 3"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n 8"]:
    rows = nn.utils.rnn.pack_padded_sequence(x, ends, batch_first=True)
    return PACKED(rows)[1].transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


PACKED = nn.GRU(3, 4, bidirectional=True)


def test_there_are_as_many_lengths_as_sequences():
    with pytest.raises(ProofError) as refused:
        prove(longer)

    assert refused.value.goal.equation == "n = batch"


class Dropping(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, num_layers=2, dropout=0.5, batch_first=True)


@pytest.mark.slow
def test_a_compiled_step_drops_between_layers_and_is_held_against_eager(tmp_path: Path):
    net, batch = Dropping(), (torch.randn(2, 3, 3), torch.zeros(2, 3, 1))
    trainer = ScalarTrainer(loss, net, backend="compiled")
    trainer.step(*batch, lr=0.0)  # a DisagreementError where what is compiled leaves the dropout out
    assert len({float(trainer.step(*batch, lr=0.0)) for _ in range(8)}) > 1

    trainer.save_program(tmp_path / "program")
    loaded = ScalarTrainer.load_program(tmp_path / "program", loss, net, backend="compiled")
    torch.manual_seed(0)
    again = loaded.step(*batch, lr=0.0)
    torch.manual_seed(0)
    assert again == trainer.step(*batch, lr=0.0)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))
        self.weights = [self.first, self.second]

    def forward(self, x: Float[Tensor, "batch time 3"]) -> Float[Tensor, "batch time 1"]:
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x[..., :1]


@pytest.mark.parametrize("make", [Tagger, Dropping, Listed])
def test_a_module_that_keeps_its_parameters_in_a_list_too_is_proved_once(make: Any, monkeypatch: pytest.MonkeyPatch):
    proved: list[Any] = []
    admitted = Program.admitted

    def counted(*given: Any) -> Any:
        proved.append(given)
        return admitted(*given)

    monkeypatch.setattr(Program, "admitted", counted)
    trainer = ScalarTrainer(loss, make(), backend="eager")
    for _ in range(3):
        trainer.step(torch.randn(2, 3, 3), torch.zeros(2, 3, 1), lr=0.1)

    assert len(proved) == 1
