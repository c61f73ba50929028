"""A folder of kept programs: what the next process finds there, and what is a miss."""

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shaped import ScalarTrainer
from shaped.backends import DisagreementError, archive
from shaped.backends.kept import KeptProgram
from shaped.backends.packing import packed
from shaped.backends.surroundings import surroundings
from tests.backends.projects import CHANGES, HELPER, PROJECT, Project, X, wrong_numbers


@pytest.fixture
def shelf(project: Project, tmp_path: Path) -> Path:
    """A folder in which the project's program is."""
    folder = tmp_path / "kept"
    trainer = project.load(keep=folder)
    trainer.step(X, lr=0.1)

    assert [path.suffix for path in folder.iterdir()] == [".program"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    return folder


def again(project: Project, folder: Path | bool, **options: Any) -> ScalarTrainer:
    """A trainer as the next process makes it, after a step."""
    trainer = ScalarTrainer(project.module.loss, project.params(), backend="compiled", keep=folder, **options)
    trainer.step(X, lr=0.1)
    return trainer


@pytest.mark.usefixtures("nothing_is_proved")
def test_a_folder_gives_the_next_process_what_was_compiled(project: Project, shelf: Path) -> None:
    before = {path: path.read_bytes() for path in shelf.iterdir()}
    trainer = again(project, shelf)

    assert [e.how for e in trainer.executors] == ["kept"]
    assert torch.equal(trainer.params.w, project.after)  # type: ignore[attr-defined]
    assert {path: path.read_bytes() for path in shelf.iterdir()} == before


@pytest.mark.usefixtures("nothing_is_proved")
def test_true_is_the_folder_of_the_user(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_CACHE_DIR", str(tmp_path))
    project.load(keep=True).step(X, lr=0.1)

    assert [path.parent for path in tmp_path.rglob("*.program")] == [tmp_path / "programs"]
    assert [e.how for e in again(project, True).executors] == ["kept"]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("what", ["a helper", "a closure", "an attribute of an object", "a comment in its file"])
def test_a_folder_gives_nothing_to_a_program_that_was_changed(project: Project, shelf: Path, what: str) -> None:
    project.write(*CHANGES[what](PROJECT, HELPER))

    assert [e.how for e in again(project, shelf).executors] == ["python"]


@pytest.mark.usefixtures("interpreted")
def test_a_folder_gives_nothing_to_other_options_or_surroundings(
    project: Project, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [e.how for e in again(project, shelf, max_norm=1.0).executors] == ["python"]

    monkeypatch.setattr("torch.version.git_version", "0")

    assert [e.how for e in again(project, shelf).executors] == ["python"]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(file.read_bytes().replace(b"about.json", b"about.jsom")),
        lambda file: file.chmod(0o666),
        lambda file: (file.unlink(), file.symlink_to(__file__)),
        lambda file: (file.unlink(), file.mkdir()),
    ],
)
def test_a_damaged_program_of_a_folder_is_a_miss_that_is_said(
    project: Project, shelf: Path, damage: Callable[[Path], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    (file,) = shelf.iterdir()
    damage(file)
    trainer = again(project, shelf)
    said = [line for line in capfd.readouterr().err.splitlines() if str(file) in line]

    assert [e.how for e in trainer.executors] == ["python"]
    assert len(said) == 1
    assert said[0].startswith("shaped: the kept program `")
    assert said[0].endswith(": it is compiled anew")


@pytest.mark.usefixtures("nothing_is_proved")
def test_a_folder_that_cannot_be_written_is_no_error(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    trainer = project.load(keep=tmp_path / "file")
    trainer.step(X, lr=0.1)

    assert torch.equal(trainer.params.w, project.after)  # type: ignore[attr-defined]
    assert "shaped: nothing is kept for the next start: " in capfd.readouterr().err


def test_what_was_not_used_for_the_longest_is_removed_first(
    project: Project, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = shelf.iterdir()
    old, used, foreign = (shelf / name for name in (f"{'0' * 40}.program", f"{'1' * 40}.program", "mine.program"))
    left = shelf / f".tmp-01234567-{'2' * 40}.program"
    for path in (old, used, foreign, left):
        path.write_bytes(file.read_bytes())
    for path, age in ((old, 9000), (used, 1), (left, 8000)):
        os.utime(path, (time.time() - age,) * 2)
    monkeypatch.setattr("shaped.backends.shelf.LARGEST", int(2.5 * file.stat().st_size))
    trainer = project.load(keep=shelf)
    trainer.step(X, lr=0.1)

    assert {path.name for path in shelf.iterdir()} == {file.name, used.name, foreign.name}


@pytest.mark.usefixtures("interpreted")
def test_a_program_is_used_when_it_is_taken_up(project: Project, shelf: Path) -> None:
    (file,) = shelf.iterdir()
    os.utime(file, (1, 1))
    again(project, shelf)

    assert file.stat().st_mtime > 1e9


def test_two_processes_keep_one_program_whole(project: Project, shelf: Path) -> None:
    (file,) = shelf.iterdir()
    content = archive.read(file)
    writers = [threading.Thread(target=archive.write, args=(file, *content)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for _ in range(50):
        assert archive.read(file) == content

    for writer in writers:
        writer.join()

    assert [path.name for path in shelf.iterdir()] == [file.name]


@pytest.mark.slow
def test_a_program_of_a_folder_that_gives_other_numbers_is_not_taken_twice(project: Project, shelf: Path) -> None:
    (file,) = shelf.iterdir()
    archive.write(file, *wrong_numbers(file))
    with pytest.raises(DisagreementError):
        again(project, shelf)

    assert not file.exists()


def test_what_cannot_be_kept_in_a_folder_is_refused_or_said(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="keep is an empty text"):
        project.load(keep="")
    with pytest.raises(ValueError, match="with verify=False nothing is"):
        project.load(keep=tmp_path, verify=False)
    with pytest.raises(ValueError, match='not "auto"'):
        project.load(keep=tmp_path, static="auto")


@pytest.mark.usefixtures("interpreted")
def test_what_one_process_kept_is_kept_by_the_next_beside_its_own(project: Project, shelf: Path) -> None:
    (file,) = shelf.iterdir()
    about, members = archive.read(file)
    first = project.load(file)
    first.forward(X)
    first.step(X, lr=0.1)
    content = packed(first._program, list(first._shared.compiled.made())[1:], first._made_of)
    content.about["executors"][0]["mode"] = "another"
    content.take_along(KeptProgram(file, project.module.loss, project.params(), first._made_of[2]))

    assert [e["mode"] for e in content.about["executors"]] == ["another", *(e["mode"] for e in about["executors"])]
    assert content.about["cases"] == about["cases"]
    assert {*members} <= {*content.members}


def test_what_a_library_sets_when_it_is_imported_makes_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    before = surroundings()
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")  # scikit-learn, between the trainer and its first step
    with_sklearn = surroundings()
    monkeypatch.setenv("KMP_AFFINITY", "disabled")

    assert with_sklearn == before
    assert surroundings() != before
