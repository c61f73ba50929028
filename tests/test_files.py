"""Files: whole or as they were, flushed, regular, and several that change as one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shaped import files
from shaped.loop import JsonLines
from shaped.workflow import ModelProvider
from tests.models import mlp, mlp_loss

NAMES = ("tensors", "config")
CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "link", "unlink", "rmdir")


def killed_at(number: int, work: Callable[[], Any]) -> bool:
    """Do work in a child that is killed before its system call of this number; whether it came so far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(real: Any) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_file_is_old_or_new_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    path, number, seen = tmp_path / "file", 1, set()
    files.replace(path, b"old")
    while killed_at(number, lambda: files.replace(path, b"new")):
        seen.add(path.read_bytes())
        files.replace(path, b"old")
        number += 1

    assert seen == {b"old", b"new"}
    assert number > 5


def test_files_that_belong_together_are_of_one_save_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    old, new = ({name: f"{name} {age}".encode() for name in NAMES} for age in ("old", "new"))
    number, seen = 1, set()
    files.replace_together(tmp_path, old)
    while killed_at(number, lambda: files.replace_together(tmp_path, new)):
        apart = {name: (tmp_path / name).read_bytes() for name in NAMES if (tmp_path / name).exists()}
        read = {name: files.together(tmp_path, name).read_bytes() for name in NAMES}
        files.settle(tmp_path, NAMES)
        settled = {name: (tmp_path / name).read_bytes() for name in NAMES}

        assert read == settled in (old, new)
        assert apart in (old, new) or "config" not in apart
        seen.add(read["config"])
        files.replace_together(tmp_path, old)
        number += 1

    assert seen == {b"config old", b"config new"}
    assert number > 10


def test_a_file_and_its_folder_are_flushed_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def renamed(a: Any, b: Any) -> None:
        done.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    ModelProvider(type(mlp()), mlp_loss).save(mlp(), tmp_path / "model.safetensors")

    assert [step for i, step in enumerate(done) if step != "file" or done[i - 1] != "file"] == [
        "file",
        "rename",
        "folder",
    ]


def test_a_file_that_cannot_be_written_leaves_what_was_there_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.replace_by(path, fail)

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_there_is_not_created_again(tmp_path: Path) -> None:
    files.create(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "file", b"second")

    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_APPEND])
def test_links_pipes_folders_and_devices_are_refused_and_not_waited_for(flags: int, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"as it was")
    (tmp_path / "a link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "a pipe")
    (tmp_path / "a folder").mkdir()
    for name in ("a link", "a pipe", "a folder"):
        with pytest.raises(files.NotRegular, match=name):
            files.open_regular(tmp_path / name, flags)
    with pytest.raises(files.NotRegular, match="a device"):
        files.open_regular(Path(os.devnull), flags)

    assert (tmp_path / "target").read_bytes() == b"as it was"


def test_a_log_goes_on_after_a_line_that_a_kill_tore(tmp_path: Path) -> None:
    from tests.loop.small_loops import LIST, make

    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    loop = make()
    loop.attach(JsonLines(path, every=3))
    loop.run_steps(LIST, 3)
    lines = path.read_text().splitlines()

    assert lines[1] == '{"step": 2, "lo'
    assert lines[2].startswith('{"step": 3,')


def test_a_journal_never_stands_there_without_its_first_line_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    path, number = tmp_path / "journal", 1
    while killed_at(number, lambda: files.append_line(path, b"one\n", first=b"head\n")):
        assert not path.exists() or path.read_bytes() == b"head\none\n"
        path.unlink(missing_ok=True)
        number += 1
    files.append_line(path, b"two\n", first=b"head\n")

    assert number > 4
    assert files.lines(path.read_bytes()) == ([b"head", b"one", b"two"], b"")
    assert files.lines(b"one\ntw") == ([b"one"], b"tw")


def test_a_journal_that_another_has_written_to_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    files.append_line(path, b"one\n", size=0)
    for size in (0, 3, 5):
        with pytest.raises(files.Changed):
            files.append_line(path, b"two\n", size=size)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(files.NotRegular):
        files.append_line(tmp_path / "link", b"two\n")

    assert path.read_bytes() == b"one\n"
