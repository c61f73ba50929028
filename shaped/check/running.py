"""`shaped check --run train.py`: a script from its entry point, with tensors that have shapes and no data.

The script runs as it is, prints and reads files as it does, and its data loaders load. Its tensors compute nothing,
optimizers step nothing, and what `torch.save` would write is left out. So the first wrong shape shows at its line
within seconds. Where a value is needed that only data tell, the run is over; what was passed until there is well-shaped
at the sizes of this run. That is no proof: annotated functions are proved for all sizes.
"""

import json
import logging
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, dataloader

from shaped.errors import Goal, ProofError, ShapedError, Source, first_line
from shaped.files import replace
from shaped.proof.source import Place, is_own, operands_of, place_of_caller, place_of_traceback

_PROGRAM = "import sys; from shaped.check.running import main; main(sys.argv[1:])"
_LEAVES_TORCH = ("not supported for tensor subclasses", "data pointer of Tensor", "Cannot access data pointer")
_QUIET = {"__get__", "__set__", "size", "dim", "numel", "__len__", "requires_grad_", "detach", "item"}


@dataclass(frozen=True)
class Ran:
    """How a run ended: 0 to its end or until a value was needed, 1 at a fault; and what to print."""

    status: int
    said: str


def run(script: Path, arguments: Sequence[str], seconds: float) -> Ran:
    """Run a script in a process of its own.

    Args:
        arguments: The script's own.
        seconds: After which it is ended.

    Raises:
        ShapedError: There is no such file, or its process ended without a word.
    """
    if not script.is_file():
        raise ShapedError(f"no file {script}")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-c", _PROGRAM, str(answer), str(script.resolve()), *arguments]
        try:
            done = subprocess.run(command, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return Ran(0, f"stopped      after {seconds:g} s (--timeout); no wrong shape until then")
        if not answer.is_file():
            raise ShapedError(f"{script}: the process that ran it ended with status {done.returncode}")
        return Ran(**json.loads(answer.read_text()))


def main(arguments: Sequence[str]) -> None:
    """Run, and write how it ended."""
    answer, script, *rest = arguments
    sys.argv = [script, *rest]
    sys.path[0] = str(Path(script).parent)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # of the fault that is told below
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # a copied module's; nothing is read
    ran = _followed(Path(script))
    sys.stdout.flush()
    replace(Path(answer), json.dumps({"status": ran.status, "said": ran.said}).encode())


class _Following(TorchFunctionMode):
    """Remembers the operation under way, and where the user called it."""

    call: tuple[str, tuple[Any, ...], dict[str, Any], Place | None] | None = None
    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _QUIET:
            self.count += 1
            self.call = name, args, kwargs or {}, place_of_caller()
        return func(*args, **(kwargs or {}))


def _followed(script: Path) -> Ran:
    """Run a script here, and say how it ended."""
    following, left = _Following(), list[str]()
    try:
        with _set_up(left), FakeTensorMode(allow_non_fake_inputs=True), following:
            runpy.run_path(str(script), run_name="__main__")
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        return _ended(following, left, "stopped", error, "where a value is needed that only data tell")
    except SystemExit as error:
        said = "" if error.code in (None, 0) else f" sys.exit({error.code!r})"
        return _ended(following, left, f"it ended{said}", None, "")
    except Exception as error:
        if any(text in str(error) for text in _LEAVES_TORCH):
            return _ended(following, left, "stopped", error, "where it leaves torch")
        return Ran(1, str(_fault(error, following, script)))
    return _ended(following, left, "to its end", None, "")


def _ended(following: _Following, left: Sequence[str], how: str, error: Exception | None, why: str) -> Ran:
    lines = [f"no wrong shape in {following.count} operations: {how}"]
    place = place_of_traceback(error.__traceback__) if error is not None else None
    if place is not None:
        source = place.source()
        lines = [f"{lines[0]} at {source}, {why}", *_shown(source)]
    lines += [f"not written  {', '.join(dict.fromkeys(left))}"] if left else []
    return Ran(0, "\n".join(lines))


def _shown(source: Source) -> list[str]:
    lead = f"  {source}   "
    return [lead + source.text, *([" " * len(lead) + source.marks] if source.marks else [])]


def _fault(error: Exception, following: _Following, script: Path) -> ProofError:
    """What stopped the script, at the user's line: with the shapes of the operands where torch refused them."""
    place = place_of_traceback(error.__traceback__)
    source = place.source() if place is not None else None
    if is_own(error) or following.call is None or place is None:
        said = f"{type(error).__name__}: {first_line(error)}"
        return ProofError(f"`{script.name}` raises an exception.", source, Goal(raised=said))
    name, args, kwargs, where = following.call
    if where is None or where.frame is not place.frame:
        return ProofError(f"`{script.name}` fails in torch.", source, Goal(said=first_line(error)))
    found = operands_of(where, name, args, kwargs)
    shapes = [f"{o.text} : {list(o.tensor.shape)}" if o.text else str(list(o.tensor.shape)) for o in found]
    goal = Goal(name.strip("_"), ", ".join(shapes), said=first_line(error))
    return ProofError(f"`{script.name}` is not well-shaped.", source, goal)


@contextmanager
def _set_up(left: list[str]) -> Iterator[None]:
    """Loading is real, stepping and saving is not."""

    def save(*args: Any, **kwargs: Any) -> None:
        place = place_of_caller()
        left.append(f"torch.save at {place.source()}" if place is not None else "torch.save")

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def only_closure(self: Any, closure: Callable[[], Any] | None = None) -> Any:
            return closure() if closure is not None else None

        vars(only_closure)["hooked"] = True
        return only_closure

    def begun(loader: Any, *args: Any, **kwargs: Any) -> None:
        more = {name: kwargs[name] for name in kwargs if name not in _OF_WORKERS}
        start(loader, *args[:5], **more)

    start, steps = DataLoader.__init__, dataloader._SingleProcessDataLoaderIter.__next__
    iterate = DataLoader.__iter__
    with ExitStack() as stack:
        for owner, name, value in (
            (torch, "save", save),
            (torch.optim.Optimizer, "profile_hook_step", staticmethod(stepping)),
            (DataLoader, "__init__", begun),
            (DataLoader, "__iter__", _real(iterate)),
            (dataloader._SingleProcessDataLoaderIter, "__next__", _real(steps)),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield


_OF_WORKERS = {"num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
               "persistent_workers", "pin_memory_device"}  # fmt: skip


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that computes for real."""

    def really(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return really
