"""Modules that share layers and tensors, and what a proof and a step leave in a module."""

import copy
from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import prune

from shaped import ParamList, ScalarTrainer, ShapeError, Unprovable
from shaped.checkpoint import Checkpoints
from shaped.loop import Loop
from shaped.optim import AdamW
from tests.test_params_of_modules import NAMES, Named
from tests.trainer.oracle import both

pytestmark = pytest.mark.usefixtures("interpreted")

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(net: nn.Module, x: Float[Tensor, "batch 6"]) -> Float[Tensor, ""]:
    return net(x).square().mean()


class SharedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.tanh(self.a(x)))
        return result


class TiedWeights(nn.Module):
    """One parameter under two names; a third layer has another of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.third.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return result


class AlsoInLists(nn.Module):
    """Layers in a plain list and a mapping too, and parameters in a list and in the attribute of an object."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])
        self.scale = nn.Parameter(torch.ones(4))
        self.in_a_list = [*self.layers]
        self.by_name = {"last": self.layers[1]}
        self.encoder = self.layers[0]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.by_name["last"](torch.tanh(self.in_a_list[0](x) + self.encoder(x))) * self.scale
        return result


class Autoencoder(nn.Module):
    """A model that takes parts of another, as a masked autoencoder takes a ViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.BatchNorm1d(4))
        self.patch, self.rest = self.encoder[0], self.encoder[1:]
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.rest(self.patch(x))) - self.encoder(x).mean()
        return result


class Recording(nn.Module):
    """Hooks made at the first pass gather what layers of several widths give, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(4, 3)])
        self.hooked = False
        self.found: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.hooked:
            for layer in self.layers:
                layer.register_forward_hook(lambda _module, _inputs, output: self.found.append(output))
            self.hooked = True
        self.found.clear()
        for layer in self.layers:
            x = torch.tanh(layer(x))
        result = torch.zeros(())
        for head, state in zip(self.heads, self.found, strict=True):
            result = result + head(state)
        self.found.clear()
        return result


@both
@pytest.mark.parametrize("kind", [SharedLayer, TiedWeights, AlsoInLists, Autoencoder, Recording])
def test_a_module_that_shares_its_parts_trains_as_plain_torch_trains_it(backend, kind):
    torch.manual_seed(0)
    net = kind().double()
    twin = copy.deepcopy(net)
    trainer = ScalarTrainer(loss, net, backend=backend)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.05)
    for step in range(3):
        trainer.adamw_step(X + step, lr=0.05)
        optimizer.zero_grad()
        loss(twin, X + step).backward()
        optimizer.step()

    assert trainer.get_params().names == tuple(dict([*twin.named_parameters(), *twin.named_buffers()]))
    assert net.state_dict().keys() == twin.state_dict().keys()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-11, atol=1e-12, msg=name)


@both
def test_a_module_with_names_of_any_kind_trains_and_is_saved(backend, tmp_path):
    def over_two(net: nn.Module, x: Float[Tensor, "batch 2"]) -> Float[Tensor, ""]:
        return net(x).square().mean()

    def job() -> tuple[Loop, Checkpoints]:
        net = Named()
        trainer = ScalarTrainer(over_two, net, backend=backend, optimizer=AdamW(ParamList.from_module(net), lr=0.1))
        loop = Loop(trainer)
        return loop, loop.attach(Checkpoints(tmp_path, every=1))

    loop, checkpoints = job()
    loop.run_steps([(X[:, :2].float(),)] * 2, 2)
    checkpoints.close()
    other, checkpoints = job()
    checkpoints.resume(other)
    checkpoints.close()

    assert set(NAMES) < set(other.trainer.state_dict()["params"])
    for mine, theirs in zip(loop.trainer.params, other.trainer.params, strict=True):
        assert torch.equal(mine, theirs)


def test_the_same_layer_under_another_name_replaced_is_refused_by_that_name():
    net = SharedLayer().double()
    trainer = ScalarTrainer(loss, net)
    net.b = nn.Linear(6, 6).double()

    with pytest.raises(ShapeError, match="replaced in the module: `b`"):
        trainer.step(X, lr=0.1)


class SharedBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("sums", torch.zeros(4, 3))
        self.register_buffer("last", self.get_buffer("sums")[3:])

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        self.get_buffer("sums").add_(z.detach().mean(0))
        result: Tensor = z + self.get_buffer("last")
        return result


def test_a_buffer_that_is_written_and_shares_memory_with_another_is_refused():
    with pytest.raises(ShapeError, match="the program writes into sums, which shares memory with `last`"):
        ScalarTrainer(loss, SharedBuffers())


def test_a_parameter_where_there_was_none_is_refused_by_name():
    net = nn.Linear(6, 3, bias=False)
    trainer = ScalarTrainer(loss, net)
    net.bias = nn.Parameter(torch.zeros(3))

    with pytest.raises(ShapeError, match="replaced in the module: `bias`"):
        trainer.step(X.float(), lr=0.1)


class MakesAnew(OrderedDict[str, Any]):
    """A mapping whose look-up makes a new layer, as transformers' table of activations does."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


def test_a_mapping_is_looked_into_past_its_own_methods():
    net = nn.Linear(6, 3)
    made: list[int] = []
    net.table = MakesAnew(a=lambda: made.append(1))  # type: ignore[assignment]
    ScalarTrainer(loss, net)

    assert made == []


class Keeps(nn.Module):
    """Changes whatever it can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.seen: list[Any] = [1]
        self.last = deque([2], maxlen=1)
        self.sizes: OrderedDict[str, Any] = OrderedDict(a=1)
        self.kinds = {"a"}
        self.nested: dict[str, Any] = {"deep": ([],)}
        self.calls = 0
        self.notes = Notes()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += [x.shape]
        self.last.append(3)
        self.sizes["b"] = 2
        self.sizes.move_to_end("a")
        self.kinds.add("b")
        self.nested["deep"][0].append(4)
        self.calls += 1
        self.notes.text = "changed"
        self.linear.register_forward_hook(lambda *_: None)
        result: Tensor = self.linear(x)
        return result


class Notes:
    text = ""


def _contents(net: Keeps) -> Any:
    plain = (net.seen, list(net.last), list(net.sizes.items()), net.kinds, net.nested, net.calls, vars(net.notes))
    return copy.deepcopy(plain), len(net.linear._forward_hooks)


@both
def test_a_proof_and_a_trace_leave_what_a_module_holds_as_it_was(backend):
    net = Keeps().double()
    before = _contents(net)
    trainer = ScalarTrainer(loss, net, backend=backend)

    assert _contents(net) == before
    if backend == "compiled":
        trainer.step(X, lr=0.1)
        trainer.step(X[:1], lr=0.1)
        assert _contents(net) == before


class Grows(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(6, 3), kind
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "parameter" and not hasattr(self, "made"):
            self.made = nn.Parameter(torch.ones(6, dtype=x.dtype))
        if self.kind == "buffer" and not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(6, dtype=x.dtype))
        if self.kind == "layer" and not hasattr(self, "made"):
            self.made = nn.Linear(6, 6, dtype=x.dtype)  # type: ignore[assignment]
        if self.kind == "list":
            self.kept.append(x)
        result: Tensor = self.linear(x)
        return result


@pytest.mark.parametrize("kind", ["parameter", "buffer", "layer"])
def test_what_a_module_makes_at_its_first_pass_is_refused_and_left_out_until_it_was_run_once(kind):
    net = Grows(kind).double()
    names = list(net.state_dict())
    with pytest.raises(Unprovable, match=r"makes `Grows.made` at its first pass(.|\n)*run the module once on a batch"):
        ScalarTrainer(loss, net)

    assert list(net.state_dict()) == names
    net(X)
    ScalarTrainer(loss, net, allow_unused=True).step(X, lr=0.1)


def test_a_tensor_that_is_kept_in_a_list_is_refused_and_taken_out():
    net = Grows("list").double()
    with pytest.raises(Unprovable, match=r"stores a tensor in `Grows\.kept`"):
        ScalarTrainer(loss, net)

    assert net.kept == []


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_the_old_norms_of_weights_are_refused_with_their_new_forms(name: str) -> None:
    net = nn.Sequential(getattr(torch.nn.utils, name)(nn.Linear(6, 3))).double()
    with pytest.raises(Unprovable, match=rf"hint +take torch\.nn\.utils\.parametrizations\.{name}"):
        ScalarTrainer(loss, net)


def test_a_pruned_layer_is_refused_with_what_masks_it_in_each_step() -> None:
    layer = nn.Linear(6, 3)
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(Unprovable, match=r"hint +prune\.remove\(layer, name\)"):
        ScalarTrainer(loss, nn.Sequential(layer).double())


class Averages(nn.Module):
    """A buffer that is written as `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.linear, self.way = nn.Linear(6, 3), way
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        mean = self.get_buffer("mean")
        new = 0.9 * mean + 0.1 * z.detach().mean(0)
        if self.way == "copy_":
            mean.copy_(new)
        elif self.way == "data.copy_":
            mean.data.copy_(new)
        elif self.way == "data":
            mean.data = new
        else:
            self.linear.weight.data.clamp_(-0.1, 0.1)
        result: Tensor = z - mean
        return result


@both
@pytest.mark.parametrize("way", ["copy_", "data.copy_", "data"])
def test_a_buffer_that_is_written_through_data_is_state_as_any_other(backend, way):
    torch.manual_seed(0)
    net = Averages(way).double()
    twin = copy.deepcopy(net)
    trainer = ScalarTrainer(loss, net, backend=backend)
    trainer.forward(X)

    assert torch.equal(net.get_buffer("mean"), torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        trainer.step(X, lr=0.1)
        optimizer.zero_grad()
        loss(twin, X).backward()
        optimizer.step()
    for mine, theirs in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_trained_parameter_that_is_written_through_data_is_unprovable():
    with pytest.raises(Unprovable, match=r"the program writes into linear\.weight"):
        ScalarTrainer(loss, Averages("clamp").double())
