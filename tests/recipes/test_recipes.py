"""Recipes: found by name or file, they train, report and leave a picture."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from shaped import ShapedError
from shaped.recipes import RECIPES, Outcome, Settings, find, load_file

KNOWN = ", ".join(RECIPES)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_digits_are_learned_in_a_few_epochs_and_a_picture_is_written(
    optimizer: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings("eager", optimizer, epochs=6, seed=seed, out=tmp_path / "new" / "folder")  # type: ignore[arg-type]
    outcome = find("digits")(settings)
    printed = capsys.readouterr().out

    # 96 to 98 % over these; a network that learns nothing has 10 %.
    assert outcome.figures["accuracy"] > 0.93
    folder = tmp_path / "new" / "folder" / f"digits-eager-{optimizer}-seed{seed}"
    assert outcome.files == (folder / "curves.png", folder / "log.jsonl")
    assert outcome.files[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert printed.index("proved for all batch, pixels, hidden, classes >= 1") < printed.index("test accuracy")


def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    first, second, other = (
        find("digits")(Settings("eager", epochs=1, seed=seed, out=tmp_path)).figures["loss"] for seed in (0, 0, 1)
    )

    assert first == second != other


@pytest.mark.slow
def test_the_compiled_digits_reach_97_percent_and_the_next_start_is_compiled_from_its_first_step_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = find("digits")(Settings("compiled", out=tmp_path))
    capsys.readouterr()
    find("digits")(Settings(epochs=1, out=tmp_path))

    assert first.figures["accuracy"] >= 0.97
    assert re.findall(r"(?m)^ +(\w+) +kept", capsys.readouterr().out) == ["AdamW", "forward"]


@pytest.mark.parametrize(("how", "kept"), [({}, True), ({"fresh": True}, False), ({"device": "cuda"}, False)])
def test_what_a_job_compiles_is_kept_on_a_cpu_unless_all_is_to_be_fresh(how: dict[str, Any], kept: bool) -> None:
    assert Settings(**how).keep is kept


def test_every_recipe_is_there() -> None:
    assert all(callable(find(name)) for name in RECIPES)


def test_runs_with_other_settings_write_to_other_folders() -> None:
    settings = Settings("eager", "sgd", epochs=3, seed=1, out=Path("here"))

    assert settings.folder("job") == Path("here/job-eager-sgd-seed1")
    assert settings.folder("job", by_epochs=True) == Path("here/job-eager-sgd-seed1-epochs3")
    assert Settings().folder("job", by_epochs=True) == Path("runs/job-auto-adamw-seed0")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adamax"}, "optimizer is 'adamax'; it is one of 'sgd', 'adam', 'adamw', 'lion', 'muon'"),
        ({"backend": "fast"}, "backend is 'fast'; it is one of 'eager', 'compiled', 'auto'"),
    ],
)
def test_an_unknown_optimizer_or_backend_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Settings(**wrong)

    assert str(caught.value) == message


def test_a_folder_that_cannot_be_made_is_an_error_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        find("digits")(Settings("eager", out=tmp_path / "file"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", f"no recipe `digts`; did you mean `digits`? there are {KNOWN}, or a FILE.py of your own"),
        ("zzz", f"no recipe `zzz`: there are {KNOWN}, or a FILE.py of your own"),
        ("nowhere.py", "no file nowhere.py"),
    ],
)
def test_an_unknown_recipe_is_refused_with_those_there_are(name: str, message: str) -> None:
    with pytest.raises(ShapedError) as caught:
        find(name)

    assert str(caught.value) == message


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_train_of_a_file_is_a_job_and_imports_its_neighbours(script_folder: Path) -> None:
    write(script_folder, "neighbour_of_job.py", "FIGURE = 2.0\n")
    job = write(
        script_folder,
        "my_job.py",
        "from neighbour_of_job import FIGURE\nfrom shaped.recipes import Outcome\n"
        "def train(settings): return Outcome({'figure': FIGURE})\n",
    )

    assert find(str(job))(Settings()) == Outcome({"figure": 2.0})


def test_a_file_never_takes_the_place_of_a_module_in_use(script_folder: Path) -> None:
    import json

    module = load_file(write(script_folder, "json.py", "mine = True\n"))

    assert module.mine
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = nothing\n", "Line 2: NameError: name 'nothing' is not defined"),
        ("def f(:\n", "Line 1: SyntaxError: invalid syntax (broken_job.py, line 1)"),
        ("import sys\n\nsys.exit(3)\n", "Line 3: SystemExit: 3"),
        ("import nothing_at_all\n", "Line 1: ModuleNotFoundError: No module named 'nothing_at_all'"),
    ],
)
def test_a_file_that_fails_names_its_line_and_leaves_no_module(text: str, message: str, script_folder: Path) -> None:
    path = write(script_folder, "broken_job.py", text)
    with pytest.raises(ShapedError) as caught:
        load_file(path)

    assert str(caught.value) == f"{path} cannot be imported. {message}"
    assert "broken_job" not in sys.modules


def test_what_is_no_job_is_refused(script_folder: Path) -> None:
    empty, text = write(script_folder, "empty_job.py", ""), write(script_folder, "notes.md", "")
    with pytest.raises(ShapedError) as no_train:
        find(str(empty))
    with pytest.raises(ShapedError) as no_python:
        load_file(text)

    assert str(no_train.value) == f"{empty} has no function `train(settings: shaped.recipes.Settings)`"
    assert str(no_python.value) == f"{text} is not a Python file"
