"""What a machine can run is asked once, and again where anything could have changed."""

from pathlib import Path
from typing import Any

import pytest
from torch._inductor.cpu_vec_isa import VecISA

from shaped.backends import vectors


class Wide(VecISA):
    _arch_flags = "-mwide"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What Inductor is asked, with a folder and a processor of its own; it says yes but to `no`."""
    questions: list[str] = []

    def check_build(self: Any, code: str) -> bool:
        questions.append(code)
        return code != "no"

    monkeypatch.setattr(VecISA, "check_build", check_build)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(vectors, "_PROCESSOR", tmp_path / "cpuinfo")
    processor(tmp_path, "wide")
    return questions


def processor(folder: Path, flags: str) -> None:
    (folder / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\ncpu MHz : 2400\n\nprocessor : 1\n")


def ask(code: str = "yes") -> bool:
    with vectors.remembered():
        return Wide().check_build(code)


def test_a_yes_is_remembered_and_a_no_is_asked_again(asked):
    answers = [ask(), ask(), ask("no"), ask("no")]

    assert (answers, asked) == ([True, True, False, False], ["yes", "no", "no"])


@pytest.mark.parametrize("changed", ["processor", "code", "flags", "LD_LIBRARY_PATH", "folder"])
def test_a_change_of_anything_that_it_depends_on_asks_again(asked, changed, monkeypatch, tmp_path):
    ask()
    if changed == "processor":
        processor(tmp_path, "narrow")
    if changed == "flags":
        monkeypatch.setattr(Wide, "_arch_flags", "-mwider")
    if changed == "LD_LIBRARY_PATH":
        monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    if changed == "folder":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other"))
    ask("other" if changed == "code" else "yes")

    assert len(asked) == 2


def test_where_the_processor_is_unknown_it_is_asked_each_time(asked, tmp_path):
    (tmp_path / "cpuinfo").unlink()

    assert [ask(), ask()] == [True, True]
    assert len(asked) == 2


def test_a_folder_that_cannot_be_written_is_no_error(asked, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shaped").write_text("a file where the folder would be")

    assert [ask(), ask()] == [True, True]
    assert len(asked) == 2


def test_torchs_own_question_is_as_it_was_afterwards(asked):
    before = VecISA.check_build
    ask()

    assert VecISA.check_build is before
