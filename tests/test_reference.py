"""The public names: each stands in the API reference, is documented, and says what it raises."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

from private_torch import names  # noqa: E402
from reference import DOORS, exported  # noqa: E402


@pytest.mark.parametrize("door", DOORS)
def test_every_public_name_stands_in_the_api_reference(door: str) -> None:
    _, _, after = (ROOT / "docs" / "api.md").read_text().partition(f"\n## `{door}`\n")
    section = after.partition("\n## ")[0]

    assert [name for name in exported(door) if f"| `{name}` |" not in section] == [], "python docs/site/reference.py"


def definitions(door: str) -> Iterator[tuple[str, object, str]]:
    """Each public function and method of a door, with the docstring that speaks of it."""
    module = importlib.import_module(door)
    for name in exported(door):
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield f"{door}.{name}", value, inspect.getdoc(value) or ""
        elif inspect.isclass(value):
            whole = inspect.getdoc(value) or ""
            yield f"{door}.{name}", value.__dict__.get("__init__"), whole
            yield f"{door}.{name}", value.__dict__.get("__post_init__"), whole
            for inner, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and not inner.startswith("_"):
                    yield f"{door}.{name}.{inner}", function, inspect.getdoc(getattr(value, inner)) or ""


def raised(function: object) -> set[str]:
    """The exceptions that a function raises in its own lines."""
    if not inspect.isfunction(function) or "shaped" not in function.__module__:
        return set()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):  # made by dataclass
        return set()
    found = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {call.func.id for call in found if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return {name for name in names if name[0].isupper() and name not in ("NotImplementedError", "AssertionError")}


@pytest.mark.parametrize("door", DOORS)
def test_what_a_public_function_raises_stands_in_its_docstring(door: str) -> None:
    silent = [
        f"{where}: {name}"
        for where, function, text in definitions(door)
        for name in sorted(raised(function))
        if name not in text and not ("Raises:" in text and "As for" in text)
    ]

    assert silent == []


def test_every_private_name_of_torch_that_is_used_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "private-torch.md").read_text()

    assert [name for name in names() if f"| `{name}` |" not in page] == [], (
        "python docs/site/private_torch.py PYTHON..."
    )


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings_handlers") is None:
        pytest.skip('needs mkdocs: pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/site/mkdocs.yml"]
    built = subprocess.run([*command, "-d", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True)

    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "api" / "shaped.optim.html").is_file()
