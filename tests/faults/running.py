"""Faults while a run goes on: rows 15 to 17 and 20 of the matrix. Each returns (good, tried)."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shaped.errors import NonFiniteError
from tests.faults import runs
from tests.faults.runs import PER_EPOCH, Tally, child, data, digest, digest_of, folder, make, run, told, train, wait

# -- rows 15 to 17, 20, 36: signals, resuming, NaN, other runs -------------------------------------------------------


def stopped_by_signals(count: int, backend: str = "eager", seed: int = 0) -> Tally:
    """SIGINT or SIGTERM at a random moment: status 130 or 143, a checkpoint, and the resumed run is the whole one."""
    draw, good, epochs = random.Random(seed), 0, 40
    loop = make(backend=backend)
    begin = _warmed(loop)
    with folder() as place:
        expected = told(lambda: digest_of(train(begin(), place, epochs)))
    for _ in range(count):
        with folder() as place:
            number = draw.choice((signal.SIGINT, signal.SIGTERM))
            pid = child(lambda place=place: train(begin(), place, epochs))  # type: ignore[misc]
            while not (place / "run.json").exists():
                time.sleep(0.001)
            time.sleep(draw.uniform(0.0, 0.05))
            os.kill(pid, number)
            status = wait(pid)
            if status == 0 or (status == 1 and not list(place.glob("step-*"))):  # it was over, or had not begun
                good += 1
                continue

            def go_on(place: Path = place) -> None:
                resumed = train(begin(), place, epochs)
                raise SystemExit(0 if digest_of(resumed) == expected else 4)

            good += status == 128 + number and run(go_on) == 0
    return good, count


def _warmed(loop: Any) -> Callable[[], Any]:
    """Compile what a run needs, and give back a function that puts the loop where it began."""
    torch.manual_seed(0)
    began = loop.state_dict()
    loop.run_epochs(data(), 1)

    def begin() -> Any:
        loop.load_state_dict(began)
        loop.resumed = False
        return loop

    return lambda: begin()


def resumed_anywhere(optimizer: str, backend: str, steps: list[int]) -> Tally:
    """Stop after step k, go on in another process: the whole state, generators too, is bit-identical."""
    good, epochs = 0, 3
    loop = make(optimizer, backend)
    begin = _warmed(loop)
    with folder() as place:
        expected = told(lambda: digest_of(train(begin(), place, epochs)))
    for k in steps:
        with folder() as place:

            def first(place: Path = place, k: int = k) -> None:
                part = begin()
                part.every_n_steps(k, lambda _: _interrupt(), name="stop")
                train(part, place, epochs)

            def second(place: Path = place) -> None:
                random.seed(99), torch.manual_seed(99)
                raise SystemExit(0 if digest_of(train(begin(), place, epochs)) == expected else 4)

            stopped = run(first)
            good += stopped in (0, 130) and run(second) == 0
    return good, len(steps)


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def batches_after_resuming() -> Tally:
    """Over three epochs with an interruption at each step, every example comes once in each epoch."""
    good = 0
    total = 3 * PER_EPOCH
    source = data()
    order = [[int(i) for i in source.order(epoch)] for epoch in range(3)]
    for k in range(1, total):
        epoch, index = divmod(k, PER_EPOCH)
        seen = order[epoch][: index * runs.BATCH]
        x = torch.cat([b[0] for b in source.iterate(epoch, index)]) if index < PER_EPOCH else torch.empty(0, 6)
        expected = source.tensors[0][torch.tensor(order[epoch][index * runs.BATCH :], dtype=torch.long)]
        good += torch.equal(x, expected) and len(seen) + len(x) == runs.EXAMPLES
    return good, total - 1


def not_finite(count: int, seed: int = 0) -> Tally:
    """NaN or infinity in one element of a batch: nothing changes but the count, or the error says so."""
    draw, good = random.Random(seed), 0
    skipping, raising = make(nonfinite="skip"), make(nonfinite="raise")
    for loop in (skipping, raising):
        loop.run_steps(data(), 3)
    for _ in range(count):
        x, y = next(data().iterate(draw.randrange(5)))
        x[draw.randrange(len(x)), draw.randrange(6)] = draw.choice((float("nan"), float("inf")))
        before = digest([skipping.trainer.state_dict()[key] for key in ("params", "optimizers", "steps")])
        skipping.trainer.train_step(x, y)
        same = before == digest([skipping.trainer.state_dict()[key] for key in ("params", "optimizers", "steps")])
        before = digest(raising.trainer.state_dict())
        try:
            raising.trainer.train_step(x, y)
            named = False
        except NonFiniteError as error:
            named = "nothing was updated" in str(error)
        good += same and named and before == digest(raising.trainer.state_dict())
    return good, count
