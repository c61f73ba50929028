"""The command line: exit status 0 for done, 1 for refused with a message, 2 for wrong usage or no check."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from shaped import cli
from shaped.cli import EXTRAS, main
from shaped.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]

MODEL = """
from jaxtyping import Float
from torch import Tensor
from shaped import ParamList

class Line(ParamList):
    w: Float[Tensor, "features out"]

def loss(p: Line, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean()
"""
SCAN = """
def scan(x: Float[Tensor, "time dim"]) -> Float[Tensor, " dim"]:
    state = x[0]
    for t in range(x.shape[0]):
        state = state + x[t]
    return state
"""
WRONG = """
def transposed(p: Line, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch out"]:
    return x @ p.w.T

def forgotten(p: Line, x) -> Float[Tensor, ""]:
    return x.sum()

def no_result(p: Line, x: Float[Tensor, "batch features"]):
    return x

def raises(x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    raise RuntimeError("not today")
"""


@pytest.fixture
def model(script_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, the only one of its project; it is checked in processes that are forked from this one."""
    monkeypatch.chdir(script_folder)
    monkeypatch.setattr("shaped.check.children.may_fork", lambda: hasattr(os, "fork"))
    path = Path("checked_model.py")
    path.write_text(MODEL)
    return path


def test_check_prints_a_line_for_each_function(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text(MODEL + SCAN)
    status = main(["check", str(model), "--static", "time=5"])

    assert status == 0
    assert capsys.readouterr().out == (
        "proved      checked_model.py:9   loss  for all sizes\n"
        "proved      checked_model.py:12  scan  for all other sizes, at time = 5\n"
        "\n2 proved, 0 not\n"
    )


def test_check_prints_the_whole_statement_of_a_function_that_is_named(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["check", f"{model}:loss"])
    out = re.sub(r"\d+\.\d s", "0.0 s", capsys.readouterr().out)

    assert status == 0
    assert out.startswith("loss : Line, [batch, features] -> scalar")
    assert "conditions   none\n" in out
    assert out.endswith("\n\n1 proved, 0 not\n")


def test_check_prints_verdicts_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text(MODEL + WRONG)
    status = main(["check", "--json", str(model)])
    verdicts = json.loads(capsys.readouterr().out)["verdicts"]

    assert status == 1
    assert [(v["function"], v["status"], v["line"]) for v in verdicts[:2]] == [
        ("loss", "proved", 9),
        ("transposed", "refuted", 13),
    ]
    assert verdicts[1]["summary"] == "at checked_model.py:13: features = out"


def test_check_annotates_the_lines_where_github_runs_it(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    model.write_text(MODEL + WRONG)
    main(["check", f"{model}:transposed"])

    assert (
        "\n::error file=checked_model.py,line=13,title=refuted%3A transposed::ProofError: `transposed` is not "
        "well-shaped.%0A  checked_model.py:13   return x @ p.w.T%0A" in capsys.readouterr().out
    )


def test_check_prints_the_derivation_when_asked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--steps", str(model)]) == 0
    assert "checked_model.py:10" in capsys.readouterr().out


def test_check_reports_each_function_that_is_not_well_shaped(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text(MODEL + WRONG)
    status = main(["check", str(model)])
    out = capsys.readouterr().out

    assert status == 1
    assert "ProofError: `transposed` is not well-shaped.\n  checked_model.py:13   return x @ p.w.T\n" in out
    assert "Unprovable: `x` is read here, and it has no annotation.\n  checked_model.py:16   return x.sum()\n" in out
    assert "proved      checked_model.py:18  no_result   for all sizes\n" in out
    assert "RuntimeError: not today\n" in out
    assert out.endswith("2 proved, 3 not\n")


def test_check_takes_one_function_by_name(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text(MODEL + WRONG)

    assert main(["check", f"{model}:loss"]) == 0
    assert capsys.readouterr().out.endswith("1 proved, 0 not\n")
    assert main(["check", f"{model}:transposed"]) == 1
    assert capsys.readouterr().out.startswith("ProofError: `transposed` is not well-shaped.")


def test_check_takes_assumptions_and_static_names(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{model}:loss", "--assume", "features <= 64", "--static", "batch"]) == 0
    assert "features <= 64" in capsys.readouterr().out
    assert main(["check", f"{model}:loss", "--static", "bach"]) == 2
    assert "`bach` is no dimension of `loss`; did you mean `batch`?" in capsys.readouterr().out
    assert main(["check", f"{model}:loss", "--assume", "feature <= 64"]) == 2
    assert "`feature` is no dimension of `loss`; did you mean `features`?" in capsys.readouterr().out
    model.write_text(MODEL + SCAN)
    assert main(["check", f"{model}:loss", f"{model}:scan", "--static", "time", "--static", "bach"]) == 2
    assert "`bach` is no dimension of a function that was checked; did you mean `batch`?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (MODEL, ":los", "ShapedError: {path} has no function `los`; did you mean `loss`?\n"),
        (
            "def f(x): return x\n",
            "",
            "ShapedError: {path} has no function whose arguments are annotated with shapes "
            '(x: Float[Tensor, "a b"])\n',
        ),
        ("import nothing_at_all\n", "", "ShapedError: {path} cannot be imported. Line 1: ModuleNotFoundError: "
         "No module named 'nothing_at_all'\n"),
        (
            'from shaped import ParamList\nclass A(ParamList):\n    w: int\n',
            "",
            "ShapedError: {path} cannot be imported. Line 2: SignatureError: A.w: `int` is no tensor and no ParamList; "
            'write Float[Tensor, "rows columns"], a ParamList class, or list[...] of one\n',
        ),
    ],
    ids=["no such function", "nothing annotated", "fails to import", "a wrong class"],
)  # fmt: skip
def test_check_refuses_with_a_message(
    text: str, name: str, message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_text(text)
    status = main(["check", f"{model}{name}"])

    assert status == 2
    assert capsys.readouterr().err == message.format(path=model)


def test_check_leaves_helpers_out(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text(MODEL + "\ndef helper(p: Line, data: list) -> float:\n    return 0.0\n")

    assert main(["check", str(model)]) == 0
    assert capsys.readouterr().out.endswith("1 proved, 0 not\n")


def test_train_runs_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backend", "eager", "--optimizer", "sgd", "--epochs", "1", "--seed", "-2", "--out", str(tmp_path)]
    status = main(["train", "digits", *options])
    out = capsys.readouterr().out

    assert status == 0
    assert re.search(r"^test accuracy \d\d\.\d% on 360 images, \d+\.\d s of training$", out, re.MULTILINE)
    assert (tmp_path / "digits-eager-sgd-seed-2" / "curves.png").is_file()


def test_train_runs_the_train_of_a_file(script_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = script_folder / "train_job.py"
    job.write_text("def train(settings): print('epochs', settings.epochs, settings.backend)\n")

    assert main(["train", str(job), "--epochs", "3"]) == main(["train", str(job), "--backend", "eager"]) == 0
    assert capsys.readouterr().out == "epochs 3 auto\nepochs None eager\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "digts"],
            "ShapedError: no recipe `digts`; did you mean `digits`? "
            f"there are {', '.join(RECIPES)}, or a FILE.py of your own\n",
        ),
        (["train", "nowhere.py"], "ShapedError: no file nowhere.py\n"),
        (["check", "nowhere.py"], "ShapedError: no file nowhere.py\n"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(arguments)

    assert status == (2 if arguments[0] == "check" else 1)
    assert capsys.readouterr().err == message


def test_a_device_that_is_not_there_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--device", "gpu"]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ValueError: device 'gpu' cannot be used: ")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    assert main(["train", "digits", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("NotADirectoryError: ")


def test_plot_draws_the_curves_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"ShapedError: no log {tmp_path / 'log.jsonl'}\n"
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "validation/loss": 1.5}\n')

    assert main(["plot", str(tmp_path), "--to", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.png'}\n"
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["trian", "digits"], ["train", "digits", "--epochs", "0"], ["train", "digits", "--backend", "jax"]],
    ids=str,
)
def test_wrong_usage_has_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: shaped" in capsys.readouterr().err


def test_an_epoch_count_is_a_whole_number_of_at_least_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "digits", "--epochs", "many"])

    assert "argument --epochs: many is not a whole number of at least 1\n" in capsys.readouterr().err


def test_an_interrupt_has_the_shells_status(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text("def train(settings): raise KeyboardInterrupt\n")

    assert main(["train", str(model)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_doctor_has_a_line_for_each_thing(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert status == 0
    assert names == [
        "shaped",
        "python",
        "torch",
        "triton",
        "gpu",
        "compiler",
        "threads",
        *(f"[{extra}]" for extra in EXTRAS),
    ]


def test_doctor_knows_every_extra_and_says_how_to_get_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = {name: tuple(re.split("[<>=]", package)[0] for package in packages) for name, packages in declared.items()}
    monkeypatch.setattr(cli, "_version", lambda name: "" if name == "rich" else "1.0")
    main(["doctor"])

    assert {name: packages for name, packages in extras.items() if name not in ("test", "lint", "docs")} == EXTRAS
    assert (
        "[recipes]     scikit-learn 1.0, rich not installed, matplotlib 1.0, optuna 1.0: "
        'pip install "shaped-trainer[recipes]"\n'
        "[search]      optuna 1.0\n"
    ) in capsys.readouterr().out


def test_list_shows_the_parts_of_each_kind_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "data"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert main(["list"]) == 0
    whole = capsys.readouterr().out
    assert main(["list", "modls"]) == 1

    assert shown[0] == "data"
    assert shown[5] == "  wine           178 wines, 13 features, 3 classes (Forina et al. 1988)."
    assert [kind for kind in whole.splitlines() if not kind.startswith(" ")] == [
        "workflows", "data", "models", "sequences", "metrics", "validators",
    ]  # fmt: skip
    assert capsys.readouterr().err == "ShapedError: no parts are called `modls`; did you mean `models`?\n"


def test_list_says_whose_a_part_is_and_whether_it_is_broken(
    script_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = script_folder / "other_pkg-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other_pkg\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[shaped.sequences]\nodd = other_pkg:odd\n")
    monkeypatch.syspath_prepend(str(script_folder))
    main(["list", "sequences"])

    assert capsys.readouterr().out.splitlines()[2] == (
        "  odd   broken: sequences: `odd` of other_pkg 2.0 cannot be imported: No module named 'other_pkg'  "
        "(other_pkg 2.0)"
    )


def test_doctor_notices_the_other_distribution_of_our_import_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "shaped-2.0.82.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaped\nVersion: 2.0.82\n")
    monkeypatch.syspath_prepend(tmp_path)
    main(["doctor"])

    assert "`shaped` 2.0.82 is installed too, and writes into our folder" in capsys.readouterr().out


def test_a_job_without_checkpoints_refuses_to_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--resume"]) == 1
    assert "digits keeps no checkpoints" in capsys.readouterr().err
