"""Random state that the data keeps: a resumed run sees the rows that the uninterrupted one sees, in its order."""

import gc
import os
import random
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Generator, Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

from shaped import Checkpoints, Loop, ScalarTrainer, StateError
from shaped.checkpoint.codec import from_json, join, split, to_json
from shaped.data import Batches, prefetch
from shaped.data.kept import generator_states_of, generators_of, put_back
from shaped.optim import AdamW
from tests.models import mlp, mlp_loss

ROWS = TensorDataset(torch.arange(16.0)[:, None].expand(16, 6).contiguous() / 16, torch.arange(16) % 3)


def seeded(seed: int = 7) -> Generator:
    return Generator().manual_seed(seed)


class Shuffled(Sampler[int]):
    """With Python's generator, and drawn row by row."""

    def __init__(self) -> None:
        self.random = random.Random(3)

    def __iter__(self) -> Iterator[int]:
        left = list(range(16))
        while left:
            yield left.pop(self.random.randrange(len(left)))

    def __len__(self) -> int:
        return 16


class Noisy(Dataset[Any]):
    """Adds noise by a generator of NumPy of its own."""

    def __init__(self) -> None:
        self.generator = numpy.random.default_rng(1)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return ROWS[index][0] + 1e-3 * self.generator.random(), ROWS[index][1]


class Stream(IterableDataset[Any]):
    def __init__(self) -> None:
        self.generator = numpy.random.RandomState(4)

    def __iter__(self) -> Iterator[Any]:
        for index in self.generator.permutation(16):
            yield ROWS[int(index)]


class Stateful:
    """As torchdata's loader: says where it is, and goes on from there when it is next gone over."""

    def __init__(self) -> None:
        self.epoch, self.at = 0, 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(16, generator=seeded(self.epoch))
        while self.at < 4:
            rows = order[4 * self.at : 4 * self.at + 4]
            self.at += 1
            yield ROWS.tensors[0][rows], ROWS.tensors[1][rows]
        self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.at = state.pop("epoch"), state.pop("at")


def of_a_function() -> Any:
    generator = seeded()

    def epoch(number: int) -> Any:
        return [tuple(t[rows] for t in ROWS.tensors) for rows in torch.randperm(16, generator=generator).split(4)]

    return epoch


def of_a_lambda() -> Any:
    generator = random.Random(5)
    return lambda epoch: [tuple(t[[i]] for t in ROWS.tensors) for i in generator.sample(range(16), 16)]


KINDS: dict[str, Callable[[], Any]] = {
    "loader's generator": lambda: DataLoader(ROWS, 4, shuffle=True, generator=seeded()),
    "sampler's generator": lambda: DataLoader(ROWS, 4, sampler=RandomSampler(ROWS, generator=seeded())),
    "batch sampler's": lambda: DataLoader(
        ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS, generator=seeded()), 4, False)
    ),
    "Python's in a sampler": lambda: DataLoader(ROWS, 4, sampler=Shuffled()),
    "two workers": lambda: DataLoader(ROWS, 4, sampler=Shuffled(), num_workers=2, generator=seeded()),
    "NumPy's in a data set": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=seeded()),
    "NumPy's in a stream": lambda: DataLoader(Stream(), 4),
    "prefetched": lambda: prefetch(DataLoader(ROWS, 4, shuffle=True, generator=seeded())),
    "a function of the epoch": of_a_function,
    "a lambda": of_a_lambda,
    "stateful": Stateful,
    "batches": lambda: Batches(*ROWS.tensors, batch_size=4, seed=1),
}


@cache
def trainer() -> ScalarTrainer:
    """One for all loops: what is looked at is the data."""
    params = mlp()
    return ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.05))


def job(seen: list[Any]) -> Loop:
    loop = Loop(trainer(), signals=False)

    def note(loop: Loop) -> None:
        assert loop.batch is not None
        seen.append(loop.batch.inputs[0][:, 0].tolist())

    loop.on_step(note)
    return loop


@pytest.mark.parametrize(
    ("kind", "stop"),
    [  # processes take seconds to start: with the others once
        pytest.param(kind, stop, marks=[pytest.mark.slow] if kind == "two workers" and stop != 6 else [])
        for kind in KINDS
        for stop in (3, 4, 6)
    ],
)
def test_a_resumed_run_sees_the_rows_of_the_uninterrupted_one(kind: str, stop: int, tmp_path: Path) -> None:
    rows: list[Any] = []
    torch.manual_seed(0)
    job(rows).run_to_step(KINDS[kind](), 13)
    first: list[Any] = []
    loop = job(first)
    checkpoints = loop.attach(Checkpoints(tmp_path))
    torch.manual_seed(0)
    loop.run_to_step(KINDS[kind](), stop)
    checkpoints.close()
    second: list[Any] = []
    again = job(second)
    torch.manual_seed(99)
    Checkpoints(tmp_path).resume(again)
    again.run_to_step(KINDS[kind](), 13)

    assert first + second == rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torchdatas_loader_works_as_it_is(workers: int, tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    KINDS["torchdata"] = lambda: stateful.StatefulDataLoader(
        ROWS, 4, shuffle=True, generator=seeded(), num_workers=workers
    )
    try:
        for stop in (3, 4, 6):
            test_a_resumed_run_sees_the_rows_of_the_uninterrupted_one("torchdata", stop, tmp_path / str(stop))
    finally:
        del KINDS["torchdata"]


class Queued:
    """As a DataLoader's iterator with workers: tells its queue of the end while the queue's own end has not come."""

    def __init__(self, told: list[bool]) -> None:
        self._queue = set[int]()
        self._ended, self._told = weakref.finalize(self._queue, int), told

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return ROWS[:4]

    def __del__(self) -> None:
        self._told.append(self._ended.alive)


def test_an_epoch_that_is_left_ends_in_order_when_its_loop_is_dropped() -> None:
    told: list[bool] = []
    loop = job([])
    loop.on_step(lambda _, loop=loop: None)  # a cycle
    loop.run_steps(lambda _: Queued(told), 1)
    assert not told
    del loop
    gc.collect()

    assert told == [True]


def test_workers_that_live_through_epochs_are_refused_where_the_run_is_saved(tmp_path: Path) -> None:
    data = DataLoader(ROWS, 4, num_workers=1, persistent_workers=True)
    loop = job([])
    loop.attach(Checkpoints(tmp_path))
    with pytest.raises(StateError, match="persistent_workers=False"):
        loop.run_epochs(data, 1)
    unsaved = job([])
    unsaved.run_epochs(data, 1)
    with pytest.raises(StateError, match="persistent_workers=False"):
        unsaved.state_dict()

    assert loop.step == 0


def test_a_batch_of_stateful_data_whose_step_failed_comes_again_after_a_resume() -> None:
    rows: list[Any] = []
    job(rows).run_to_step(Stateful(), 6)
    seen: list[Any] = []
    loop = job(seen)
    loop.run_to_step(Stateful(), 2)
    data = Stateful()
    broken = Loop(loop.trainer, lambda x, y: (_ for _ in ()).throw(RuntimeError("a broken cable")), signals=False)
    broken.load_state_dict(loop.state_dict())
    with pytest.raises(RuntimeError, match="a broken cable"):
        broken.run_to_step(data, 6)
    again = job(seen)
    again.load_state_dict(broken.state_dict())
    again.run_to_step(Stateful(), 6)

    assert seen == rows


def test_all_kinds_of_generators_are_put_back_where_they_were() -> None:
    kinds = [seeded(), random.Random(1), numpy.random.RandomState(2)]
    kinds += [numpy.random.Generator(kind(3)) for kind in (numpy.random.PCG64, numpy.random.MT19937,
                                                           numpy.random.Philox, numpy.random.SFC64)]  # fmt: skip
    data = {"nested": [kinds], "global": [torch.default_generator, random.SystemRandom()]}

    def drawn(generator: Any) -> Any:
        if isinstance(generator, Generator):
            return torch.rand(3, generator=generator).tolist()
        return generator.gauss(0, 1) if isinstance(generator, random.Random) else generator.normal(size=3).tolist()

    def draw() -> list[Any]:
        return [drawn(generator) for generator in kinds]

    draw()
    plain, tensors = split(generator_states_of(data))
    states = join(from_json(to_json(plain)), tensors)
    before = draw()
    put_back(data, states)

    assert draw() == before
    assert len(generators_of(data)) == 7


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: Batches(*ROWS.tensors, batch_size=8, seed=1), "batch_size was 4, and is 8"),
        (lambda: Batches(*ROWS.tensors, batch_size=4, seed=2), "seed was 1, and is 2"),
        (lambda: Batches(ROWS.tensors[0] + 1, ROWS.tensors[1], batch_size=4, seed=1), "other values"),
        (lambda: DataLoader(ROWS, 4), "of epoch 0 is not the one that was trained on"),
    ],
)
@pytest.mark.parametrize("stop", [2, 4])
def test_other_data_batch_size_or_seed_is_said(other: Any, said: str, stop: int, tmp_path: Path) -> None:
    loop = job([])
    checkpoints = loop.attach(Checkpoints(tmp_path))
    loop.run_steps(KINDS["batches"](), stop)
    checkpoints.close()
    again = job([])
    Checkpoints(tmp_path).resume(again)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        again.run_to_step(other(), 5)

    assert any(said in str(w.message) and "other data than it was saved with" in str(w.message) for w in found)


def test_a_generators_other_seed_is_said() -> None:
    first, second = job([]), job([])
    first.run_steps(KINDS["loader's generator"](), 3)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="seed of data.generator was 7, and is 8"):
        second.run_to_step(DataLoader(ROWS, 4, shuffle=True, generator=seeded(8)), 5)


def test_another_batch_before_the_next_is_said_whatever_the_data_is() -> None:
    first, second = job([]), job([])
    batches = list(KINDS["batches"]())
    first.run_steps(iter(batches), 3)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="batch 2 of epoch 0 is not the one that was trained on"):
        second.run_to_step(iter([*batches[:2], batches[3], batches[3]]), 4)


class Killed(Dataset[Any]):
    """Its worker is killed by the kernel at a batch that is asked for when the first has come, not before."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        if index == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return ROWS[index % 16]


@pytest.mark.parametrize("where", ["step", "hook"])
def test_a_worker_that_is_killed_keeps_no_whole_step_from_being_saved(where: str, tmp_path: Path) -> None:
    def slowly(x: Tensor, y: Tensor) -> Tensor:
        if where == "step":
            for _ in range(30):
                time.sleep(0.01)
        return trainer().train_step(x, y)

    loop = Loop(trainer(), slowly, signals=False)

    def slow_hook(loop: Loop) -> None:
        for _ in range(30 if where == "hook" else 0):
            time.sleep(0.01)

    loop.on_step(slow_hook)
    checkpoints = loop.attach(Checkpoints(tmp_path))
    with pytest.raises(RuntimeError, match="worker") as caught:
        loop.run_epochs(DataLoader(Killed(), 4, num_workers=2, prefetch_factor=2), 1)

    assert checkpoints.steps() == [loop.step]
    assert 1 <= loop.step <= 4
    assert any("the run up to here is saved" in note for note in caught.value.__notes__)
    assert "signal_handling" in getattr(signal.getsignal(signal.SIGCHLD), "__module__", "")
