"""Adapters: proofs, gradients, merging, checkpoints, and PEFT's files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shaped import Checkpoints, GradientError, Loop, ScalarTrainer, ShapeError, StateError
from shaped.lora import (
    Adapted,
    LoraLinear,
    adapt,
    inject,
    load_adapter,
    merge,
    merged,
    save_adapter,
    unmerge,
)
from shaped.optim import AdamW
from tests.models import MLP, batch, mlp, mlp_loss


def adapted(params: MLP | None = None, **options: Any) -> Adapted[MLP]:
    return adapt(mlp_loss, params or mlp(), ["w1", "w2"], **{"rank": 2, "alpha": 4.0, **options})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.ReLU())
        self.head = nn.Linear(64, 3, bias=False)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
        logits: Tensor = self.head(self.body(x))
        return logits


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def net_loss(prediction: Float[Tensor, "batch 3"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(prediction, y)


# -- over parameter lists ------------------------------------------------------------------------------------------


def test_the_proof_has_the_rank_as_a_dimension() -> None:
    both = adapted()
    trainer = ScalarTrainer(both.loss, both.params)

    assert "proved for all batch, pixels, hidden, classes, rank >= 1" in str(trainer.proof)
    assert "rank = 2" in str(trainer.proof)
    assert str(trainer.params.entries[4].spec) == "[pixels, rank]"


def test_an_adapter_starts_at_the_base_and_its_gradients_are_those_of_autograd() -> None:
    both = adapted(mlp(dtype=torch.float64))
    x, y = batch(dtype=torch.float64)
    trainer = ScalarTrainer(both.loss, both.params)
    assert torch.equal(trainer.forward(x, y), mlp_loss(mlp(dtype=torch.float64), x, y).detach())
    trainer.step(x, y, lr=0.5)  # b is no longer 0

    found = trainer.backward(x, y)
    p = both.params
    w = [p[n] + 2.0 * p[f"{n}.a"] @ p[f"{n}.b"] for n in ("w1", "w2")]
    value = F.cross_entropy(F.relu(x @ w[0] + p["b1"]) @ w[1] + p["b2"], y)
    names = ["w1.a", "w1.b", "w2.a", "w2.b"]
    exact = torch.autograd.grad(value, [p[n] for n in names])
    torch.testing.assert_close([found[n] for n in names], list(exact))
    assert not found["w1"].any()


@pytest.mark.parametrize(
    "base", [pytest.param("float", marks=pytest.mark.smoke), pytest.param("nf4", marks=pytest.mark.slow)]
)
def test_training_an_adapter_lowers_the_loss_on_both_backends_and_leaves_the_base(base: Any) -> None:
    params = MLP.init(pixels=6, hidden=64, classes=3)
    before = params.values()
    both = adapt(mlp_loss, params, ["w1"], rank=2, base=base)
    eager = ScalarTrainer(both.loss, both.params)
    x, y = batch()
    start = eager.forward(x, y)
    for trainer in (eager, eager.with_backend("compiled")):
        for _ in range(10):
            trainer.adamw_step(x, y, lr=0.05)

    assert eager.forward(x, y) < 0.5 * start
    assert eager.compare_backends(x, y).largest < 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_a_merged_list_gives_the_adapted_loss_bit_for_bit() -> None:
    both = adapted()
    x, y = batch()
    trainer = ScalarTrainer(both.loss, both.params)
    trainer.adamw_step(x, y, lr=0.1)

    assert torch.equal(mlp_loss(both.merged(), x, y), trainer.forward(x, y))
    assert isinstance(both.merged(), MLP)
    assert all(torch.equal(a, b) for a, b in zip(both.unmerged(), mlp(), strict=True))


def test_four_bits_ask_for_whole_blocks_in_the_proof() -> None:
    both = adapt(mlp_loss, MLP.init(pixels=6, hidden=64, classes=3), ["w1"], base="nf4")

    assert ScalarTrainer(both.loss, both.params).proof.conditions == ("hidden % 64 == 0",)
    with pytest.raises(ShapeError, match="NF4 takes columns in blocks of 64, and `w1` has others"):
        adapt(mlp_loss, mlp(), ["w1"], base="nf4")


def test_what_is_no_plain_list_is_refused_with_the_way_out() -> None:
    both = adapted()

    with pytest.raises(ShapeError, match=r"MLP\+LoRA has adapters already: adapt adapted.merged\(\)"):
        adapt(both.loss, both.params, ["w1"])
    with pytest.raises(ValueError, match="params is a Net; it is a ParamList"):
        adapt(net_loss, net(), ["head"])  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["w3"], {}, "MLP has no weight `w3`"),
        (["b1"], {}, "goes to a floating-point matrix, and `b1` is none"),
        ("w1", {}, "targets is 'w1'; it is a sequence of texts"),
        (["w1"], {"rank": 0}, "rank is 0; it is a whole number"),
        (["w1"], {"alpha": -1.0}, "alpha is -1.0; it is a positive number"),
        (["w1"], {"base": "int4"}, "base is 'int4'; it is 'float' or 'nf4'"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_by_name(targets: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(mlp_loss, mlp(), targets, **options)


# -- only the adapter is saved -------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_adapter_alone_and_a_new_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    data = [batch(seed=i) for i in range(6)]

    def loop(both: Adapted[MLP]) -> Loop:
        optimizer = AdamW(both.params, lr=0.05)
        return Loop(ScalarTrainer(both.loss, both.params, optimizer=optimizer, save_frozen=False))

    whole, begun, second_half = adapted(), adapted(), adapted()
    loop(whole).run_steps(data, 6)
    first = loop(begun)
    checkpoints = first.attach(Checkpoints(tmp_path, every=3))
    first.run_steps(data, 3)
    checkpoints.close()
    second, again = loop(second_half), Checkpoints(tmp_path)
    again.resume(second)
    second.run_to_step(data, 6)
    saved = again.read(3).state["trainer"]

    assert set(saved["params"]) == {"w1.a", "w1.b", "w2.a", "w2.b"}
    assert all(torch.equal(a, b) for a, b in zip(whole.params, second_half.params, strict=True))


def test_a_state_without_its_base_is_refused_over_another_base() -> None:
    mine = adapted()
    state = ScalarTrainer(mine.loss, mine.params, save_frozen=False).state_dict()
    other = adapted(mlp(seed=1))
    stranger = ScalarTrainer(other.loss, other.params, save_frozen=False)
    before = [t.clone() for t in stranger.params]

    with pytest.raises(StateError, match="w1: it is frozen and was left out there; its values here are others"):
        stranger.load_state_dict(state)
    with pytest.raises(StateError, match="w1: missing"):
        ScalarTrainer(other.loss, other.params).load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(before, stranger.params, strict=True))


# -- over modules --------------------------------------------------------------------------------------------------


def test_an_injected_module_trains_its_adapters_alone_and_merges() -> None:
    module = net()
    x, y = batch()
    before = module(x)
    assert inject(module, ["0", "head"], rank=2) == ("body.0", "head")
    assert torch.equal(module(x), before)
    trainer = ScalarTrainer(net_loss, module, save_frozen=False)
    assert "body.0.lora_A" in trainer.params.names
    for _ in range(3):
        trainer.adamw_step(x, y, lr=0.05)
    after, base = module(x).detach(), module.head.base_layer.weight.clone()  # type: ignore[union-attr, operator]
    assert not torch.equal(after, before)
    assert set(trainer.state_dict()["params"]) == {n for n in trainer.params.names if n.endswith(("lora_A", "lora_B"))}

    # Merged: one product instead of three, so rounding only: a few ulp of sums over 64 terms of size 1.
    torch.testing.assert_close(merged(module)(x), after, rtol=0, atol=64 * 2**-23)
    merge(module)
    torch.testing.assert_close(module(x), after, rtol=0, atol=64 * 2**-23)
    unmerge(module)
    assert torch.equal(module(x), after)
    assert torch.equal(module.head.base_layer.weight, base)  # type: ignore[union-attr, arg-type]
    assert not any(isinstance(part, LoraLinear) for part in merged(module).modules())


def test_a_trainer_over_merged_adapters_refuses_to_run_and_its_state_is_that_of_the_module_before() -> None:
    module = net()
    inject(module, ["head"], rank=2)
    trainer = ScalarTrainer(net_loss, module)
    x, y = batch()
    trainer.adamw_step(x, y, lr=0.05)
    before = trainer.state_dict()["params"]
    merge(module)

    for one in (trainer, trainer.with_backend("compiled")):
        for call in (one.forward, one.backward, lambda *inputs, one=one: one.adamw_step(*inputs, lr=0.05)):
            with pytest.raises(
                ShapeError, match=r"replaced in the module: `head.base_layer.weight`. Put it back .*unmerge"
            ):
                call(x, y)
    for allow_unused in (False, True):
        with pytest.raises(
            GradientError, match=r"`net_loss` (does not depend on `head.lora_A`|depends on no parameter)"
        ):
            ScalarTrainer(net_loss, module, allow_unused=allow_unused)
    merged_state = trainer.state_dict()["params"]
    with pytest.raises(ShapeError, match="merged adapters: unmerge"):  # it would not reach the merged weight
        trainer.load_state_dict(trainer.state_dict())
    unmerge(module)
    trainer.adamw_step(x, y, lr=0.05)

    assert all(torch.equal(before[name], tensor) for name, tensor in merged_state.items())


def test_a_state_carries_alpha_and_refuses_another_over_a_base_that_it_leaves_out() -> None:
    x, y = batch()
    lists, modules = [adapted(alpha=alpha) for alpha in (4.0, 40.1)], [net(), net()]
    for module, alpha in zip(modules, (4.0, 40.1), strict=True):
        inject(module, ["head"], rank=2, alpha=alpha)
    whole = [ScalarTrainer(both.loss, both.params) for both in lists], [ScalarTrainer(net_loss, m) for m in modules]
    first, second = (ScalarTrainer(both.loss, both.params, save_frozen=False) for both in lists)
    with pytest.raises(StateError, match="lora_alpha: it is frozen and was left out there; its values here are others"):
        second.load_state_dict(first.state_dict())
    assert lists[1].alpha == modules[1].head.alpha == 40.1  # type: ignore[union-attr]

    for first, second in whole:
        first.adamw_step(x, y, lr=0.05)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.forward(x, y), second.forward(x, y))
    assert lists[1].alpha == modules[1].head.alpha == 4.0  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_module_in_four_bits_trains_on_both_backends() -> None:
    module = net()
    inject(module, ["head"], rank=2, base="nf4")
    trainer = ScalarTrainer(net_loss, module, save_frozen=False)
    x, y = batch()
    start = trainer.forward(x, y)
    for one in (trainer, trainer.with_backend("compiled")):
        one.adamw_step(x, y, lr=0.05)

    assert trainer.forward(x, y) < start
    with pytest.raises(ValueError, match="a base in NF4 would be rounded again"):
        merge(module)
    torch.testing.assert_close(merged(module)(x), module(x), rtol=0, atol=64 * 2**-23)


def test_a_product_in_four_bits_has_the_gradient_of_the_weights_it_stands_for() -> None:
    module = net()
    inject(module, ["head"], rank=2, base="nf4")
    x = torch.randn(5, 64, requires_grad=True)
    layer: Any = module.head
    mine = torch.autograd.grad(layer.base_layer(x).square().sum(), x)
    exact = torch.autograd.grad((x @ layer.base_layer.weight_now().T).square().sum(), x)

    torch.testing.assert_close(mine, exact)


def test_a_layer_that_cannot_be_adapted_is_refused_and_nothing_has_changed() -> None:
    module = net()
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight

    with pytest.raises(ShapeError, match="Net has no weight `tail`"):
        inject(module, ["tail"])
    with pytest.raises(ShapeError, match=r"NF4 takes inputs in blocks of 64, and `body.0` has others"):
        inject(module, ["head", "body.0"], base="nf4")
    with pytest.raises(ShapeError, match="the weight of `0` is another's too"):
        inject(tied, ["0"])
    assert all(p.requires_grad for p in module.parameters())
    inject(module, ["head"])
    with pytest.raises(ShapeError, match="Net has adapters already"):
        inject(module, ["head"])


# -- PEFT's files --------------------------------------------------------------------------------------------------


def test_an_adapter_is_written_under_pefts_names_and_read_back(tmp_path: Path) -> None:
    module = net()
    inject(module, ["0", "head"], rank=2, alpha=4)
    for part in module.modules():
        if isinstance(part, LoraLinear):
            nn.init.normal_(part.lora_B)
    save_adapter(module, tmp_path)
    tensors, config = load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_config.json"
    other = net()
    load_adapter(other, tmp_path)
    x, _ = batch()

    assert {name: list(t.shape) for name, t in tensors.items()} == {
        "base_model.model.body.0.lora_A.weight": [2, 6],
        "base_model.model.body.0.lora_B.weight": [64, 2],
        "base_model.model.head.lora_A.weight": [2, 64],
        "base_model.model.head.lora_B.weight": [3, 2],
    }
    read = json.loads(config.read_text())
    assert (read["peft_type"], read["r"], read["lora_alpha"], read["bias"]) == ("LORA", 2, 4, "none")
    assert read["target_modules"] == ["body.0", "head"]
    assert torch.equal(other(x), module(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_lists_adapter_is_written_transposed_and_read_back(tmp_path: Path) -> None:
    both = adapted()
    trainer = ScalarTrainer(both.loss, both.params)
    trainer.adamw_step(*batch(), lr=0.1)
    save_adapter(both, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    fresh = adapted(seed=7)
    load_adapter(fresh, tmp_path)

    assert torch.equal(tensors["base_model.model.w1.lora_A.weight"], both.params["w1.a"].T)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    assert all(torch.equal(a, b) for a, b in zip(fresh.merged(), both.merged(), strict=True))


def test_an_adapter_that_does_not_fit_changes_nothing_and_lists_every_difference(tmp_path: Path) -> None:
    module = net()
    inject(module, ["0", "head"], rank=2)
    save_adapter(module, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    other = net()
    inject(other, ["head"], rank=3)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(StateError) as caught:
        load_adapter(other, tmp_path)
    assert "head: rank = 2 there, 3 here" in str(caught.value)
    assert "base_model.model.body.0.lora_A.weight: unknown" in str(caught.value)
    assert "base_model.model.head.lora_A.weight: [2, 64] there, [3, 64] here" in str(caught.value)

    del tensors["base_model.model.head.lora_B.weight"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    plain = net()
    with pytest.raises(StateError, match=r"head.lora_B.weight: missing"):
        load_adapter(plain, tmp_path)
    assert not any(isinstance(part, LoraLinear) for part in plain.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_an_adapter_that_is_no_plain_lora_is_refused_by_its_setting(tmp_path: Path) -> None:
    module = net()
    inject(module, ["head"])
    save_adapter(module, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))

    with pytest.raises(StateError, match="plain LoRA is read here, and the adapter has use_dora = True"):
        load_adapter(module, tmp_path)
    with pytest.raises(StateError, match="no adapter in"):
        load_adapter(module, tmp_path / "nowhere")


def test_the_state_of_a_merged_module_is_that_of_the_module_before() -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        inject(module, ["0", "1"], rank=2)
        return module

    module, x = fresh(), torch.randn(4, 8)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wanted = module(x).detach()
    merge(module)
    saved, other = module.state_dict(), fresh()
    merge(other)
    other.load_state_dict(saved)

    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())
    assert torch.equal(other(x), wanted)


def test_an_adapter_that_is_loaded_over_a_merged_module_is_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(4, 8)
    inject(module, ["0"], rank=2)
    with torch.no_grad():
        module[0].lora_B.fill_(0.5)  # type: ignore[union-attr, operator]
    save_adapter(module, tmp_path)
    wanted = module(x).detach()
    with torch.no_grad():
        module[0].lora_B.fill_(2.0)  # type: ignore[union-attr, operator]
    merge(module)
    load_adapter(module, tmp_path)

    torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize(
    ("setting", "value"), [("init_lora_weights", "pissa"), ("use_qalora", True), ("lora_alpha", None), ("r", True)]
)
def test_an_adapter_of_a_changed_base_or_without_numbers_is_refused(setting: str, value: Any, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    inject(module, ["0"], rank=1)
    save_adapter(module, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(StateError, match=setting):
        load_adapter(nn.Sequential(nn.Linear(4, 4)), tmp_path)
