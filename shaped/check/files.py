"""What a command names: files, folders, packages, and modules by their import path; and the modules that files are."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

from torch.optim.optimizer import register_optimizer_step_pre_hook

from shaped.check.settings import Project
from shaped.errors import ShapedError
from shaped.trainer import ScalarTrainer

_SHAPES = ("jaxtyping", "ParamList")  # a file of a folder that names neither has nothing to prove


@dataclass(frozen=True)
class Job:
    """A file to be checked, or a name in it."""

    file: Path
    name: str = ""


def find_jobs(targets: Sequence[str], project: Project, hook: bool = False) -> list[Job]:
    """The files that some targets name, each once.

    Args:
        hook: Files that are named are passed over as those of a folder are: what is excluded, or has nothing to prove.

    Raises:
        ShapedError: One names nothing.
    """
    found: dict[Job, None] = {}
    for target in targets:
        path, _, name = target.rpartition(":") if ":" in target[2:] else (target, "", "")
        path, name = (path, name) if path else (target, "")
        place = Path(path)
        if place.is_dir():
            if name:
                raise ShapedError(f"{path} is a folder: name the file that `{name}` is in")
            found.update(dict.fromkeys(_folder(place, project)))
        elif place.is_file():
            if not hook or (not project.excludes(place) and has_shapes(place)):
                found[Job(place, name)] = None
        else:
            found.update(dict.fromkeys(_module(path, name, project)))
    return list(found)


def _folder(folder: Path, project: Project) -> Iterator[Job]:
    for file in sorted(folder.rglob("*.py")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)
        if not hidden and not project.excludes(file) and has_shapes(file):
            yield Job(file)


def has_shapes(file: Path) -> bool:
    """Whether a file may have something to prove: it names jaxtyping, or ParamList."""
    return any(word in file.read_text("utf-8", "ignore") for word in _SHAPES)


def _module(path: str, name: str, project: Project) -> Iterator[Job]:
    """A module by its import path, as it is found from the project's root, its `src` or among what is installed."""
    if path.endswith(".py") or not all(part.isidentifier() for part in path.split(".")):
        raise ShapedError(f"no file {path}")
    place = _place(path.split("."), [project.root, project.root / "src", *(project.root / p for p in project.paths)])
    if place is None:
        raise ShapedError(f"no file {path}, and no module of that name")
    if place.is_dir() and name:
        raise ShapedError(f"{path} is a folder: name the file that `{name}` is in")
    if place.is_dir() or (place.name == "__init__.py" and not name):
        yield from _folder(place if place.is_dir() else place.parent, project)
    else:
        yield Job(place, name)


def _place(parts: Sequence[str], roots: Sequence[Path]) -> Path | None:
    """The file or folder of a module. Nothing is imported: what would run may do as it likes."""
    first = next((found for root in roots if (found := _within(root, parts[:1])) is not None), None)
    if first is None:
        try:
            spec = find_spec(parts[0])
        except (ImportError, ValueError):
            return None
        inner = list(spec.submodule_search_locations or ()) if spec is not None else []
        origin = spec.origin if spec is not None else None
        first = Path(origin) if origin and origin.endswith(".py") else Path(inner[0]) if inner else None
    if first is None or len(parts) == 1:
        return first
    folder = first.parent if first.name == "__init__.py" else first
    return _within(folder, parts[1:]) if folder.is_dir() else None


def _within(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file or folder of a module below a folder."""
    place = folder.joinpath(*parts)
    known = place / "__init__.py", place.with_suffix(".py")
    return next((file for file in known if file.is_file()), place if place.is_dir() else None)


def package_of(file: Path) -> tuple[Path, str] | None:
    """The folder to import from, and the module's name, for a file in a package; None for one that is in none."""
    file = file.resolve()
    root = file.parent
    if not (root / "__init__.py").is_file():
        return None
    while (root / "__init__.py").is_file() and root != root.parent:
        root = root.parent
    parts = list(file.relative_to(root).with_suffix("").parts)
    return root, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def load(file: Path) -> ModuleType:
    """Import a file: as a part of its package, so that it may import relatively; otherwise by its path.

    Raises:
        ShapedError: It is no Python file, or raises an error when it is imported.
    """
    with _not_training():
        return _loaded(file)


def _loaded(file: Path) -> ModuleType:
    from shaped.recipes import load_file

    package = package_of(file) if file.is_file() else None
    if package is None:
        return load_file(file)
    root, name = package
    before = sys.modules.get(name)
    if before is not None and getattr(before, "__file__", None) == str(file.resolve()):
        return before
    if before is not None or not name or not all(part.isidentifier() for part in name.split(".")):
        return load_file(file)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        raise ShapedError(f"{file} cannot be imported. {type(error).__name__}: {error}") from error


def import_module(name: str) -> ModuleType:
    """Import a module, also one in a circle of imports that is not meant to be entered there."""
    try:
        return importlib.import_module(name)
    except (AttributeError, ImportError) as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        other = traceback.tb_frame.f_globals.get("__name__") if traceback is not None else None
        if "partially initialized module" not in str(error) or not isinstance(other, str) or other == name:
            raise
    importlib.import_module(other)  # which asked for the module while that was on its way
    return importlib.import_module(name)


@contextmanager
def _not_training() -> Iterator[None]:
    """Stop an import at the first step of an optimizer or a trainer."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ShapedError(
            'it trains when it is imported; put that under if __name__ == "__main__":, and it can be checked'
        )

    hook = register_optimizer_step_pre_hook(refuse)
    try:
        with patch.object(ScalarTrainer, "_take", refuse):
            yield
    finally:
        hook.remove()
