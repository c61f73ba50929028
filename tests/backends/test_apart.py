"""Compiling in another process."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped import ScalarTrainer
from shaped.backends import apart, auto, compiled
from shaped.backends.executors import Lowered
from shaped.backends.inductor import Free, Prepared, prepare
from tests.models import batch, mlp, mlp_loss

ROOT = Path(__file__).parents[2]


class Elsewhere:
    """Stands for all other processes: what they have compiled, and how they end."""

    def __init__(self) -> None:
        self.jobs: list[FakeJob] = []
        self.kept: set[str] = set()
        self.ends = "compiled", ""

    def end(self) -> None:
        """Let all jobs come to their end."""
        for job in self.jobs:
            job.runs = False
            self.kept.add(job.what)


class FakePrepared:
    """A traced graph that runs operation by operation, as far as the other process is done with it."""

    bare = False

    def __init__(self, elsewhere: Elsewhere, real: Prepared) -> None:
        self._elsewhere, self._real = elsewhere, real

    def kept(self) -> Lowered | None:
        return self._real.compiled() if self._elsewhere.kept else None

    def compiled(self) -> Lowered:
        return self._real.compiled()


class FakeJob:
    """What another process is at."""

    def __init__(self, elsewhere: Elsewhere, prepared: FakePrepared, what: str) -> None:
        self.prepared, self.what, self.runs, self.started = prepared, what, True, time.monotonic()
        self._elsewhere = elsewhere
        elsewhere.jobs.append(self)

    def verdict(self) -> tuple[str, str]:
        return self._elsewhere.ends

    def stop(self) -> None:
        self.runs = False


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> Elsewhere:
    made = Elsewhere()
    monkeypatch.setattr(auto, "PATIENCE", 0.0)
    monkeypatch.setattr(auto, "_AGAIN", 0.0)
    monkeypatch.setattr(apart, "keeps", lambda: True)
    monkeypatch.setattr(apart, "Compilation", lambda prepared, what: FakeJob(made, prepared, what))
    monkeypatch.setattr(compiled, "prepare", lambda *given: FakePrepared(made, prepare(*given)))
    return made


@pytest.mark.parametrize("change", [0, 1, 4])
def test_a_run_of_auto_is_that_of_one_backend_up_to_rounding_wherever_it_changes_over(
    change: int, elsewhere: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, eager = ScalarTrainer(mlp_loss, mlp(), backend="auto"), ScalarTrainer(mlp_loss, mlp())
    names = []
    for step in range(6):
        if step == change:
            elsewhere.end()
            elsewhere.kept.add("all")
        losses = [t.adamw_step(*batch(seed=step), lr=0.01) for t in (trainer, eager)]
        names.append(trainer.backend)

        torch.testing.assert_close(*losses)
    assert names == ["eager"] * change + ["compiled"] * (6 - change)
    assert (trainer.steps, len(elsewhere.jobs)) == (6, 1 if change else 0)
    for mine, theirs in zip(trainer.params, eager.params, strict=True):
        torch.testing.assert_close(mine, theirs)
    said = capsys.readouterr().err
    assert said.count("in another process; steps are taken eagerly until it is done") == (1 if change else 0)
    assert said.count("steps are compiled from here on") == (1 if change else 0)


def test_a_run_shorter_than_compiling_is_worth_compiles_nothing(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto, "PATIENCE", 1e6)
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    for _ in range(3):
        trainer.adamw_step(*batch(), lr=0.01)

    assert (trainer.backend, elsewhere.jobs, capsys.readouterr().err) == ("eager", [], "")
    assert "eager: 0.0 s of passes; what takes 1000000 s is compiled" in str(trainer.executors)
    assert "backend='eager' by choice (0.0 s of passes" in repr(trainer)


@pytest.mark.parametrize("ends", [("refused", "no lowering"), ("failed", "ended with status -9")])
def test_an_error_of_the_process_that_compiles_leaves_the_run_eager_with_one_warning(
    ends: tuple[str, str], elsewhere: Elsewhere
) -> None:
    trainer, eager = ScalarTrainer(mlp_loss, mlp(), backend="auto"), ScalarTrainer(mlp_loss, mlp())
    trainer.adamw_step(*batch(), lr=0.01)
    elsewhere.ends = ends
    elsewhere.end()
    with pytest.warns(RuntimeWarning, match=f"goes on with the eager backend: .*{ends[1]}"):
        trainer.adamw_step(*batch(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.adamw_step(*batch(), lr=0.01)
    for _ in range(3):
        eager.adamw_step(*batch(), lr=0.01)

    assert (trainer.backend, trainer.steps) == ("eager", 3)
    assert all(map(torch.equal, trainer.params, eager.params))


def test_what_another_process_does_not_take_is_compiled_here(elsewhere: Elsewhere) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    trainer.adamw_step(*batch(), lr=0.01)
    elsewhere.ends = "apart", "did not take it: no operation my::own"
    elsewhere.end()
    trainer.adamw_step(*batch(), lr=0.01)

    assert trainer.backend == "compiled"


def test_another_size_is_stepped_at_once_while_the_first_is_compiled(elsewhere: Elsewhere) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    trainer.adamw_step(*batch(), lr=0.01)
    trainer.adamw_step(*batch(3), lr=0.01)

    assert (trainer.backend, trainer.steps, len(elsewhere.jobs)) == ("eager", 2, 1)


def test_what_is_compiled_beforehand_is_taken_from_the_first_step_on(elsewhere: Elsewhere) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    trainer.adamw_step(*batch(), lr=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "PATIENCE", 1e6)
        trainer.precompile(batch=5)
        trainer.adamw_step(*batch(), lr=0.01)

    assert trainer.backend == "compiled"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_copy_of_a_trainer_that_waits_for_a_compiled_step_waits_for_none(copied: Any, elsewhere: Elsewhere) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    trainer.adamw_step(*batch(), lr=0.01)
    other = copied(trainer)
    elsewhere.ends = "failed", "of the first trainer"
    elsewhere.end()
    other.adamw_step(*batch(), lr=0.01)

    assert (other.steps, trainer.steps) == (2, 1)
    assert elsewhere.jobs[0].what == "AdamW at pixels = 6, hidden = 8, classes = 3, batch = 5"


def test_a_forked_process_leaves_its_parents_alone(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
    trainer.adamw_step(*batch(), lr=0.01)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    trainer.adamw_step(*batch(), lr=0.01)

    assert [job.runs for job in elsewhere.jobs] == [True, True]


class Nothing:
    """A graph that no process makes anything of."""

    def pickled(self) -> bytes:
        return b""


@pytest.fixture
def job() -> Iterator[apart.Compilation]:
    made = apart.Compilation(Nothing(), "nothing")  # type: ignore[arg-type]
    yield made
    made.stop()


def test_a_process_that_dies_has_failed(job: apart.Compilation) -> None:
    os.killpg(job._process.pid, signal.SIGKILL)
    job._process.wait()

    assert job.verdict() == ("failed", "ended with status -9")


def test_a_trainer_that_goes_takes_the_process_along(job: apart.Compilation) -> None:
    process = job._process
    job._stop()

    assert process.returncode == -signal.SIGKILL


INTERRUPTED = """
import os, signal, sys
from shaped import ScalarTrainer
from shaped.backends import auto
from tests.models import batch, mlp, mlp_loss

auto.PATIENCE = 0.0
trainer = ScalarTrainer(mlp_loss, mlp(), backend="auto")
trainer.adamw_step(*batch(), lr=0.01)
print(*[job._process.pid for job in trainer._backend._apart._jobs.values()], flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_process_that_ends_takes_along_the_one_that_compiles(how: str, tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": paths, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run([sys.executable, script, how], env=environment, capture_output=True, text=True, check=False)
    (other,) = map(int, ended.stdout.split())
    for _ in range(600):  # it looks twice a second
        if not _runs(other):
            break
        time.sleep(0.1)

    assert ended.returncode == -getattr(signal, how)
    assert not _runs(other)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def summed(x: Tensor, y: Tensor) -> tuple[Tensor]:
    return ((x * y).sum(1).relu(),)


@pytest.mark.slow
@pytest.mark.parametrize("free", [None, Free({"rows": 4}, lambda sizes: [[sizes["rows"], 3]])], ids=["one", "all"])
def test_what_another_process_has_compiled_is_found_and_right(free: Free | None) -> None:
    state, x = torch.randn(3), torch.randn(4, 3)
    prepared = prepare(lambda y, x: summed(x, y), [state], [x], free)
    job = apart.Compilation(prepared, "a sum")
    job._process.wait()
    verdict = job.verdict()
    found = prepared.kept()

    assert verdict == ("compiled", "")
    assert found is not None
    (result,) = found.run([*([4] if free else []), state, x])
    torch.testing.assert_close(result, summed(x, state)[0])
