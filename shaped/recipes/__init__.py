"""Ready jobs: each is a module with `train(settings) -> Outcome`, found by name or in a user's own file."""

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from shaped.arguments import OWN, checked
from shaped.backends import BACKENDS, BackendName
from shaped.errors import ShapedError, nearest
from shaped.optim.table import SCHEDULED
from shaped.ranks import join, processes_here, restarted
from shaped.sharing import Zero

RECIPES: Mapping[str, str] = {
    "digits": "classify 1,797 real handwritten digits with a small network",
    "charlm": "a small GPT over the bytes of Python's standard library",
    "tabular": "two tables, cross-validated with a search in each fold, beside scikit-learn's network",
    "series": "a time series with a planted drift: purged validation, then online updates",
}


@checked
@dataclass(frozen=True)
class Settings:
    """What the command line lets a user choose. A recipe has its own defaults where a value is None.

    Raises:
        ValueError: There is no such backend or optimizer.
    """

    backend: Annotated[BackendName, OWN] = "auto"
    optimizer: str = "adamw"
    device: str = "cpu"
    epochs: int | None = None
    seed: int = 0
    out: str | Path = Path("runs")
    resume: bool = False
    zero: Zero = 0
    fresh: bool = False

    def __post_init__(self) -> None:
        for name, known in (("backend", BACKENDS), ("optimizer", SCHEDULED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(map(repr, known))}")

    @checked
    def folder(self, job: str, *, by_epochs: bool = False) -> Path:
        """Where a job writes, apart from runs with other settings; `by_epochs` where another number is another run."""
        name = f"{job}-{self.backend}-{self.optimizer}-seed{self.seed}"
        return Path(self.out) / (f"{name}-epochs{self.epochs}" if by_epochs and self.epochs else name)

    @property
    def keep(self) -> bool:
        """A trainer's `keep`: whether what a job compiles is there for its next start, in the user's own folder."""
        return not self.fresh and self.device == "cpu" and processes_here() == 1

    @property
    def goes_on(self) -> bool:
        """Whether to go on from what is there: where asked to, and where torchrun started the processes again."""
        return self.resume or restarted()

    def mesh(self) -> Any:
        """The processes that torchrun started, joined; None for one alone."""
        return join() if processes_here() > 1 else None

    def only_alone(self, job: str) -> None:
        """Refuse to run as several processes.

        Raises:
            ShapedError: torchrun started several.
        """
        if processes_here() > 1:
            raise ShapedError(f"{job} runs in one process: shaped train {job}; charlm runs on several")


@checked
@dataclass(frozen=True)
class Outcome:
    """What a job ends with: final figures by name, and the files it wrote."""

    figures: Mapping[str, float]
    files: tuple[Path, ...] = ()


@checked
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
        known = f"there are {', '.join(RECIPES)}, or a FILE.py of your own"
        raise ShapedError(f"no recipe `{name}`{nearest(name, list(RECIPES)) or ':'} {known}")
    train: Callable[[Settings], Outcome] | None = getattr(module, "train", None)
    if not callable(train):
        raise ShapedError(f"{name} has no function `train(settings: shaped.recipes.Settings)`")
    return train


@checked
def load_file(path: Path) -> ModuleType:
    """Import a Python file by path, with its folder importable, as `python FILE.py` would have it.

    Raises:
        ShapedError: There is no such file, it is no Python file, or it raises an error when it is imported.
    """
    if not path.is_file():
        raise ShapedError(f"no file {path}")
    file = path.resolve()
    name = path.stem if path.stem not in sys.modules else str(file)  # never in the place of a module that is in use
    spec = util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ShapedError(f"{path} is not a Python file")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ShapedError(f"{path} cannot be imported. {_line(error, file)}{type(error).__name__}: {error}") from error
    return module


def _line(error: BaseException, file: Path) -> str:
    """Where in the file it happened: "Line 3: "."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"Line {line}: " if line else ""
