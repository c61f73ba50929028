"""Adapter files that lack something, and adapters beside narrow weights."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from shaped import ParamList, ScalarTrainer, ShapeError, StateError
from shaped.lora import adapt, inject, load_adapter, merge, save_adapter, unmerge
from shaped.lora.modules import adapters
from shaped.lora.peft import CONFIG, TENSORS


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)


def trained(dtype: torch.dtype = torch.float32) -> nn.Module:
    module = net(dtype)
    inject(module, ["0", "2"], rank=2, alpha=4)
    for p in module.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    return module


def edit(folder: Path, keep: Any, **settings: Any) -> None:
    """Drop tensors of a saved adapter, and change its configuration."""
    save_file({n: t for n, t in load_file(folder / TENSORS).items() if keep(n)}, folder / TENSORS, {"format": "pt"})
    config = json.loads((folder / CONFIG).read_text()) | settings
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keep", "settings", "missing"),
    [
        (lambda name: ".0." in name, {}, ["2.lora_A", "2.lora_B"]),
        (lambda name: "2.lora_B" not in name, {}, ["2.lora_B"]),
        (lambda name: ".0." in name, {"target_modules": "[02]"}, ["2.lora_A", "2.lora_B"]),
    ],
)
def test_a_file_that_lacks_a_layer_or_a_half_is_refused(
    tmp_path: Path, keep: Any, settings: dict[str, Any], missing: list[str]
) -> None:
    save_adapter(trained(), tmp_path)
    edit(tmp_path, keep, **settings)
    again = net()
    with pytest.raises(StateError) as caught:
        load_adapter(again, tmp_path)

    rows = "".join(f"\n  base_model.model.{name}.weight: missing" for name in missing)
    assert str(caught.value) == f"the adapter does not fit Sequential.{rows}"
    assert not [*adapters(again)]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["0"]},
        {"exclude_modules": ["2"]},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [7]},
    ],
)
def test_a_layer_that_the_configuration_leaves_out_is_not_missing(tmp_path: Path, settings: dict[str, Any]) -> None:
    save_adapter(trained(), tmp_path)
    edit(tmp_path, lambda name: ".0." in name, **settings)
    again = net()
    load_adapter(again, tmp_path)

    assert [name for name, _ in adapters(again)] == ["0"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_beside_narrow_weights_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    module, again, x = trained(dtype), net(dtype), torch.randn(5, 8).to(dtype)
    save_adapter(module, tmp_path)
    load_adapter(again, tmp_path)

    assert {t.dtype for t in load_file(tmp_path / TENSORS).values()} == {torch.float32}
    assert torch.equal(again(x), module(x))
    assert module(x).dtype == dtype
    wide = torch.float64
    first = next(part for name, part in adapters(module) if name == "0")
    exact = first.base_layer(x).to(wide) + 2 * (x.to(wide) @ first.lora_A.T.to(wide)) @ first.lora_B.T.to(wide)
    # One rounding of the sum, and the float32 product's own below it.
    torch.testing.assert_close(first(x).to(wide), exact.to(dtype).to(wide), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    before = [p.clone() for p in module.parameters()]
    merge(module)
    assert {p.dtype for name, p in module.named_parameters() if "base" in name} == {dtype}
    unmerge(module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    narrow = trained(dtype).to(dtype)
    with pytest.warns(UserWarning, match=r"is rounded: .*0\.lora_A.* are float32 there, b?float16 here"):
        load_adapter(narrow, tmp_path)


class Narrow(ParamList):
    w: BFloat16[Tensor, "inputs outputs"]


def loss(p: Narrow, x: BFloat16[Tensor, "batch inputs"], y: BFloat16[Tensor, "batch outputs"]) -> Float[Tensor, ""]:
    return F.mse_loss((x @ p.w).float(), y.float())


def test_an_adapted_list_of_bfloat16_trains_a_float32_adapter(tmp_path: Path) -> None:
    base = Narrow.init(inputs=4, outputs=3, seed=0)
    adapted, again = (adapt(loss, base, ["w"], rank=2, seed=seed) for seed in (0, 1))
    trainer = ScalarTrainer(adapted.loss, adapted.params)
    x, y = torch.randn(6, 4).bfloat16(), torch.randn(6, 3).bfloat16()
    values = [trainer.adamw_step(x, y, lr=0.1).item() for _ in range(20)]
    save_adapter(adapted, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(again, tmp_path)

    assert values[-1] < values[0]
    assert adapted.params["w.a"].dtype == adapted.params["w.b"].dtype == torch.float32
    assert torch.equal(again.merged().w, adapted.merged().w)
    assert adapted.merged().w.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64])
def test_an_adapter_of_other_than_floating_point_numbers_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_adapter(trained(), tmp_path)
    found = load_file(tmp_path / TENSORS)
    name = "base_model.model.2.lora_A.weight"
    save_file({**found, name: found[name].to(dtype)}, tmp_path / TENSORS, {"format": "pt"})
    again = net()
    with pytest.raises(StateError, match=r"an adapter is of floating-point numbers, not `.*2\.lora_A\.weight "):
        load_adapter(again, tmp_path)

    assert not [*adapters(again)]


@pytest.mark.parametrize("targets", [5, [5], {"0": 1}])
def test_targets_that_name_no_modules_are_refused(tmp_path: Path, targets: Any) -> None:
    module = net()
    inject(module, ["0"], rank=2)
    save_adapter(module, tmp_path)
    edit(tmp_path, lambda name: True, target_modules=targets)
    with pytest.raises(StateError, match=r"adapter_config.json: .* names no modules"):
        load_adapter(net(), tmp_path)


def test_a_layer_that_is_read_by_its_weight_has_its_adapter_in_it() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    inject(layer, ["linear1", "linear2"], rank=2, alpha=4)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 5, 8)
    slow = layer.train()(x)
    with torch.no_grad():
        fast = layer.eval()(x)  # torch's own path, from weights alone

    assert torch.allclose(slow, fast, atol=1e-5)
    assert torch.allclose(layer.linear1(x), F.linear(x, layer.linear1.weight, layer.linear1.bias), atol=1e-5)
    weight = layer.linear1.weight
    merge(layer)
    assert torch.equal(layer.linear1.weight, weight)


def test_a_weight_that_pruning_computes_is_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    with pytest.raises(ShapeError, match="the weight of `0` is computed from other parameters, as pruning does"):
        inject(module, ["0"], rank=2)
