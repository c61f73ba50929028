"""Checkpoints that several ranks write and read together; the ranks are threads here."""

import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shaped import CheckpointCorrupt, CheckpointError, Checkpoints, Loop, RunLocked
from shaped.checkpoint import read_checkpoint, together
from shaped.checkpoint.together import write_together
from shaped.ranks import ALONE, Peers, Piece, Placement
from tests.ranks.small import batches, loop_of
from tests.ranks.threads import good, on_ranks, rank_of_thread


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaped.checkpoint.folder.rank_here", rank_of_thread)


def job(peers: Peers, folder: Path, **options: Any) -> tuple[Loop, Checkpoints]:
    loop = loop_of(peers)
    return loop, loop.attach(Checkpoints(folder, **{"every": 2, **options}))


def run(peers: Peers, folder: Path, steps: int, **options: Any) -> tuple[Tensor, str, list[int]]:
    loop, checkpoints = job(peers, folder, **options)
    said = checkpoints.resume(loop)
    loop.run_to_step(batches(), steps)
    checkpoints.close()
    return loop.trainer.params["w"].detach().clone(), str(said), sorted(checkpoints._own)


@given(st.integers(1, 5), st.lists(st.integers(0, 7), max_size=3), st.sampled_from([torch.float32, torch.complex64]))
def test_pieces_of_any_tensor_on_any_number_of_ranks_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, shape: list[int], dtype: torch.dtype
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    whole, layout = torch.randn(shape, dtype=dtype), Placement(tuple(shape), ranks)

    def work(peers: Peers) -> Path:
        start, stop = layout.bounds(peers.rank)
        state = {"a": Piece(whole.reshape(-1)[start:stop], tuple(shape), start), "trainer": [whole, torch.tensor(3)]}
        return write_together(folder, "step", {**state, "rank": peers.rank}, {}, peers)

    good(on_ranks(ranks, work))
    state = read_checkpoint(folder / "step").state

    assert torch.equal(state["a"], whole)
    assert torch.equal(state["trainer"][0], whole)
    assert (state["trainer"][1], state["rank"]) == (3, 0)


def test_a_run_goes_on_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    alone, _, _ = run(ALONE, tmp_path / "alone", 15)
    for at, (ranks, steps) in enumerate(((2, 4), (3, 7), (1, 10), (4, 15))):
        found = good(on_ranks(ranks, partial(run, folder=tmp_path / "run", steps=steps)))

        assert all(torch.equal(one[0], found[0][0]) for one in found)
        assert all(one[1:] == found[0][1:] for one in found)
        assert ("goes on from" in found[0][1]) == (at > 0)
    torch.testing.assert_close(found[0][0], alone, rtol=1e-12, atol=0)  # sums in another order


def test_what_ranks_wrote_is_one_file_of_each_and_a_manifest(tmp_path: Path) -> None:
    good(on_ranks(3, lambda p: run(p, tmp_path, 2)))
    manifest = json.loads((tmp_path / "step-00000002" / "manifest.json").read_text())

    assert sorted(os.listdir(tmp_path / "step-00000002")) == ["manifest.json", "state.json"] + [
        f"tensors-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert (manifest["format"], manifest["ranks"], manifest["step"]) == (2, 3, 2)
    assert manifest["tensors"]["trainer.params.w"] == ["float64", [3], [[0, 0, 1], [1, 1, 2], [2, 2, 3]]]


@pytest.mark.parametrize("file", ["tensors-00002-of-00002.safetensors", "state.json", "manifest.json"])
def test_a_corrupt_newest_is_set_aside_by_all_and_an_older_one_taken(tmp_path: Path, file: str) -> None:
    good(on_ranks(2, lambda p: run(p, tmp_path, 4)))
    path = tmp_path / "step-00000004" / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=file):
        read_checkpoint(tmp_path / "step-00000004")
    with pytest.warns(UserWarning, match="corrupt-step-00000004"):
        found = good(on_ranks(2, lambda p: run(p, tmp_path, 4)))

    before, corrupt = tmp_path / "step-00000002", "corrupt-step-00000004"
    assert [said for _, said, _ in found] == [f"goes on from {before} at step 2; set aside as corrupt: {corrupt}"] * 2


def test_a_full_disk_on_one_rank_is_the_same_error_on_all_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank cannot write at step 4; with on_failure="warn" the run goes on, and saves again."""
    real, full = together._write_part, [True]

    def write(place: Path, tensors: Any, peers: Peers) -> Any:
        if full[0] and peers.rank == 1 and "step-00000004" in place.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(place, tensors, peers)

    monkeypatch.setattr(together, "_write_part", write)
    found = on_ranks(3, lambda p: run(p, tmp_path / "a", 6))
    with pytest.warns(UserWarning, match="training goes on without this checkpoint"):
        warned = good(on_ranks(3, lambda p: run(p, tmp_path / "b", 6, on_failure="warn")))

    said = f"{tmp_path / 'a' / 'step-00000004'} cannot be written: No space left on device"
    assert [str(error).splitlines()[0] for error in found] == [f"on rank 1: {said}", said, f"on rank 1: {said}"]
    assert all(type(error) is CheckpointError for error in found)
    assert sorted(p.name for p in (tmp_path / "a").glob("*step-*")) == ["step-00000002"]
    assert [steps for _, _, steps in warned] == [[2, 6]] * 3


def test_ranks_that_have_drifted_apart_are_not_saved(tmp_path: Path) -> None:
    def work(peers: Peers) -> Path:
        state = {"trainer": {"w": torch.full((3,), float(peers.rank // 2))}, "other": torch.tensor(peers.rank)}
        return write_together(tmp_path, "step", state, {}, peers)

    found = on_ranks(3, work)

    assert [type(error) for error in found[:1]] == [CheckpointError]
    assert "ranks 0 and 2 differ in `trainer.w`, which should be the same on all" in str(found[0])
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_of_another_model_is_an_error_on_all_and_none_has_loaded_it(tmp_path: Path) -> None:
    good(on_ranks(2, lambda p: run(p, tmp_path, 2)))

    def work(peers: Peers) -> tuple[str, Tensor]:
        loop, checkpoints = job(peers, tmp_path)
        if peers.rank == 1:
            loop.keep("mine", loop.average)
        try:
            checkpoints.resume(loop)
        except CheckpointError as error:
            mine = slice(*Placement((3,), 2).bounds(peers.rank))  # what a piece puts back
            return str(error), loop.trainer.params["w"].detach()[mine].clone()
        finally:
            checkpoints.close()
        return "", torch.zeros(0)

    found = good(on_ranks(2, work))

    assert all("is of another run" in said and "`mine` is kept here and not there" in said for said, _ in found)
    assert all(not w.any() for _, w in found)


def test_the_last_and_the_best_are_kept_alike_and_rank_0_removes(tmp_path: Path) -> None:
    def work(peers: Peers) -> tuple[list[int], int | None]:
        loop, checkpoints = job(peers, tmp_path, every=1, keep=2, best="validation/loss", mode="max")
        loop.on_step(lambda loop: loop.evaluate(batches()), name="validate")
        loop.run_steps(batches(), 5)
        checkpoints.close()
        return sorted(checkpoints._own), checkpoints.best_step

    found = good(on_ranks(2, work))

    assert found == [([1, 4, 5], 1)] * 2
    assert Checkpoints(tmp_path).steps() == [1, 4, 5]


def test_rank_0_holds_the_folder_and_a_rank_that_runs_by_itself_must_too(tmp_path: Path) -> None:
    def work(peers: Peers) -> None:
        loop, checkpoints = job(peers, tmp_path)
        checkpoints.resume(loop)

        alone = loop_of(ALONE)
        if peers.rank == 1:
            with pytest.raises(RunLocked):
                checkpoints.save(alone)
        peers.meet("the end")
        checkpoints.close()

    good(on_ranks(2, work))


def test_generators_that_differ_by_rank_come_back_to_their_ranks(tmp_path: Path) -> None:
    """Threads share the global generators, so the states are told by hand."""

    def work(peers: Peers) -> Any:
        state = {"trainer": {}, "generators": {"torch": torch.tensor([peers.rank])}}
        write_together(tmp_path, "step", state, {}, peers)

    good(on_ranks(2, work))
    state = read_checkpoint(tmp_path / "step").state

    assert [int(states["torch"]) for states in state["generators of ranks"]] == [0, 1]
    assert int(state["generators"]["torch"]) == 0
