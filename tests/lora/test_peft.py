"""Adapters that PEFT itself reads and writes: its outputs are ours. Runs where it is installed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer, StateError
from shaped.lora import LoraLinear, adapt, inject, load_adapter, merged, save_adapter
from shaped.lora.peft import TENSORS

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


class MLP(ParamList):
    w1: Float[Tensor, "inputs hidden"]
    w2: Float[Tensor, "hidden outputs"]


def outputs(p: MLP, x: Tensor) -> Tensor:
    return F.relu(x @ p.w1) @ p.w2


def loss(p: MLP, x: Float[Tensor, "batch inputs"], y: Float[Tensor, "batch outputs"]) -> Float[Tensor, ""]:
    return F.mse_loss(outputs(p, x), y)


def turned(base: MLP) -> nn.Module:
    """The same network over transformers' Conv1D, which keeps its weights as a list does: [in, out]."""
    layers = pytest.importorskip("transformers.pytorch_utils")

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, weight in (("w1", base.w1), ("w2", base.w2)):
                layer = layers.Conv1D(weight.shape[1], weight.shape[0])
                layer.weight.data.copy_(weight.detach())
                setattr(self, name, layer)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.get_submodule("w2")(F.relu(self.get_submodule("w1")(x)))
            return y

    return Turned()


def written_by_peft(module: nn.Module, targets: list[str], folder: Path, **options: Any) -> nn.Module:
    made: nn.Module = peft.get_peft_model(module, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, **options))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    made.eval().save_pretrained(folder)  # type: ignore[operator]
    return made


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def test_peft_loads_an_adapter_of_a_module_and_computes_the_same(tmp_path: Path) -> None:
    module = Net()
    inject(module, ["0", "head"], rank=2, alpha=4.5)
    for part in module.modules():
        if isinstance(part, LoraLinear):
            nn.init.normal_(part.lora_B)
    theirs = peft.PeftModel.from_pretrained(Net(), save_adapter(module, tmp_path))

    torch.testing.assert_close(theirs(X), module(X))
    torch.testing.assert_close(theirs.merge_and_unload()(X), merged(module)(X))


def test_an_adapter_whose_two_files_are_of_different_saves_is_refused(tmp_path: Path) -> None:
    for name, alpha in (("old", 2.0), ("new", 64.0)):
        module = Net()
        inject(module, ["0"], rank=2, alpha=alpha)
        save_adapter(module, tmp_path / name)
    os.replace(tmp_path / "new" / TENSORS, tmp_path / "old" / TENSORS)
    with pytest.raises(StateError, match="are of different saves: lora_alpha = 2"):
        load_adapter(Net(), tmp_path / "old")


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_module_that_peft_injected_into_is_trained_as_by_plain_torch(backend: Any) -> None:
    """PEFT freezes what it does not add; a trainer steps the adapters alone, and saves them under PEFT's names."""

    def made() -> nn.Module:
        torch.manual_seed(1)
        return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0", "head"]), Net())  # type: ignore[no-any-return]

    def of_module(net: nn.Module, x: Float[Tensor, "batch 6"], y: Float[Tensor, "batch 3"]) -> Float[Tensor, ""]:
        return F.mse_loss(net(x), y)

    net, twin, y = made(), made(), torch.ones(5, 3)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    trainer = ScalarTrainer(of_module, net, backend=backend)
    before = {name: p.detach().clone() for name, p in net.named_parameters() if not p.requires_grad}
    for _ in range(3):
        trainer.adamw_step(X, y, lr=0.1, weight_decay=0.01)
        optimizer.zero_grad()
        F.mse_loss(twin(X), y).backward()
        optimizer.step()

    for name, p in twin.named_parameters():  # three steps in float32, each at most lr
        torch.testing.assert_close(net.get_parameter(name), p, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(net.get_parameter(name), p) for name, p in before.items())
    assert set(peft.get_peft_model_state_dict(net)) == {
        f"{layer}.lora_{part}.weight" for layer in ("body.0", "head") for part in "AB"
    }


def test_an_adapter_of_peft_loads_and_computes_the_same(tmp_path: Path) -> None:
    theirs, module = written_by_peft(Net(), ["0", "head"], tmp_path, lora_dropout=0.1), Net()
    load_adapter(module, tmp_path)

    torch.testing.assert_close(module(X), theirs(X))


def test_a_lists_adapter_is_that_of_layers_that_keep_their_weights_as_it_does(tmp_path: Path) -> None:
    base = MLP.init(inputs=6, hidden=8, outputs=3, seed=0)
    mine = adapt(loss, base, ["w1", "w2"], rank=3, alpha=5)
    with torch.no_grad():
        mine.params["w1.b"].normal_()
        mine.params["w2.b"].normal_()
    theirs = peft.PeftModel.from_pretrained(turned(base), save_adapter(mine, tmp_path / "ours"))
    written = written_by_peft(turned(base), ["w1", "w2"], tmp_path / "theirs", fan_in_fan_out=True)
    again = adapt(loss, base, ["w1", "w2"], rank=3, alpha=5)
    load_adapter(again, tmp_path / "theirs")

    torch.testing.assert_close(theirs(X), outputs(mine.merged(), X))
    torch.testing.assert_close(written(X), outputs(again.merged(), X))


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"head": 2}},
        {"modules_to_save": ["body.0"], "target": "head"},
        {"init_lora_weights": "pissa"},
        {"alora_invocation_tokens": [1, 2]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_peft_writes_beyond_plain_lora_is_refused_by_its_setting(options: dict[str, Any], tmp_path: Path) -> None:
    setting, targets = next(iter(options)), [options.pop("target", "0"), "head"]
    written_by_peft(Net(), targets, tmp_path, **options)

    with pytest.raises(StateError, match=setting):
        load_adapter(Net(), tmp_path)
