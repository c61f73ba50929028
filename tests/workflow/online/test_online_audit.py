"""The audit log: whole chains, broken ones, and lines that a crash tore. Versions: verified before they count."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from shaped.errors import CheckpointCorrupt, CheckpointError, RunLocked
from shaped.workflow.online import AuditLog, Feedback, Versions, verify_log
from shaped.workflow.online import versions as versions


def three(path: Path) -> AuditLog:
    log = AuditLog(path)
    for i in range(3):
        log.append("step", i=i)
    return log


def test_a_log_is_gone_on_with_and_its_chain_holds(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    head = three(path).head
    again = AuditLog(path)
    before = again.head
    again.append("more", words="ü", number=0.1)

    assert before == head
    assert verify_log(path) == 4
    assert [(e["n"], e["event"], e["data"]) for e in again] == [
        (0, "step", {"i": 0}), (1, "step", {"i": 1}), (2, "step", {"i": 2}), (3, "more", {"words": "ü", "number": 0.1}),
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["changed", "taken out", "inserted", "swapped"])
def test_a_line_that_is_changed_inserted_or_taken_out_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    three(path)
    a, b, c = path.read_bytes().splitlines(keepends=True)
    lines = {
        "changed": [a, b.replace(b'"i":1', b'"i":7'), c],
        "taken out": [a, c],
        "inserted": [a, a, b, c],
        "swapped": [a, c, b],
    }[damage]
    path.write_bytes(b"".join(lines))
    with pytest.raises(CheckpointCorrupt, match="line 2: it is not what was written there"):
        verify_log(path)
    with pytest.raises(CheckpointCorrupt, match="line 2"):
        AuditLog(path)


def test_a_line_that_a_crash_tore_is_cut_off_and_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    three(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n":3,"ev')
    again = AuditLog(path)

    assert path.read_bytes().startswith(whole)
    assert [(e["event"], e["data"]) for e in again][-1] == ("recovered", {"bytes": 10})
    assert verify_log(path) == 4


@pytest.mark.parametrize(
    "content",
    [bytes(range(11, 256)) * 9, b"one\ntwo, without a newline", b'{"a": 1}', b'{"data":{},"ev', b"{", b"\x00" * 30],
)
@pytest.mark.parametrize("kind", [AuditLog, Feedback])
def test_a_file_that_is_no_log_is_refused_and_stays_as_it_was(kind: Any, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="line 1: it is not what was written there"):
        kind(path)

    assert path.read_bytes() == content


@pytest.mark.parametrize("tail", [b"my own note", b'{"a": 1}'])
def test_a_rest_that_no_crash_tore_is_not_cut_off(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    three(path)
    content = path.read_bytes() + tail
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="line 4"):
        AuditLog(path)

    assert path.read_bytes() == content


def test_feedback_changes_nothing_in_the_torn_log_of_another(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    three(path)
    content = path.read_bytes() + b'{"data":{"i"'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has the event 'step', so it is another log"):
        Feedback(path)

    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_log_that_is_no_regular_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "audit.jsonl", tmp_path / "other"
    three(other)
    content = other.read_bytes()
    {"link": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(CheckpointError, match=f"it is a {kind} and no regular file"):
        AuditLog(path)
    with pytest.raises(CheckpointError, match=f"it is a {kind} and no regular file"):
        verify_log(path)

    assert other.read_bytes() == content


def state(value: float) -> dict[str, Any]:
    return {"w": torch.full((3,), value), "step": int(value)}


def test_a_version_that_was_not_made_here_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "version-000001").mkdir()
    (tmp_path / "version-000001" / "mine.txt").touch()
    made = Versions(tmp_path, keep=1)
    for i in range(3):
        made.save(state(i), f"update {i}")

    assert made.numbers() == [1, 4]
    assert (tmp_path / "version-000001" / "mine.txt").exists()


def test_versions_are_numbered_kept_and_read_back(tmp_path: Path) -> None:
    made = Versions(tmp_path, keep=2)
    numbers = [made.save(state(i), f"update {i}").number for i in range(4)]
    newest = made.newest()

    assert numbers == [1, 2, 3, 4]
    assert made.numbers() == [3, 4]
    assert newest is not None
    assert (newest.number, newest.reason, newest.state["w"].tolist()) == (4, "update 3", [3.0, 3.0, 3.0])
    assert repr(newest) == "Version(4, 'update 3')"


def test_a_corrupt_version_is_set_aside_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    made = Versions(tmp_path)
    for i in range(3):
        made.save(state(i), "x")
    file = tmp_path / "version-000003" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="set aside as corrupt-version-000003"):
        found = made.newest()

    assert found is not None
    assert found.number == 2
    assert made.save(state(9), "x").number == 4


def test_where_no_version_is_whole_that_is_an_error(tmp_path: Path) -> None:
    made = Versions(tmp_path)
    none = made.newest()
    made.save(state(0), "x")
    (tmp_path / "version-000001" / "state.json").unlink()
    with pytest.raises(CheckpointCorrupt, match=r"no version in .* is whole"), pytest.warns(match="set aside"):
        made.newest()

    assert none is None


def test_a_version_that_does_not_read_back_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Versions(tmp_path)
    made.save(state(0), "x")

    def torn(path: Path) -> Any:
        raise CheckpointCorrupt(f"{path}: its checksum does not match")

    monkeypatch.setattr(versions, "read_checkpoint", torn)
    with pytest.raises(CheckpointError, match="its checksum does not match"):
        made.save(state(1), "y")

    assert made.numbers() == [1]


def test_a_second_owner_is_refused_and_remains_of_a_killed_one_are_removed(tmp_path: Path) -> None:
    first = Versions(tmp_path)
    with pytest.raises(RunLocked):
        Versions(tmp_path)
    first.close()
    os.mkdir(tmp_path / ".tmp-versions-version-000001-abcd")
    Versions(tmp_path).close()

    assert not list(tmp_path.glob(".tmp*"))
    with pytest.raises(ValueError, match="keep is 0"):
        Versions(tmp_path, keep=0)
