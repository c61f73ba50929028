"""What a project says of its checks: `[tool.shaped]` in pyproject.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from shaped.errors import ShapedError, nearest

_LISTS = ("paths", "exclude", "assume", "factories")


@dataclass(frozen=True)
class Project:
    """A project's settings.

    Attributes:
        root: The folder of its pyproject.toml, which the paths are relative to.
        paths: What is checked where the command names nothing.
        exclude: Patterns of files that are left out.
        static: Names with their sizes, None for one of our choice; for the functions that have them.
        assume: Relations to take as given; for the functions that have their names.
        factories: How instances are made, as expressions in the file that defines the class: `Net(Config(dim=8))`.
    """

    root: Path = field(default_factory=Path.cwd)
    paths: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    static: Mapping[str, int | None] = field(default_factory=dict)
    assume: tuple[str, ...] = ()
    factories: tuple[str, ...] = ()

    def excludes(self, file: Path) -> bool:
        """Whether a file is left out."""
        path = file.resolve()
        text = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()
        return any(fnmatch(text, pattern) or text.startswith(f"{pattern.rstrip('/')}/") for pattern in self.exclude)


def read_project(folder: Path) -> Project:
    """The settings of the nearest pyproject.toml, here or above; none where there is none.

    Raises:
        ShapedError: It is no TOML, or has a key or value that means nothing.
    """
    for root in (folder.resolve(), *folder.resolve().parents):
        file = root / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("shaped", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ShapedError(f"{file} is no TOML: {error}") from None
        return _project(root, table, file)
    return Project(folder.resolve())


def _project(root: Path, table: Mapping[str, Any], file: Path) -> Project:
    where = f"{file}, [tool.shaped]"
    if not isinstance(table, dict):
        raise ShapedError(f"{where} is a table of {', '.join((*_LISTS, 'static'))}, not {table!r}")
    for key in table:
        if key not in (*_LISTS, "static"):
            raise ShapedError(f"{where}: `{key}` is unknown{nearest(key, [*_LISTS, 'static'])}")
    lists: dict[str, tuple[str, ...]] = {}
    for key in _LISTS:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ShapedError(f"{where}: {key} is a list of strings, not {value!r}")
        lists[key] = tuple(value)
    static = table.get("static", {})
    if isinstance(static, list) or static == "auto":
        static = dict.fromkeys(["auto"] if static == "auto" else static)
    if not isinstance(static, dict) or not all(isinstance(s, int | None) and s is not True for s in static.values()):
        raise ShapedError(
            f'{where}: static is a list of names, or a table of names with their sizes, or "auto", not {static!r}'
        )
    return Project(root, static=static, **lists)
