"""What a run compiled, beside its checkpoints."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shaped import Checkpoints, Loop, ScalarTrainer
from shaped.optim import AdamW
from tests.backends.projects import CHANGES, HELPER, PROJECT, Project, X

DATA = [(X,), (X + 1,), (X - 1,), (X * 2,)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("project")
        patch.syspath_prepend(str(folder))
        yield Project(folder)
        for name in ("kept_helper", "kept_project"):
            sys.modules.pop(name, None)


@pytest.fixture
def project(written: Project) -> Project:
    written.write(PROJECT, HELPER)
    return written


def job(project: Project, folder: Path) -> tuple[Loop, Checkpoints]:
    params = project.params()
    trainer = ScalarTrainer(project.module.loss, params, backend="compiled", optimizer=AdamW(params, lr=0.1))
    loop = Loop(trainer)
    return loop, loop.attach(Checkpoints(folder, every=2))


@pytest.fixture(scope="module")
def compiled(written: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    loop, checkpoints = job(written, folder)
    loop.run_to_step(DATA, 2)
    checkpoints.close()

    assert [path.suffix for path in (folder / "programs").iterdir()] == [".program"]

    return folder


@pytest.fixture
def run(compiled: Path, tmp_path: Path) -> Path:
    """The folder of a run that was left in its middle."""
    return Path(shutil.copytree(compiled, tmp_path / "run"))


def resumed(project: Project, run: Path) -> Loop:
    loop, checkpoints = job(project, run)
    checkpoints.resume(loop)
    loop.run_to_step(DATA, 4)
    checkpoints.close()
    return loop


def test_a_resumed_run_compiles_nothing_again(
    project: Project, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, checkpoints = job(project, tmp_path / "whole")
    whole.run_to_step(DATA, 4)
    checkpoints.close()
    monkeypatch.setattr("shaped.backends.compiled.lower", None)
    again = resumed(project, run)

    assert [(e.how, e.held) for e in again.trainer.executors] == [("kept", True)]
    assert torch.equal(again.trainer.params.w, whole.trainer.params.w)  # type: ignore[attr-defined]


def test_a_trainer_that_keeps_in_the_folder_of_its_run_is_not_proved_anew(
    project: Project, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shaped.backends.program.prove_setting", None)
    given: dict[str, Any] = {"backend": "compiled", "keep": run / "programs"}
    trainer = ScalarTrainer(project.module.loss, project.params(), **given)

    assert trainer._program.kept is not None


SPOILED: dict[str, Callable[[Project, Path], Any]] = {
    "damaged": lambda project, file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda project, file: file.write_bytes(b""),
    "a folder": lambda project, file: [step() for step in (file.unlink, file.mkdir)],
    "a program that was changed": lambda project, file: project.write(*CHANGES["a helper"](PROJECT, HELPER)),
    "a program with another value": lambda project, file: setattr(project.module.CONFIG, "gain", 3.0),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("what", SPOILED)
def test_a_program_of_a_run_that_does_not_fit_is_a_miss_that_is_said_once(
    project: Project, run: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (file,) = (run / "programs").iterdir()
    SPOILED[what](project, file)
    loop = resumed(project, run)
    said = [line for line in capfd.readouterr().err.splitlines() if "anew" in line]

    assert [e.how for e in loop.trainer.executors] == ["python"]
    assert loop.step == 4
    assert len(said) == 1
    assert "program" in said[0]


@pytest.mark.usefixtures("interpreted")
def test_a_value_that_changed_between_trainer_and_resume_is_a_miss(project: Project, run: Path) -> None:
    project.module.CONFIG.gain = 3.0
    loop, checkpoints = job(project, run)
    project.module.CONFIG.gain = 2.0
    checkpoints.resume(loop)
    project.module.CONFIG.gain = 3.0
    loop.run_to_step(DATA, 4)
    checkpoints.close()

    assert [e.how for e in loop.trainer.executors] == ["python"]


@pytest.mark.usefixtures("interpreted")
def test_a_run_whose_programs_cannot_be_written_is_saved(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "programs").write_text("")
    loop, checkpoints = job(project, tmp_path)
    loop.run_to_step(DATA, 4)
    checkpoints.close()

    assert checkpoints.steps() == [2, 4]
