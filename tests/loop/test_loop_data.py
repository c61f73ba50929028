"""What a loop goes over: any data, once each, whatever fails in between."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from shaped import ShapeError
from shaped.data import Batch, Batches, DataError, prefetch
from shaped.loop import Loop
from tests.loop.small_loops import LIST, make
from tests.models import batch


class Counted:
    """A generator that can begin again."""

    def __init__(self) -> None:
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        self.resets += 1
        self._batches = iter(LIST)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)


def test_a_generator_is_one_epoch_unless_it_has_reset():
    counted, loop = Counted(), make()
    loop.run_epochs(counted, 3)

    assert (loop.step, counted.resets) == (18, 3)
    with pytest.raises(
        DataError, match="a generator is one epoch and is used up: pass a list, a function of the epoch"
    ):
        make().run_epochs((b for b in LIST), 2)


def test_set_epoch_of_data_of_its_sampler_and_of_its_data_set_is_called():
    class Epochs:
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    class Sampler(Epochs, torch.utils.data.SequentialSampler): ...

    class Rows(Epochs, TensorDataset): ...

    data = Rows(torch.randn(12, 6), torch.randint(0, 3, (12,)))
    sampler = Sampler(data)
    make().run_epochs(DataLoader(data, batch_size=5, sampler=sampler), 3)

    assert sampler.epochs == data.epochs == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data is a int: pass an iterable of batches, or a function of the epoch"),
        ([], "the data gave no batch in epoch 0"),
        ([{1: 1}], "batch 0 of epoch 0 is a dict; a batch is a tensor, a tuple of tensors, a mapping from names of "
         "inputs to tensors, or shaped.data.Batch(inputs, spec)"),
        ([(torch.zeros(2, 6), [1, 2])], "batch 0 of epoch 0 is a tuple of Tensor, list; a batch is a tensor, a tuple "
         "of tensors, a mapping from names of inputs to tensors, or shaped.data.Batch(inputs, spec)"),
        ([Batch(batch(), spec="other")], "a batch has the spec 'other', and the loop has [None]: Loop(specs=...)"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_named(data: Any, message: str):
    with pytest.raises(DataError) as caught:
        make().run_epochs(data, 1)

    assert str(caught.value) == message


def test_an_error_in_the_data_names_the_batch_and_keeps_the_steps_before():
    def data() -> Iterator[Any]:
        yield from LIST[:2]
        raise OSError("no such file")

    loop = make()
    with pytest.raises(OSError, match="no such file") as caught:
        loop.run_steps(data(), 5)

    assert caught.value.__notes__ == ["in the data, at batch 2 of epoch 0 (step 3)"]
    assert loop.step == 2


def test_a_batch_that_does_not_fit_changes_nothing_and_is_not_counted():
    loop = make()
    with pytest.raises(ShapeError):
        loop.run_steps([LIST[0], (torch.zeros(2, 5), torch.zeros(2).long())], 2)

    assert loop.step == 1
    assert loop.state_dict()["position"]["index"] == 1


def test_a_batch_whose_step_failed_comes_again_whatever_the_data_is():
    class Flaky(Exception):
        pass

    for data in (LIST, iter(LIST)):
        seen: list[Tensor] = []
        loop = make()
        failing = [2]

        def take(x: Tensor, y: Tensor, loop: Loop = loop, seen: Any = seen, failing: Any = failing) -> Tensor:
            if len(seen) in failing:
                failing.clear()
                raise Flaky
            seen.append(x)
            return loop.trainer.train_step(x, y)

        loop = Loop(loop.trainer, take)
        with pytest.raises(Flaky):
            loop.run_steps(data, 4)
        loop.run_steps(data, 3)

        assert all(torch.equal(a, b[0]) for a, b in zip(seen, LIST, strict=False))
        assert len(seen) == 5


class Crashing(torch.utils.data.Dataset[Any]):
    """An example that takes its worker down, once."""

    def __init__(self, flag: str) -> None:
        self.flag = Path(flag)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index == 7 and not self.flag.exists():
            self.flag.touch()
            time.sleep(0.5)  # so that the loop waits: torch raises the error wherever the main thread is
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((6,), float(index)), index % 3


def test_a_worker_that_dies_loses_no_example(tmp_path: Path):
    seen: list[float] = []
    loop = make()
    loop.on_step(lambda loop: seen.extend(loop.batch.inputs[0][:, 0].tolist()))
    data = DataLoader(Crashing(str(tmp_path / "flag")), batch_size=3, num_workers=1, prefetch_factor=1)
    with pytest.raises(RuntimeError, match="worker") as caught:
        loop.run_epochs(data, 1)
    assert "in the data, at batch 2 of epoch 0 (step 3)" in caught.value.__notes__
    assert loop.step == 2
    loop.run_epochs(data, 1)

    assert seen == list(range(12))


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: prefetch(d, depth=3)], ids=["plain", "prefetch"])
def test_batches_are_a_function_of_seed_epoch_and_index(wrap: Any):
    x = torch.arange(10.0)
    data = Batches(x, batch_size=4, seed=3)

    assert [sorted(torch.cat([b[0] for b in data.iterate(e)]).tolist()) for e in (0, 1)] == [x.tolist()] * 2
    assert data.order(0).tolist() != data.order(1).tolist() != Batches(x, batch_size=4, seed=4).order(1).tolist()
    for start in range(3):
        part = [b.inputs if isinstance(b, Batch) else b for b in wrap(data).iterate(1, start)]
        expected = list(data.iterate(1))[start:]
        assert [p[0].tolist() for p in part] == [e[0].tolist() for e in expected]
