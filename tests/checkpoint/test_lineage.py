"""A run's folder has the past of one state, wherever a save that leaves others behind is killed."""

import json
import os
from pathlib import Path

import pytest

from shaped import CheckpointError, Checkpoints
from shaped.checkpoint.folder import RunFolder
from tests.checkpoint.test_checkpoints import DATA, attached
from tests.faults import saving
from tests.faults.runs import data, folder, make, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forked")


@pytest.mark.parametrize(("to", "at"), [(1, 2), (1, 4), (None, 5)])
def test_what_a_killed_save_left_behind_is_finished_by_the_next_start(to: int | None, at: int) -> None:
    loop = make()
    loop.run_steps(data(), 1)
    with folder() as place:
        checkpoints = saving.gone_back(place, loop, to, at)
        with saving.Calls() as calls:
            checkpoints.save(loop)
        checkpoints.close()
    moves = [i for i, (name, _) in enumerate(calls.seen) if name in ("rename", "replace")]
    outcomes = []
    for call in moves:  # `python -m tests.faults.harness --rows 2b` is killed before each call
        with folder() as place:
            checkpoints = saving.gone_back(place, loop, to, at)

            def save(checkpoints: Checkpoints = checkpoints, call: int = call) -> None:
                with saving.Calls(call + 1, saving._die):
                    checkpoints.save(loop)

            run(save)
            checkpoints.close()
            outcomes.append(saving.one_line(place, loop, to, at))

    assert len(moves) > 3
    assert all(outcomes)


def test_a_save_that_cannot_put_others_aside_says_so_and_the_next_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, checkpoints = attached(tmp_path, keep=-1)
    for _ in range(3):
        loop.run_steps(DATA, 1)
    checkpoints.resume(loop, step=1)
    real, broken = os.rename, True

    def rename(source: Path, target: Path) -> None:
        if broken and "superseded" in str(target):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    loop.step = 4
    with pytest.raises(
        CheckpointError, match="step-00000004 is written, and what it leaves behind cannot be put aside"
    ):
        checkpoints.save(loop)
    broken = False
    loop.step = 5
    checkpoints.save(loop)

    assert checkpoints.steps() == [1, 4, 5]
    assert {p.name for p in tmp_path.glob("superseded-*")} == {"superseded-step-00000002", "superseded-step-00000003"}


@pytest.mark.parametrize(
    "note",
    [
        b"{",
        b"[]",
        b'{"aside": [[1, "superseded-step-00000001"]], "step": 9, "token": "x"}',
        b'{"aside": [[1, "../elsewhere"]], "step": 1, "token": "x"}',
        b'{"aside": [[1]], "step": 1, "token": "x"}',
        b'{"aside": 3, "step": true, "token": "x"}',
    ],
)
def test_a_note_that_is_damaged_or_of_no_save_moves_nothing(tmp_path: Path, note: bytes) -> None:
    loop, checkpoints = attached(tmp_path / "run")
    loop.run_steps(DATA, 1)
    checkpoints.close()
    (tmp_path / "run" / ".behind.json").write_bytes(note)
    again = RunFolder(tmp_path / "run")

    assert again.steps() == [1]
    assert not (tmp_path / "run" / ".behind.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    again.close()


def test_the_best_that_a_reader_sees_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    loop, checkpoints = attached(tmp_path, every=1, keep=-1, best="loss")
    values = iter([3.0, 1.0, 2.0])
    loop.on_step(lambda loop: loop.record({"loss": next(values)}))
    loop.run_steps(DATA, 3)
    checkpoints.close()
    (tmp_path / "best.json").write_text(json.dumps({"figure": "loss", "step": 3, "value": 0.5}))  # of another past
    again = Checkpoints(tmp_path, best="loss")

    assert again.best_step == 2
    again.close()
