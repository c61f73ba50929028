"""Checkpoints: what is kept, what is best, what is loaded, and what is refused."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shaped import CheckpointCorrupt, CheckpointError, Checkpoints, Loop, RunLocked, ScalarTrainer
from shaped.checkpoint import generator_states, generators_kept, read_checkpoint, set_generator_states
from shaped.checkpoint.codec import from_json, join, split, to_json
from shaped.optim import AdamW
from tests.models import MLP, batch, mlp, mlp_loss

DATA = [batch(seed=seed) for seed in range(4)]


def make(seed: int = 0) -> Loop:
    params = mlp(seed=seed)
    return Loop(ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.01)))


def attached(folder: Path, loop: Loop | None = None, **options: Any) -> tuple[Loop, Checkpoints]:
    loop = loop or make()
    checkpoints = Checkpoints(folder, **options)
    loop.attach(checkpoints)
    return loop, checkpoints


def damage(path: Path) -> None:
    content = bytearray((path / "state.json").read_bytes())
    content[10] ^= 1
    (path / "state.json").write_bytes(content)


def test_a_checkpoint_is_files_of_tensors_and_json_with_a_manifest_of_both(tmp_path: Path) -> None:
    loop, _ = attached(tmp_path, every=3)
    loop.run_steps(DATA, 3)
    path = tmp_path / "step-00000003"
    manifest = json.loads((path / "manifest.json").read_text())

    assert sorted(os.listdir(path)) == ["manifest.json", "state.json", "tensors.safetensors"]
    assert manifest["step"] == 3
    assert manifest["position"] == {"epoch": 0, "index": 3}
    assert manifest["signature"]["w1"] == 'Float "pixels hidden"'
    assert manifest["tensors"]["trainer.params.w1"] == ["float32", [6, 8]]
    assert set(manifest["files"]) == {"state.json", "tensors.safetensors"}
    assert manifest["versions"]["torch"] == str(torch.__version__)
    state = read_checkpoint(path).state
    group = state["trainer"]["optimizers"]["train"]["state"]["param_groups"][0]
    assert (group["lr"], group["betas"]) == (0.01, (0.9, 0.999))


def test_the_last_n_and_the_best_are_kept(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path, every=1, keep=2, best="validation/loss")
    values = iter([3.0, 1.0, math.nan, 2.0, 5.0, 4.0, 6.0, 7.0])
    loop.on_step(lambda loop: loop.record({"validation/loss": next(values)}))
    loop.run_to_step(DATA, 8)

    assert checkpoints.steps() == [2, 7, 8]
    assert checkpoints.best_step == 2
    assert read_checkpoint(tmp_path / "step-00000002").manifest["figures"]["validation/loss"] == 1.0
    checkpoints.close()
    again = Checkpoints(tmp_path, best="validation/loss")  # a worse value after a restart does not take its place
    assert again.best_step == 2
    again.resume(loop)
    again.on_record(loop, {"validation/loss": 2.0})
    assert again.best_step == 2
    again.close()
    assert Checkpoints(tmp_path, best="accuracy", mode="max").best_step is None


def test_only_what_this_run_made_is_removed(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path, keep=1)
    for name in ("step-00000001", "step-12", "notes", ".tmp-other-step-00000001-00"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000004" / "mine.txt").write_text("of another run")
    (tmp_path / ".old-step-00000009").mkdir()
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop.run_steps(DATA * 2, 2)
        (tmp_path / "step-00000002" / "notes").touch(exist_ok=True) if loop.step == 2 else None
    checkpoints.close()
    Checkpoints(tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        ".old-step-00000009",
        ".tmp-other-step-00000001-00",
        "notes",
        "step-00000001",
        "step-00000002",
        "step-00000006",
        "step-12",
        "superseded-step-00000004",
    ]
    assert (tmp_path / "superseded-step-00000004" / "mine.txt").read_text() == "of another run"


@pytest.mark.smoke
def test_a_corrupt_newest_is_named_set_aside_and_an_older_one_is_taken(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path, every=1)
    loop.run_steps(DATA, 3)
    damage(tmp_path / "step-00000003")
    other = make(seed=1)
    with pytest.raises(CheckpointCorrupt, match=r"state\.json: its checksum does not match"):
        checkpoints.resume(other, strict=True)
    with pytest.warns(UserWarning, match=r"set aside as corrupt-step-00000003: .*state\.json: its checksum"):
        found = checkpoints.resume(other)

    assert (found.step, found.fell_back, other.step) == (2, True, 2)
    assert str(found) == (
        f"goes on from {tmp_path}/step-00000002 at step 2; set aside as corrupt: corrupt-step-00000003"
    )
    assert (tmp_path / "corrupt-step-00000003").is_dir()
    for step in (1, 2):
        damage(tmp_path / f"step-0000000{step}")
    with (
        pytest.warns(UserWarning, match="set aside"),
        pytest.raises(CheckpointCorrupt, match=r"no checkpoint in .* is whole"),
    ):
        checkpoints.resume(make())


def test_going_back_to_an_older_step_puts_the_later_ones_aside(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path, every=1, keep=-1)
    loop.run_steps(DATA, 4)
    checkpoints.resume(loop, step=2)
    loop.resumed = False
    assert checkpoints.steps() == [1, 2, 3, 4]
    with pytest.warns(
        UserWarning, match="goes on from an earlier step; put aside under new names: superseded-step-0000000"
    ):
        loop.run_steps(DATA, 1)

    assert checkpoints.steps() == [1, 2, 3]
    assert {p.name for p in tmp_path.glob("superseded-*")} == {"superseded-step-00000003", "superseded-step-00000004"}


def test_nothing_to_resume_is_a_new_run(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path / "new" / "run")

    assert str(checkpoints.resume(loop)) == "a new run"
    assert loop.step == 0


def test_another_model_is_an_error_that_lists_every_difference_and_sets_nothing_aside(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path)
    loop.run_steps(DATA, 1)
    params = MLP.init(pixels=6, hidden=9, classes=3)
    other = Loop(ScalarTrainer(mlp_loss, params, optimizer=AdamW(params)))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.resume(other)

    assert not isinstance(caught.value, CheckpointCorrupt)
    assert str(caught.value) == (
        f"{tmp_path}/step-00000001 is of another run: the state dict does not fit this trainer.\n"
        "  w1: float32 (6, 8) there, float32 (6, 9) here\n"
        "  b1: float32 (8,) there, float32 (9,) here\n"
        "  w2: float32 (8, 3) there, float32 (9, 3) here"
    )
    assert checkpoints.steps() == [1]


def test_the_mean_of_the_last_n_is_of_whole_ones(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path, every=1, keep=-1)
    seen: list[Tensor] = []
    loop.on_step(lambda loop: seen.append(loop.trainer.params.w1.detach().clone()), priority=60)
    loop.run_steps(DATA, 4)
    damage(tmp_path / "step-00000003")
    mean = checkpoints.mean(mlp(), n=2)

    torch.testing.assert_close(mean.w1, (seen[1].double() + seen[3].double()).div(2).float())
    assert torch.equal(checkpoints.mean(mlp(), n=1).w1, seen[3])
    with pytest.raises(CheckpointError, match="has 3 whole checkpoints, and the mean of 4 was asked for"):
        checkpoints.mean(mlp(), n=4)
    with pytest.raises(CheckpointError, match="do not fit"):
        checkpoints.mean(MLP.init(pixels=6, hidden=9, classes=3))


def test_a_second_owner_in_this_process_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path)
    with pytest.raises(RunLocked, match=rf"in use by this process \(pid {os.getpid()}\)"):
        Checkpoints(tmp_path)
    first.close()
    Checkpoints(tmp_path).close()


def test_a_run_that_cannot_be_saved_ends_or_goes_on_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    loop, _ = attached(tmp_path / "a", every=2)
    other, _ = attached(tmp_path / "b", every=2, on_failure="warn")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step-00000002 cannot be written: No space left on device") as caught:
        loop.run_steps(DATA, 4)
    assert caught.value.__notes__[0] == "in the listener Checkpoints after step 2"
    with pytest.warns(UserWarning, match="training goes on without this checkpoint: .*No space left on device"):
        other.run_steps(DATA, 3)

    assert other.step == 3
    assert list((tmp_path / "a").glob("*step*")) == []


def test_an_error_in_a_hook_or_the_data_saves_the_last_whole_step(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path)

    def data() -> Any:
        yield from DATA[:2]
        raise OSError("a broken cable")

    with pytest.raises(OSError, match="a broken cable") as caught:
        loop.run_steps(data(), 5)
    assert caught.value.__notes__ == [
        "in the data, at batch 2 of epoch 0 (step 3)",
        f"the run up to here is saved as {tmp_path / 'step-00000002'}",
    ]
    whole, resumed = make(), make(seed=3)
    checkpoints.resume(resumed)
    resumed.run_steps(DATA, 4)
    whole.run_steps(DATA, 4)
    assert torch.equal(whole.trainer.params.w1, resumed.trainer.params.w1)


def test_saving_changes_no_training(tmp_path: Path) -> None:
    loop, _ = attached(tmp_path, every=1)
    other = make()
    torch.manual_seed(0)
    loop.run_steps(DATA, 4)
    torch.manual_seed(0)
    other.run_steps(DATA, 4)

    assert torch.equal(loop.trainer.params.w1, other.trainer.params.w1)
    assert torch.equal(loop.state_dict()["generators"]["torch"], other.state_dict()["generators"]["torch"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; it is a whole number of at least 1"),
        ({"keep": 0}, "keep (-1 keeps all) is 0; it is a whole number of at least 1"),
        ({"mode": "least"}, "mode is 'least'; it is 'min' or 'max'"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        Checkpoints(tmp_path, **options)

    assert str(caught.value) == message


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_data_comes_back_as_it_was(tree: Any) -> None:
    data, tensors = split(tree)

    back = join(from_json(to_json(data, in_order=True)), tensors)
    assert back == tree
    assert repr(back) == repr(tree)  # the order of keys too
    with pytest.raises(CheckpointError, match="count has more than 400 digits and cannot be saved"):
        split({"count": 10**400})


def test_tensors_and_odd_numbers_come_back_as_they_were() -> None:
    shared = torch.arange(4.0)
    tree = {"a": shared, "b": [shared, shared[::2]], 3: (math.inf, {"$x": -math.inf}),
            "c": torch.tensor(True), "d": torch.zeros(0, 3, dtype=torch.bfloat16)}  # fmt: skip
    data, tensors = split(tree)
    back = join(from_json(to_json(data)), tensors)

    assert back[3] == (math.inf, {"$x": -math.inf})
    assert torch.equal(back["b"][1], shared[::2])
    assert (back["c"].dtype, back["d"].dtype, back["d"].shape) == (torch.bool, torch.bfloat16, (0, 3))
    with pytest.raises(CheckpointError, match=r"schedule\.0 is a function: a checkpoint takes numbers"):
        split({"schedule": [make]})


def test_generators_are_put_back_where_they_were() -> None:
    import random

    import numpy

    def draw() -> list[float]:
        return [torch.rand(()).item(), random.random(), float(numpy.random.rand())]

    states = generator_states()
    first = draw()
    data, tensors = split(states)
    set_generator_states(join(from_json(to_json(data)), tensors))
    assert draw() == first

    with generators_kept():
        inside = draw()
    assert draw() == inside
