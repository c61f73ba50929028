"""What a compiled step costs beside its executor: the trainer's own Python, by the step and by `train_steps`.

An executor is called by itself with the same tensors, then `train_step` and `train_steps` of a list, in
interleaved rounds of one process; the figures are the medians of the rounds, in microseconds a step. Then the executor
is replaced by one that returns at once: the best of many rounds of that is the Python alone ("hot"), which other work
on the machine changes least; what it costs beside an executor that fills the caches is the difference of the medians.
The MLP has 4 parameters; "148" is a sum over 148 vectors of 4, so that hardly anything but their number costs.

    PYTHONPATH=.:kernels python docs/benchmarks/host.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from report import machine, table, versions
from step_models import MODELS
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.optim import AdamW

ROUNDS, STEPS = 21, 100
FEW = 10  # steps of a round that is hot, and so short that other work seldom comes between


class Block(ParamList):
    vector: Float[Tensor, " dim"]


class Vectors(ParamList):
    blocks: list[Block]


def weighed(p: Vectors, x: Float[Tensor, " dim"]) -> Float[Tensor, ""]:
    return (torch.stack([block.vector for block in p.blocks]) * x).sum()


def timed(trainer: ScalarTrainer, batch: tuple[Tensor, ...]) -> list[float]:
    """Median microseconds of the executor, of each step and of a step of `train_steps`; the best of both, hot."""
    batches = [batch] * STEPS
    trainer.train_steps(batches[:5])
    backend: Any = trainer._backend
    step = next(iter(backend._steps.values()))
    runner, inputs = next(iter(step.runs.values())), list(batch)

    def alone() -> None:
        for _ in range(STEPS):
            runner(step.state, inputs)

    def one_by_one() -> None:
        for _ in range(STEPS):
            trainer.train_step(*batch)

    ways: list[Callable[[], object]] = [alone, one_by_one, lambda: trainer.train_steps(batches)]
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for way, times in zip(ways, found, strict=True):
            times.append(timed_calls(way, 1) / STEPS)
    results = runner.executor.run([*runner.sizes, *(t.clone() for t in step.state), *inputs])
    runner.executor.run = lambda _: results
    few = [batch] * FEW
    base = best(lambda: runner(step.state, inputs), FEW)
    one = best(lambda: trainer.train_step(*batch), FEW)
    many = best(lambda: trainer.train_steps(few), 1) / FEW
    return [*(statistics.median(times) for times in found), one - base, many - base]


def best(call: Callable[[], object], count: int) -> float:
    """The least microseconds of a call, of many short rounds."""
    return min(timed_calls(call, count) for _ in range(50 * ROUNDS))


def timed_calls(call: Callable[[], object], count: int) -> float:
    """Microseconds of a call."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return 1e6 * (time.perf_counter() - began) / count


def main() -> None:
    torch.set_num_threads(1)
    model = MODELS["mlp"]
    small = Vectors.init(dim=4, blocks=148, seed=0)
    loss, params = model.loss, model.params()
    rows = []
    for name, params_, loss_, batch in (
        ("mlp", params, loss, model.batch()),
        ("148", small, weighed, (torch.ones(4),)),
    ):
        trainer = ScalarTrainer(loss_, params_, backend="compiled", optimizer=AdamW(params_, lr=1e-3))
        executor, step, many, *hot = timed(trainer, tuple(batch))
        rows.append([name, *(f"{us:.1f}" for us in (executor, step, many, step - executor, many - executor, *hot))])
    head = [
        "model",
        "executor",
        "train_step",
        "train_steps",
        "Python of one",
        "Python of many",
        "hot, one",
        "hot, many",
    ]
    print(f"{versions('torch')}; {machine()}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()
