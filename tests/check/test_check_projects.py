"""Files, packages and modules as a project has them."""

import json
import os
from pathlib import Path

import pytest

from shaped import cli
from shaped.check import (
    CheckOptions,
    Job,
    Project,
    Report,
    Verdict,
    check_project,
    find_jobs,
    load,
    read_project,
)
from shaped.check.ignoring import Unused, ignored
from shaped.check.sarif import as_sarif
from shaped.check.settings import Project as Settings
from shaped.errors import ShapedError, Source

TWICE = """
from jaxtyping import Float
from torch import Tensor

def twice(x: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    return 2 * x
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a module that imports relatively."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "checked_package" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.shaped]\npaths = ["checked_package"]\nexclude = ["*_old.py"]\n')
    (inner.parent / "__init__.py").touch()
    (inner / "__init__.py").touch()
    (inner.parent / "names.py").write_text(TWICE)
    (inner.parent / "plain.py").write_text("import math\n")
    (inner.parent / "model_old.py").write_text("import jaxtyping\n")
    (inner / "model.py").write_text(TWICE.replace("def twice", "from ..names import twice\n\ndef more"))
    return tmp_path


def test_a_folder_a_module_and_a_file_name_what_is_to_be_checked(project: Path) -> None:
    settings = read_project(project)
    names = [job.file.name for job in find_jobs(["checked_package"], settings)]

    assert names == ["model.py", "names.py"]
    assert find_jobs(["checked_package/names.py:twice"], settings) == [Job(Path("checked_package/names.py"), "twice")]
    found = find_jobs(["checked_package.inner.model:more", "checked_package"], settings)

    assert (found[0].file.name, found[0].name, len(found)) == ("model.py", "more", 3)
    with pytest.raises(ShapedError, match=r"no file checked_package\.nowhere, and no module of that name"):
        find_jobs(["checked_package.nowhere"], settings)


def test_a_file_of_a_package_may_import_relatively(project: Path) -> None:
    module = load(project / "checked_package" / "inner" / "model.py")

    assert module.__name__ == "checked_package.inner.model"
    assert module.twice.__module__ == "checked_package.names"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.shaped]\npath = []\n", "`path` is unknown; did you mean `paths`?"),
        ("[tool.shaped]\npaths = 'src'\n", "paths is a list of strings, not 'src'"),
        ("[tool.shaped]\nstatic = {n = 'x'}\n", "static is a list of names, or a table of names with their sizes"),
        ("[tool.shaped\n", "is no TOML"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(ShapedError) as error:
        read_project(tmp_path)
    assert said in str(error.value)


def test_settings_come_from_the_nearest_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.shaped]\nstatic = ["time"]\nassume = ["a <= 4"]\nexclude = ["old"]\n'
    )
    (tmp_path / "src").mkdir()
    settings = read_project(tmp_path / "src")

    assert settings == Settings(tmp_path.resolve(), exclude=("old",), static={"time": None}, assume=("a <= 4",))
    assert settings.excludes(tmp_path / "old" / "a.py")
    assert not settings.excludes(tmp_path / "src" / "a.py")


def verdict(file: Path, line: int, status: str, fault: int) -> Verdict:
    return Verdict("f", str(file), line, status, "s", "m", Source(str(file), fault))  # type: ignore[arg-type]


def test_a_comment_silences_its_line_and_one_that_silences_nothing_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    lines = ["def f(x):", "    a = x  # shaped: ignore[refuted]", "    return a  # shaped: ignore[unprovable]",
             "b = 1  # shaped: ignore", "c = 1  # shaped: ignore[refutd]", "d = '# shaped: ignore'"]  # fmt: skip
    file.write_text("\n".join(lines))
    found, unused = ignored([verdict(file, 1, "refuted", 2), verdict(file, 1, "refuted", 3)])

    assert [one.status for one in found] == ["ignored", "refuted"]
    assert [(one.line, one.said) for one in unused] == [
        (3, "this ignores nothing: take the comment out"),
        (4, "this ignores nothing: take the comment out"),
        (5, "`refutd` is no rule; there are refuted, unprovable, error; did you mean `refuted`?"),
    ]


def test_a_comment_silences_a_function_of_a_single_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shaped.check.children.may_fork", lambda: hasattr(os, "fork"))
    Path("silenced.py").write_text(TWICE.replace('"a b"]:', '"b a"]:  # shaped: ignore[refuted]'))

    assert cli.main(["check", "silenced.py"]) == 0
    assert capsys.readouterr().out == (
        "ignored     silenced.py:5  twice  refuted, as a comment says\n\n0 proved, 0 not, 1 ignored\n"
    )


ENDS = """
import os

def ends(x: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    os._exit(3)
"""


def test_a_function_that_ends_the_process_of_a_single_file_is_undecided_alone_and_nothing_that_it_prints_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shaped.check.children.may_fork", lambda: hasattr(os, "fork"))
    Path("ending.py").write_text(f"print('noise')\n{ENDS.replace('import os', 'import os' + TWICE)}")

    assert cli.main(["check", "ending.py"]) == 1
    assert capsys.readouterr().out == (
        "proved      ending.py:7   twice  for all sizes\n"
        "unprovable  ending.py:11  ends   the process that checked it ended: exit status 3\n"
        "\nUnprovable: `ends`: the process that checked it ended: exit status 3\n"
        "\n1 proved, 1 not\n"
    )


def test_a_hook_passes_over_files_that_are_named_and_have_nothing_to_prove(project: Path) -> None:
    settings, names = read_project(project), ["plain.py", "model_old.py", "names.py"]
    named = [f"checked_package/{name}" for name in names]

    assert [job.file.name for job in find_jobs(named, settings)] == names
    assert [job.file.name for job in find_jobs(named, settings, hook=True)] == ["names.py"]


def test_a_module_is_found_below_src_and_nothing_is_imported_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner = tmp_path / "src" / "exits_when_imported" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("raise SystemExit('imported')")
    (inner / "model.py").write_text(TWICE)

    found = find_jobs(["exits_when_imported.inner.model:twice"], read_project(tmp_path))

    assert found == [Job(inner / "model.py", "twice")]


def test_sarif_has_a_result_at_the_line_of_each_fault(tmp_path: Path) -> None:
    log = as_sarif([verdict(tmp_path / "model.py", 1, "refuted", 2)])
    result = log["runs"][0]["results"][0]

    assert log["version"] == "2.1.0"
    assert (result["ruleId"], result["level"]) == ("refuted", "error")
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 2}
    assert result["relatedLocations"][0]["physicalLocation"]["region"] == {"startLine": 1}


@pytest.mark.slow
def test_a_file_that_ends_its_process_or_hangs_harms_nothing_and_what_is_unchanged_is_kept(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "checked_package" / "exits.py").write_text("import os, jaxtyping\nprint('noise')\nos._exit(3)\n")
    hangs = project / "hangs.py"
    hangs.write_text("import jaxtyping, time\ntime.sleep(1000)\n")
    late = next(check_project([Job(hangs)], CheckOptions(root=str(project)), workers=1, seconds=1)).answer

    large = project / "large.py"
    large.write_text("import jaxtyping\nmemory = bytearray(3 * 2**30)\n")
    options = CheckOptions(root=str(project), memory=2.0)
    heavy = next(check_project([Job(large)], options, workers=1, seconds=300)).answer
    large.unlink()

    assert late.failure == f"{hangs} took more than 1 s (--timeout)"
    assert "MemoryError" in heavy.failure or "--memory" in heavy.failure
    assert cli.main(["check", "-j", "2"]) == 2
    out = capsys.readouterr().out

    assert "proved      checked_package/names.py:5  twice  for all sizes\n" in out
    assert "exits.py: the process that checked it ended: exit status 3\n" in out
    assert out.endswith("\n2 proved, 0 not, 1 of 3 files could not be checked\n")
    jobs, options = find_jobs(["checked_package/names.py"], read_project(project)), CheckOptions(root=str(project))
    again = [one.answer.kept for one in check_project(jobs, options, workers=1, seconds=300)]
    names = project / "checked_package" / "names.py"
    names.write_text(TWICE.replace('"a b"]:', '"b a"]:'))
    found = list(check_project(jobs, options, workers=1, seconds=300))
    report = Report("json")
    lines = report.lines(found)

    assert again == [True]
    assert json.loads(next(lines))["verdicts"][0]["status"] == "refuted"
    assert report.status == 1
    assert isinstance(read_project(project), Project)


def test_comments_that_ignore_nothing_and_files_that_could_not_be_checked_are_in_sarif(tmp_path: Path) -> None:
    run = as_sarif([], [Unused(str(tmp_path / "model.py"), 3, "this ignores nothing")], ["a.py cannot be imported"])[
        "runs"
    ][0]

    assert [(one["ruleId"], one["level"]) for one in run["results"]] == [("unused", "warning")]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert run["invocations"][0]["toolExecutionNotifications"][0]["message"] == {"text": "a.py cannot be imported"}


def test_a_circle_of_imports_is_entered_where_it_can_be(project: Path) -> None:
    folder = project / "circular_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "writer.py").write_text("from . import settings\n\nclass Writer:\n    pass\n")
    (folder / "settings.py").write_text("from . import writer\n\nclass Settings:\n    made = writer.Writer\n")

    assert load(folder / "writer.py").Writer.__name__ == "Writer"


def test_a_file_that_trains_when_it_is_imported_is_not_trained(tmp_path: Path) -> None:
    file = tmp_path / "trains_at_import.py"
    file.write_text(
        "import torch\nw = torch.ones(1, requires_grad=True)\nsgd = torch.optim.SGD([w], lr=1.0)\n"
        "w.sum().backward()\nsgd.step()\n"
    )

    with pytest.raises(ShapedError, match=r"Line 5: ShapedError: it trains when it is imported"):
        load(file)
