"""Ready jobs: each is a module with `train(settings) -> Outcome`, found by name or in a user's own file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Literal

from shaped.errors import ShapedError, nearest

RECIPES: Mapping[str, str] = {"digits": "classify 1,797 real handwritten digits with a small network"}


@dataclass(frozen=True)
class Settings:
    """What the command line lets a user choose. A recipe has its own defaults where a value is None."""

    backend: Literal["eager", "compiled"] = "compiled"
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    device: str = "cpu"
    epochs: int | None = None
    seed: int = 0
    out: Path = Path("runs")


@dataclass(frozen=True)
class Outcome:
    """What a job ends with: final figures by name, and the files it wrote."""

    figures: Mapping[str, float]
    files: tuple[Path, ...] = ()


def find(name: str) -> Callable[[Settings], Outcome]:
    """The `train` function of a recipe, or of a Python file.

    Raises:
        ShapedError: There is no such recipe or file, or the file has no `train`.
    """
    if name in RECIPES:
        module = import_module(f"shaped.recipes.{name}")
    elif name.endswith(".py"):
        module = load_file(Path(name))
    else:
        raise ShapedError(f"no recipe `{name}`{nearest(name, list(RECIPES))} Recipes: {', '.join(RECIPES)}; or a FILE.py")
    train: Callable[[Settings], Outcome] | None = getattr(module, "train", None)
    if not callable(train):
        raise ShapedError(f"{name} has no function `train(settings: shaped.recipes.Settings)`")
    return train


def load_file(path: Path) -> object:
    """Import a Python file by path, with its folder importable, as `python FILE.py` would have it.

    Raises:
        ShapedError: There is no such file.
    """
    import sys

    if not path.is_file():
        raise ShapedError(f"no file {path}")
    spec = util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module
