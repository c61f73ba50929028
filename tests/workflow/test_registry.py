"""One registry for each kind of part: names, duplicates, what is missing, and what other packages register."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from shaped import ShapedError
from shaped.workflow import REGISTRIES, Registry
from shaped.workflow import registry as module


def installed(folder: Path, name: str, points: str, code: str) -> None:
    """A distribution on the path, as pip would leave it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(points)


def test_a_name_stands_for_what_was_registered() -> None:
    parts: Registry[Any] = Registry("parts")

    @parts.register("first")
    def first() -> int:
        return 1

    assert parts.register("second", 2) == 2
    assert (parts.get("first"), parts.get("second")) == (first, 2)
    assert (list(parts), len(parts), "first" in parts, "third" in parts) == (["first", "second"], 2, True, False)
    assert repr(parts) == "Registry('parts': first, second)"
    parts.unregister("second")
    assert list(parts) == ["first"]


def test_a_name_used_twice_is_an_error_that_says_by_whom() -> None:
    parts: Registry[Any] = Registry("parts", built="json:dumps")
    parts.register("mine", 1)
    with pytest.raises(ShapedError, match=r"^parts: `mine` is taken by this program$"):
        parts.register("mine", 2)
    with pytest.raises(ShapedError, match=r"^parts: `built` is taken by json:dumps$"):
        parts.register("built", 2)

    assert parts.get("mine") == 1


def test_a_missing_name_suggests_the_nearest_or_lists_all() -> None:
    parts: Registry[Any] = Registry("parts")
    with pytest.raises(ShapedError, match="nothing is named `a`; there are none"):
        parts.get("a")
    parts.register("linear", 1)
    with pytest.raises(ShapedError, match="nothing is named `lineer`; did you mean `linear`"):
        parts.get("lineer")
    with pytest.raises(ShapedError, match="nothing is named `x`; there are linear"):
        parts.unregister("x")
    for wrong in ("", " ", "a:b", 3):
        with pytest.raises(ValueError, match="is no name"):
            parts.register(wrong, 1)  # type: ignore[arg-type]


def test_a_name_with_a_colon_is_imported() -> None:
    parts: Registry[Any] = Registry("parts")

    assert parts.get("json:dumps").__name__ == "dumps"
    with pytest.raises(ShapedError, match=r"parts: `json:nothing` of json:nothing cannot be imported: module 'json'"):
        parts.get("json:nothing")
    with pytest.raises(ShapedError, match="cannot be imported: No module named 'no_such"):
        parts.get("no_such_module:x")


def test_other_packages_register_through_entry_points_and_are_imported_when_asked(
    script_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(script_folder, "theirs_pkg", "[shaped.parts]\ntheirs = theirs_pkg:part\n", "part = 'a part'\n")
    monkeypatch.syspath_prepend(str(script_folder))
    parts: Registry[Any] = Registry("parts")

    assert "theirs" in parts
    assert list(parts) == ["theirs"]
    assert "theirs_pkg" not in sys.modules
    assert parts.get("theirs") == "a part"
    assert parts.origin("theirs") == "theirs_pkg 1.2"
    with pytest.raises(ShapedError, match=r"`theirs` is taken by theirs_pkg 1\.2"):
        parts.register("theirs", 1)
    installed(script_folder, "more_pkg", "[shaped.parts]\ntheirs = more_pkg:part\n", "part = 'another'\n")
    with pytest.raises(ShapedError, match=r"claimed by (theirs|more)_pkg 1\.2 and by (theirs|more)_pkg 1\.2"):
        parts.get("theirs")


def test_every_built_in_part_can_be_imported() -> None:
    assert sorted(REGISTRIES) == ["data", "metrics", "models", "sequences", "validators", "workflows"]
    for kind, parts in REGISTRIES.items():
        for name in [name for name, entry in parts._entries.items() if isinstance(entry, EntryPoint)]:
            assert parts.get(name) is not None, (kind, name)
            assert parts.about(name), (kind, name)
    assert module.models.origin("mlp_classifier") == "shaped.workflow.networks:mlp_classifier"


def test_the_workflow_imports_no_extra_until_it_is_used() -> None:
    extras = ("sklearn", "optuna", "river", "torchao", "torchmetrics", "pandas", "matplotlib", "rich")
    program = f"import sys, shaped.workflow; print([name for name in {extras} if name in sys.modules])"
    path = os.pathsep.join(sys.path)
    answer = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True)

    assert answer.stdout.strip() == "[]", answer.stderr
