"""`shaped check --watch`."""

from pathlib import Path

from shaped.check.watch import watch


def test_a_check_runs_again_after_each_change_of_a_file_and_not_without_one(tmp_path: Path) -> None:
    seen: list[str] = []
    file, hidden = tmp_path / "model.py", tmp_path / ".venv" / "other.py"
    hidden.parent.mkdir()
    file.write_text("a")

    def check() -> None:
        seen.append(file.read_text() if file.exists() else "gone")
        hidden.write_text(str(len(seen)))  # a file that is not looked at
        match len(seen):
            case 1:
                file.write_text("a longer text")
            case 2:
                (tmp_path / "pyproject.toml").write_text("[tool.shaped]")
            case 3:
                file.unlink()

    watch(check, [tmp_path], rounds=4, pause=0.001)

    assert seen == ["a", "a longer text", "a longer text", "gone"]


def test_a_change_while_a_check_runs_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("a")
    rounds: list[int] = []

    def check() -> None:
        rounds.append(len(rounds))
        file.write_text("a" * (2 + len(rounds)))

    watch(check, [tmp_path], rounds=2, pause=0.001)

    assert len(rounds) == 2
