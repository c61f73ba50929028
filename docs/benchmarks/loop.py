"""What the loop costs over a hand-written one: `python docs/benchmarks/loop.py [--json FILE]`.

One trainer (64-128-10 MLP, batch 64, AdamW, eager) is driven in turns by a `for` loop that takes the step and reads the
loss, and by `Loop`: alone, with a log every 10 steps and an evaluation hook that is never due, and with progress as
well. Each round runs all of them, in an order that turns; the cost of a step is the difference within its round. The
second table has a step that does nothing, so that the loop's own cost stands alone.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import Loop, ParamList, ScalarTrainer, init
from shaped.loop import JsonLines, Progress
from shaped.optim import AdamW

STEPS, ROUNDS = 400, 21


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


def loss(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_hand(step: Callable[..., Tensor], data: Sequence[Any]) -> float:
    """The loop that everyone writes; returns the last loss."""
    value = 0.0
    for x, y in data:
        value = step(x, y).item()
    return value


def drivers(trainer: ScalarTrainer, step: Callable[..., Tensor] | None, folder: Path) -> dict[str, Loop]:
    alone, logged, shown = (Loop(trainer, step) for _ in range(3))
    for loop in (logged, shown):
        loop.attach(JsonLines(folder / f"{id(loop)}.jsonl", every=10))
        loop.every_n_steps(10**9, lambda loop: None, name="validate")
    shown.attach(Progress(seconds=1e9, file=open("/dev/null", "w")))  # noqa: SIM115  (open while the program runs)
    return {"Loop": alone, "Loop, log every 10": logged, "Loop, log, progress": shown}


def measure(trainer: ScalarTrainer, step: Callable[..., Tensor] | None, folder: Path) -> dict[str, list[float]]:
    """Microseconds a step over the hand-written loop, by driver and round; and that loop's own."""
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    data = [(x, y)] * STEPS
    loops = drivers(trainer, step, folder)
    work: dict[str, Callable[[], Any]] = {"by hand": lambda: by_hand(step or trainer.train_step, data)}
    work |= {name: partial(loop.run_epochs, data, 1) for name, loop in loops.items()}
    found: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        names = list(work)[turn % len(work) :] + list(work)[: turn % len(work)]
        seconds = {name: timed(work[name]) for name in names}
        if turn == 0:  # warms up
            continue
        for name in work:
            over = seconds[name] - (seconds["by hand"] if name != "by hand" else 0.0)
            found[name].append(1e6 * over / STEPS)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    params = MLP.init(pixels=64, hidden=128, classes=10, seed=0)
    trainer = ScalarTrainer(loss, params, optimizer=AdamW(params))
    nothing = torch.zeros(())
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "a real step": measure(trainer, None, Path(folder)),
            "a step that does nothing": measure(trainer, lambda x, y: nothing, Path(folder)),
        }
    print(f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}, "
          f"{torch.get_num_threads()} threads; {ROUNDS} rounds of {STEPS} steps; microseconds a step")  # fmt: skip
    for title, table in tables.items():
        print(f"{title:<26}{'median':>9}{'worst':>9}")
        for name, values in table.items():
            over = "" if name == "by hand" else "over by hand: "
            print(f"  {over + name:<36}{statistics.median(values):7.1f}{max(values):9.1f}")
    if options.json:
        options.json.write_text(json.dumps(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
