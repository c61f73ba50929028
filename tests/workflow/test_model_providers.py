"""Model providers: made at any sizes, saved and loaded to the bit, described, and strict about other files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shaped import CheckpointCorrupt, CheckpointError, ParamList, ShapedError, SignatureError
from shaped.workflow import ModelProvider
from shaped.workflow.registry import models
from tests.models import GPT, gpt_loss


class Net(nn.Module):
    def __init__(self, inputs: int, width: int, classes: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch classes"]:
        found: Tensor = self.second(self.first(x).relu())
        return found


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


lists = ModelProvider(GPT, gpt_loss, defaults={"blocks": 3})
nets = ModelProvider(Net, lambda x: x)
SIZES: Any = {"vocab": 11, "dim": 4, "context": 6}


def test_a_list_is_made_at_the_sizes_that_are_asked_for() -> None:
    made: Any = lists.create(seed=3, **SIZES)

    assert lists.sizes == ("vocab", "dim", "context", "blocks")
    assert (made.dims, len(made.blocks)) == ({"vocab": 11, "dim": 4, "context": 6}, 3)
    assert same(made, lists.create(seed=3, **SIZES))
    assert not same(made, lists.create(seed=4, **SIZES))
    with pytest.raises(SignatureError, match="`dims` is unknown; did you mean `dim`"):
        lists.create(**SIZES, dims=3)
    with pytest.raises(SignatureError, match="`vocab` missing"):
        lists.create(dim=4, context=6)


def test_a_module_is_drawn_by_its_seed_and_torch_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    one, other = (nets.create(seed=5, inputs=2, width=4) for _ in range(2))

    assert nets.sizes == ("inputs", "width", "classes")
    assert same(ParamList.from_module(one), ParamList.from_module(other))  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(SignatureError, match="Net cannot be made: missing a required argument: 'width'"):
        nets.create(inputs=2)
    with pytest.raises(SignatureError, match=r"number made a int, not a ParamList or an nn.Module"):
        ModelProvider(lambda: 3, gpt_loss, name="number").create()  # type: ignore[arg-type, return-value]


def test_a_model_is_loaded_as_it_was_saved_at_the_sizes_in_the_file(tmp_path: Path) -> None:
    frozen = GPT.init(seed=7, blocks=2, frozen=("wte",), **SIZES)
    path = lists.save(frozen, tmp_path / "gpt.safetensors", about={"run": 3})
    back: Any = ModelProvider(GPT, gpt_loss).load(path)

    assert same(frozen, back)
    assert (len(back.blocks), back.requires_grad) == (2, frozen.requires_grad)
    assert lists.read_about(path) == {"run": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpt.safetensors"]
    assert set(load_file(path)) == set(frozen.names)


def test_a_module_is_loaded_with_its_buffers(tmp_path: Path) -> None:
    net: Any = nets.create(inputs=2, width=4, seed=1)
    net.seen.fill_(9.0)
    net.first.weight.requires_grad_(False)
    nets.save(net, tmp_path / "net")
    back: Any = nets.load(tmp_path / "net")

    assert back.seen.item() == 9.0
    assert not back.first.weight.requires_grad
    assert same(net.state_dict().values(), back.state_dict().values())
    elsewhere = nets.save(Net(3, 5), tmp_path / "other", sizes={"inputs": 3, "width": 5})
    assert nets.load(elsewhere).first.weight.shape == (5, 3)  # type: ignore[union-attr]


def test_the_info_gives_names_shapes_in_dimension_names_and_counts() -> None:
    info = lists.info(GPT.init(blocks=1, frozen=("wpe",), **SIZES))

    assert (info.count, info.trained) == (44 + 24 + 4 * 16 + 2 * 64, 44 + 4 * 16 + 2 * 64)
    assert str(info).splitlines()[:4] == [
        "GPT: 260 numbers, 236 trained; vocab = 11, dim = 4, context = 6",
        "  wte            [vocab dim]    [11, 4]  float32  44",
        "  wpe            [context dim]  [6, 4]   float32  24 frozen",
        "  blocks.0.wq    [dim dim]      [4, 4]   float32  16",
    ]
    assert "first.weight   [4 2]  [4, 2]  float32  8" in str(nets.info(nets.create(inputs=2, width=4)))


def test_a_file_that_is_no_such_model_is_refused(tmp_path: Path) -> None:
    path = nets.save(nets.create(inputs=2, width=4), tmp_path / "net")
    plain, junk = tmp_path / "plain", tmp_path / "junk"
    save_file({"a": torch.zeros(1)}, plain)
    junk.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is a Net, not a GPT"):
        lists.load(path)
    with pytest.raises(CheckpointError, match=r"does not fit Net.\n  `first.weight`: float32 \(4, 2\) there"):
        nets.load(path, width=5)
    with pytest.raises(CheckpointError, match="no file"):
        nets.load(tmp_path / "nothing")
    for file in (plain, junk):
        with pytest.raises(CheckpointCorrupt, match="is no model that was saved here"):
            nets.load(file)
    with pytest.raises(CheckpointError, match="cannot be written"):
        nets.save(nets.create(inputs=2, width=4), tmp_path / "no" / "folder")
    with pytest.raises(CheckpointError, match="cannot be written: Object of type set"):
        nets.save(nets.create(inputs=2, width=4), path, about={"x": {1}})
    assert nets.load(path) is not None


def test_every_model_by_name_is_a_provider() -> None:
    for name in ("linear_regressor", "mlp_classifier", "mlp_regressor"):
        provider = models.get(name)()

        assert provider.name == name
        assert "features" in provider.sizes
    with pytest.raises(ShapedError, match="did you mean `mlp_classifier`"):
        models.get("mlp_clasifier")


def test_a_flipped_byte_in_a_file_is_corruption(tmp_path: Path) -> None:
    path = lists.save(lists.create(seed=0, **SIZES), tmp_path / "model")
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointCorrupt, match="another checksum"):
        lists.load(path)
