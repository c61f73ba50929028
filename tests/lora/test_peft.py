"""Adapters that PEFT itself reads and writes: its outputs are ours. Runs where it is installed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList, StateError
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
