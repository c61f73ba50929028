"""What data keeps and moves beside its generators is saved and put back, so that a resumed run sees the same rows."""

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from shaped import StateError
from shaped.checkpoint import generator_states, set_generator_states
from shaped.checkpoint.codec import from_json, join, split, to_json
from shaped.data import Feed

N = 11
ROWS: Any = torch.arange(float(N))


class CountsEpochs(Sampler[int]):
    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        return iter(torch.randperm(N, generator=generator).tolist())

    def __len__(self) -> int:
        return N


class Shuffles(CountsEpochs):
    """Again and again in place: a list, an array and a tensor."""

    def __init__(self) -> None:
        self.items, self.array, self.tensor = list(range(N)), np.arange(N), torch.arange(N)

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.items)
        np.random.shuffle(self.array)
        self.tensor = self.tensor[torch.randperm(N)]
        sums = zip(self.items, self.array.tolist(), self.tensor.tolist(), strict=True)
        return iter([sum(row) % N for row in sums])


class MadeLate(Dataset[Tensor]):
    def __init__(self) -> None:
        self.order: Any = None

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Tensor:
        if self.order is None:
            self.order = torch.randperm(N)
        return ROWS[self.order[i]]


class Cursor:
    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(4):
            self.at += 1
            yield ROWS[self.at % N]


class Resets:
    """A generator that draws its next epoch where it is reset."""

    def __init__(self) -> None:
        self.generator = random.Random(2)
        self.reset()

    def reset(self) -> None:
        self.items = iter([self.generator.randrange(N) for _ in range(4)])

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        return ROWS[next(self.items)]


def stateful(sampler: Any) -> Any:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torch for all that it has
        return loaders.StatefulDataLoader(ROWS, batch_size=3, sampler=sampler)


def of_nodes() -> Any:
    nodes = pytest.importorskip("torchdata.nodes")
    sampler = RandomSampler(ROWS, generator=torch.Generator().manual_seed(1))
    return nodes.Loader(
        nodes.Mapper(nodes.Batcher(nodes.SamplerWrapper(sampler), 3, drop_last=False), ROWS.__getitem__)
    )


DATA: dict[str, Callable[[], Any]] = {
    "counts its epochs": lambda: DataLoader(ROWS, batch_size=3, sampler=CountsEpochs()),
    "shuffles in place": lambda: DataLoader(ROWS, batch_size=3, sampler=Shuffles()),
    "makes an order late": lambda: DataLoader(MadeLate(), batch_size=3),
    "a place": Cursor,
    "a list that is shuffled between epochs": lambda: [ROWS[i : i + 3] for i in range(0, N, 3)],
    "a generator that is reset": Resets,
    "torchdata, torch's sampler": lambda: stateful(RandomSampler(ROWS)),
    "torchdata, torch's weighted sampler": lambda: stateful(WeightedRandomSampler(ROWS.tolist(), N)),
    "torchdata's nodes": of_nodes,
}


def seen(feed: Feed, count: int) -> list[list[float]]:
    """The next batches; between epochs a list is shuffled, as a hook would."""
    rows: list[list[float]] = []
    while len(rows) < count:
        batch = feed.next()
        if batch is not None:
            rows.append(batch.inputs[0].reshape(-1).tolist())
            continue
        feed.next_epoch()
        if type(feed.data) is list:
            random.shuffle(feed.data)
    return rows


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("stop", [1, 3, 4, 6, 9])
@pytest.mark.filterwarnings("error:the run goes on with other data")
def test_what_data_moves_is_put_back(kind: str, stop: int) -> None:
    def begun(seed: int, state: Any = None) -> Feed:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return Feed(DATA[kind](), state)

    whole = begun(0)
    straight = seen(whole, 13)
    first = begun(0)
    before = seen(first, stop)
    data, tensors = split({"feed": first.state_dict(), "generators": generator_states()})
    state = join(from_json(to_json(data)), tensors)
    again = begun(1, state["feed"])
    set_generator_states(state["generators"])

    assert before + seen(again, 13 - stop) == straight


def test_what_has_not_moved_is_the_scripts_own() -> None:
    sampler = CountsEpochs()
    sampler.width = 3  # type: ignore[attr-defined]
    feed = Feed(DataLoader(ROWS, batch_size=3, sampler=sampler))
    seen(feed, 5)
    other = CountsEpochs()
    other.width = 5  # type: ignore[attr-defined]
    again = Feed(DataLoader(ROWS, batch_size=3, sampler=other), feed.state_dict())
    seen(again, 1)

    assert (other.width, other.epoch) == (5, 2)  # type: ignore[attr-defined]


def test_what_is_too_large_to_be_saved_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaped.data.moving._LARGEST", 64)
    feed = Feed(DataLoader(ROWS, batch_size=3, sampler=Shuffles()))
    seen(feed, 3)
    with pytest.warns(UserWarning, match=r"data.sampler.items changes while .*, and its 88 bytes are too many"):
        feed.state_dict()
    feed.state_dict()


def test_a_sampler_that_a_stateful_loader_would_begin_twice_is_refused() -> None:
    class Draws(CountsEpochs):
        def __init__(self) -> None:
            self.generator = np.random.default_rng(0)

        def __iter__(self) -> Iterator[int]:
            return iter(self.generator.permutation(N).tolist())

    with pytest.raises(StateError, match="begins its sampler twice where a run goes on, and Draws"):
        Feed(stateful(Draws())).check_savable()
    Feed(stateful(CountsEpochs())).check_savable()


def test_set_epoch_of_a_sampler_within_a_batch_sampler_is_called() -> None:
    sampler = DistributedSampler(ROWS, num_replicas=1, rank=0)  # type: ignore[arg-type, var-annotated]
    feed = Feed(DataLoader(ROWS, batch_sampler=BatchSampler(sampler, 3, drop_last=False)))  # type: ignore[arg-type]
    rows = seen(feed, 8)

    assert rows[:4] != rows[4:]
