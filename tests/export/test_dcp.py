"""Folders of torch.distributed.checkpoint in one process; torch's own reader and writer are the oracle."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from shaped import ScalarTrainer
from shaped.errors import ExportError, StateError
from shaped.export import load_dcp, save_dcp
from shaped.optim import SGD, AdamW

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


class Net(nn.Module):
    """Tied weights, a frozen bias, and buffers of which one is saved."""

    kept: Tensor
    scratch: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        self.layers[2].weight = self.layers[0].weight
        self.layers[1].bias.requires_grad_(False)
        self.register_buffer("kept", torch.full((2,), float(seed)))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3"]:
        out: Tensor = self.layers(x)
        return out + self.kept.sum() * self.scratch.sum()


def loss(out: Float[Tensor, "batch 3"]) -> Float[Tensor, ""]:
    return out.square().mean()


def groups(net: Net) -> list[dict[str, Any]]:
    first, second, _ = net.layers
    return [{"params": [first.weight, second.weight], "lr": 0.1}, {"params": [first.bias, net.layers[2].bias]}]


def ours(seed: int = 0, make: Any = AdamW, **options: Any) -> tuple[Net, ScalarTrainer]:
    net = Net(seed)
    return net, ScalarTrainer(loss, net, optimizer=make(groups(net), lr=0.01, **options))


def theirs(seed: int = 1) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(seed)
    return net, torch.optim.AdamW(groups(net), lr=0.01)


def rows(k: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(k))


def stepped(net: Net, optimizer: torch.optim.Optimizer, *ks: int) -> None:
    for k in ks:
        optimizer.zero_grad()
        loss(net(rows(k))).backward()
        optimizer.step()


def alike(a: Net, b: Net) -> None:
    """One process on either side runs the same operations up to fused updates: some roundings of numbers near 1."""
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=0, atol=8 * 2**-24, msg=name)


def saved(folder: Path, **options: Any) -> tuple[Path, Net, torch.optim.Optimizer]:
    """What plain torch has after two steps, as a folder."""
    net, optimizer = theirs()
    stepped(net, optimizer, 0, 1)
    model, optim = get_state_dict(net, optimizer, options=StateDictOptions(**options))
    save({"model": model, "optim": optim}, checkpoint_id=folder / "torch")
    return folder / "torch", net, optimizer


def test_plain_torch_loads_what_is_saved_and_goes_on_alike(tmp_path: Path) -> None:
    net, trainer = ours()
    for k in range(2):
        trainer.train_step(rows(k))
    save_dcp(trainer, tmp_path / "ours")
    other, optimizer = theirs()
    model, optim = get_state_dict(other, optimizer)
    load({"model": model, "optim": optim}, checkpoint_id=tmp_path / "ours")
    set_state_dict(other, optimizer, model_state_dict=model, optim_state_dict=optim)
    alike(net, other)
    trainer.train_step(rows(2))
    stepped(other, optimizer, 2)

    alike(net, other)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert os.listdir(tmp_path) == ["ours"]


@pytest.mark.parametrize("flatten", [False, True])
def test_what_plain_torch_saved_is_loaded_and_goes_on_alike(tmp_path: Path, flatten: bool) -> None:
    folder, other, optimizer = saved(tmp_path, flatten_optimizer_state_dict=flatten)
    net, trainer = ours(seed=2)
    load_dcp(trainer, folder)
    alike(net, other)
    assert trainer.steps == 2
    trainer.train_step(rows(2))
    stepped(other, optimizer, 2)

    alike(net, other)


def test_state_dicts_as_they_are_load_by_position_with_a_warning_and_parameters_alone_without(tmp_path: Path) -> None:
    _, other, optimizer = saved(tmp_path)
    save({"app": {"net": other.state_dict(), "opt": optimizer.state_dict()}}, checkpoint_id=tmp_path / "raw")
    net, trainer = ours()
    load_dcp(trainer, tmp_path / "raw", model="app.net", optimizer=None)
    alike(net, other)
    assert trainer.steps == 0
    with pytest.warns(UserWarning, match="taken by position"):
        load_dcp(trainer, tmp_path / "raw", model="app.net", optimizer="app.opt")
    trainer.train_step(rows(2))
    stepped(other, optimizer, 2)

    alike(net, other)


def test_counts_go_along_and_a_folder_that_is_there_is_not_written(tmp_path: Path) -> None:
    _, trainer = ours(make=SGD)
    trainer.train_step(rows(0))
    save_dcp(trainer, tmp_path / "ours")
    _, again = ours(make=SGD)
    load_dcp(again, tmp_path / "ours")

    assert again.steps == 1
    with pytest.raises(ExportError, match="is there already: name another folder, or remove it first"):
        save_dcp(trainer, tmp_path / "ours")


def test_what_does_not_fit_is_listed_and_changes_nothing(tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path)
    odd = {"layers.0.weight": torch.ones(2, 3), "layers.2.weight": torch.ones(3, 3).bfloat16(), "more": torch.ones(1)}
    kept = {name: t for name, t in Net().state_dict().items() if name != "kept"}
    save({"model": kept | odd}, checkpoint_id=tmp_path / "odd")
    net, trainer = ours()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    said = []
    for call in (
        lambda: load_dcp(trainer, tmp_path / "odd"),
        lambda: load_dcp(trainer, folder, model="net"),
        lambda: load_dcp(trainer, folder, optimizer="opt"),
        lambda: load_dcp(trainer, tmp_path),
        lambda: load_dcp(ours(make=SGD, momentum=0.9)[1], folder),
    ):
        with pytest.raises(StateError) as found:
            call()
        said.append(str(found.value).replace(str(tmp_path), "F"))

    assert said[0] == (
        "F/odd does not fit this trainer.\n"
        "  model.kept: missing there\n"
        "  model.layers.0.weight: float32 [2, 3] there, float32 [3, 3] here\n"
        "  model.layers.2.weight: bfloat16 [3, 3] there, float32 [3, 3] here\n"
        "  model.more: unknown here"
    )
    assert said[1].endswith("none of net.kept and its like is there; model.kept is: model='model' may be meant")
    assert said[2].endswith(
        "opt.param_groups: missing there; say where its optimizer's state is, or load with optimizer=None"
    )
    assert said[3] == "F is no folder of torch.distributed.checkpoint: it has no .metadata"
    assert "param_groups[0]: lacks momentum" in said[4]
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


class Evil:
    """What runs where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def _metadata(folder: Path, change: Callable[[Any, Path], None]) -> None:
    found = pickle.loads((folder / ".metadata").read_bytes())
    change(found, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def _evil_value(found: Any, folder: Path) -> None:
    torch.save(Evil(folder / "ran"), content := io.BytesIO())
    (folder / "evil").write_bytes(content.getvalue())
    info = next(info for index, info in found.storage_data.items() if index.fqn == "optim.param_groups.0.lr")
    info.relative_path, info.offset, info.length = "evil", 0, len(content.getvalue())


def _elsewhere(found: Any, folder: Path) -> None:
    for info in found.storage_data.values():
        info.relative_path = "../torch/" + info.relative_path


def _flipped(folder: Path) -> None:
    """One bit of the values of a tensor."""
    found = pickle.loads((folder / ".metadata").read_bytes())
    info = next(info for index, info in found.storage_data.items() if index.fqn == "model.layers.0.weight")
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    value = torch.load(io.BytesIO(content[info.offset : info.offset + info.length]))
    content[content.index(value.numpy().tobytes(), info.offset)] ^= 1
    (folder / "__0_0.distcp").write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "metadata that runs": (
        lambda f: (f / ".metadata").write_bytes(pickle.dumps(Evil(f / "ran"))), "which is no part of the format",
    ),
    "a value that runs": (lambda f: _metadata(f, _evil_value), "is more than tensors, numbers and strings"),
    "a bit flipped": (_flipped, "model.layers.0.weight: its checksum does not match what was written"),
    "files elsewhere": (lambda f: _metadata(f, _elsewhere), "it lies in another folder, or is compressed"),
    "a file cut off": (lambda f: os.truncate(f / "__0_0.distcp", 3000), "cannot be read"),
    "no file": (lambda f: os.unlink(f / "__0_0.distcp"), "No such file"),
    "a block left out": (
        lambda f: _metadata(f, lambda m, _: m.state_dict_metadata["model.layers.0.weight"].chunks.clear()),
        "not all of model.layers.0.weight is there",
    ),
}  # fmt: skip


def test_a_folder_that_is_broken_or_would_run_code_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    whole, _, _ = saved(tmp_path)
    net, trainer = ours()
    before = {key: t.clone() for key, t in net.state_dict().items()}
    for name, (breaks, why) in BROKEN.items():
        folder = shutil.copytree(whole, tmp_path / name)
        breaks(folder)
        with pytest.raises(StateError, match=why):
            load_dcp(trainer, folder)

        assert not (folder / "ran").exists()
        assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


def test_what_the_format_has_no_place_for_is_refused(tmp_path: Path) -> None:
    net = Net()
    waiting = ScalarTrainer(loss, net, optimizer=AdamW(net.parameters()), accumulate=2)
    waiting.train_step(rows(0))
    _, eight = ours(moments="8bit")
    eight.train_step(rows(0))
    with pytest.raises(ExportError, match="gradients wait for an update"):
        save_dcp(waiting, tmp_path / "waiting")
    with pytest.raises(ExportError, match="keeps exp_avg in eight bits"):
        save_dcp(eight, tmp_path / "eight")
    save_dcp(eight, tmp_path / "eight", optimizer=None)

    assert os.listdir(tmp_path) == ["eight"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = ours()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ExportError, match="ours cannot be written: No space left on device"):
        save_dcp(trainer, tmp_path / "ours")

    assert not os.listdir(tmp_path)
