"""What it costs to hold arguments to their annotations: at import, at the first call, at each call, and in a step.

    PYTHONPATH=.:kernels python docs/benchmarks/doors.py

Import: seconds of CPU of `import torch` and `import shaped`, each in a process of its own, by turns. First call:
seconds of CPU until a first trainer is there in a fresh process, with and without the check of its arguments, by turns.
Each call: with the check and without it, by turns, in one process; medians. In a step: how often a function of the
check runs in 100 steps, and in 100 evaluations of a library loss, whose operands are looked at by `isinstance`, by a
rule of its own (`only_tensors`, not counted); the answer wanted is 0.
"""

import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from report import machine, table, versions

ROUNDS = 7
CPU = "import resource; r = resource.getrusage(resource.RUSAGE_SELF); print(r.ru_utime + r.ru_stime)"
MODEL = """
import shaped, shaped.trainer, torch
from shaped import ScalarTrainer
from tests.models import mlp, mlp_loss
{without}
ScalarTrainer(mlp_loss, mlp(), assume=["pixels >= 1"], max_norm=1.0)
"""
WITHOUT = "ScalarTrainer.__init__ = ScalarTrainer.__init__.__wrapped__"


def fresh(program: str) -> float:
    """Seconds of CPU that a program takes in a process of its own."""
    answer = subprocess.run([sys.executable, "-c", f"{program}\n{CPU}"], capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def by_turns(*measures: Callable[[], float]) -> list[float]:
    """The median of each, taken in rounds."""
    rounds = [[measure() for measure in measures] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def each_call() -> list[list[str]]:
    """Microseconds of some calls with the check and without."""
    from shaped import init
    from shaped.optim import schedules
    from shaped.workflow import EarlyStopping, Real, Search

    space, rows = {"lr": Real(0.1, 1.0)}, []
    calls: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = [
        ("init.normal(0.1)", init.normal, (0.1,), {}),
        ("schedules.cosine(0.1, total=5)", schedules.cosine, (0.1,), {"total": 5}),
        ("EarlyStopping(5, mode='max')", EarlyStopping, (5,), {"mode": "max"}),
        ("Search(space, objective, trials=9)", Search, (space, float), {"trials": 9}),
    ]
    for name, call, args, named in calls:
        bare = call.__wrapped__ if not isinstance(call, type) else _bare(call)
        took = by_turns(*(partial(_seconds, partial(f, *args, **named)) for f in (call, bare)))
        rows.append([f"`{name}`", *(f"{1e6 * seconds:.1f}" for seconds in took)])
    return rows


def _seconds(act: Callable[[], Any]) -> float:
    return timeit.timeit(act, number=2000) / 2000


def _bare(kind: Any) -> Callable[..., Any]:
    def make(*args: Any, **named: Any) -> Any:
        made = object.__new__(kind)
        kind.__init__.__wrapped__(made, *args, **named)
        return made

    return make


def in_steps() -> list[list[str]]:
    """How often the check runs in a step."""
    from shaped import ScalarTrainer, losses
    from tests.models import batch, mlp, mlp_loss

    rows, data = [], batch()
    for backend in ("eager", "compiled"):
        trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)  # type: ignore[arg-type]
        trainer.adamw_step(*data, lr=1e-3)
        rows.append([f"{backend} step", str(_counted(lambda t=trainer: t.adamw_step(*data, lr=1e-3)))])  # type: ignore[misc]
    rows.append(["`losses.mse`, eager", str(_counted(lambda: losses.mse(data[0], data[0])))])
    return rows


def _counted(act: Callable[[], Any]) -> int:
    count = 0

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        code = frame.f_code
        count += event == "call" and code.co_filename.endswith("shaped/arguments.py") and code.co_name != "only_tensors"

    sys.setprofile(look)
    try:
        for _ in range(100):
            act()
    finally:
        sys.setprofile(None)
    return count


def main() -> None:
    """Print the tables."""
    torch, ours = by_turns(lambda: fresh("import torch"), lambda: fresh("import shaped"))
    held, bare = by_turns(lambda: fresh(MODEL.format(without="")), lambda: fresh(MODEL.format(without=WITHOUT)))
    print(
        f"Versions: {versions('torch', 'beartype', 'jaxtyping')}. {machine()}. Medians of {ROUNDS} rounds by turns.\n"
    )
    seconds = [["`import torch`", f"{torch:.2f}", ""], ["`import shaped`", f"{ours:.2f}", f"{ours / torch:.2f}"],
               ["first trainer, unchecked", f"{bare:.2f}", ""],
               ["first trainer, checked", f"{held:.2f}", f"{held / bare:.2f}"]]  # fmt: skip
    print(table(["in a fresh process", "s of CPU", "ratio"], seconds), "\n")
    print(table(["a call", "checked, us", "unchecked, us"], each_call()), "\n")
    print(table(["100 times", "calls of the check"], in_steps()))


if __name__ == "__main__":
    main()
