"""Data in chunks, providers of what is there already, and tables from what people have."""

import gc
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch.utils.data import DataLoader, TensorDataset

from shaped import ShapedError
from shaped.data import Batches, DataError
from shaped.workflow import BatchConfig, ChunkedData, DataProvider, GivenData, TableProvider, as_table
from shaped.workflow.registry import data
from tests.workflow.loops import TRAINING, fresh_loop, values

BATCHES = list(TRAINING)


def in_chunks(index: int) -> Any:
    return None if index == 3 else BATCHES[:2] if index == 0 else [] if index == 1 else BATCHES[2:]


# -- chunks ----------------------------------------------------------------------------------------------------------


def test_chunks_give_their_batches_in_order_and_empty_ones_are_passed_over() -> None:
    chunked = ChunkedData(in_chunks)

    assert [x.data_ptr() for x, _ in chunked.iterate(0)] == [x.data_ptr() for x, _ in BATCHES]
    assert [x.data_ptr() for x, _ in chunked.iterate(0, 3)] == [BATCHES[3][0].data_ptr()]


def test_one_chunk_is_in_memory() -> None:
    class Chunk(list[Any]):
        pass

    alive: list[weakref.ref[Chunk]] = []

    def load(index: int) -> Any:
        gc.collect()
        assert [ref for ref in alive if ref() is not None] == []
        if index == 3:
            return None
        chunk = Chunk([(torch.full((2,), float(index)),)] * 2)
        alive.append(weakref.ref(chunk))
        return chunk

    assert [x[0,].item() for (x,) in ChunkedData(load).iterate(0)] == [0, 0, 1, 1, 2, 2]
    assert len(alive) == 3


def test_an_error_is_raised_where_its_batch_would_come_and_a_reset_forgets_it() -> None:
    broken = [True]

    def load(index: int) -> Any:
        if index == 2 and broken:
            broken.pop()
            raise OSError("the disk is gone")
        return in_chunks(index)

    chunked = ChunkedData(load)
    assert [next(chunked), next(chunked)] == BATCHES[:2]
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(chunked)

    assert caught.value.__notes__ == ["in chunk 2"]
    assert chunked.error is caught.value
    assert list(chunked) == []
    chunked.reset()
    assert len(list(chunked)) == 4
    assert chunked.error is None


def test_closed_chunks_load_nothing_and_close_once() -> None:
    closed: list[int] = []
    chunked = ChunkedData(in_chunks, close=lambda: closed.append(1))
    next(chunked)
    chunked.close()
    chunked.close()

    assert closed == [1]
    assert list(chunked) == []
    with pytest.raises(DataError, match="the data is closed"):
        list(chunked.iterate(0))
    with pytest.raises(ValueError, match="load is a list; it is a function"):
        ChunkedData([])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a chunk is a int: return a list of batches"):
        list(ChunkedData(lambda index: 3).iterate(0))


def test_a_loop_goes_over_chunks_and_resumes_in_the_middle_of_one() -> None:
    def load(index: int) -> Any:
        rows = [slice(0, 40), slice(40, 80)]
        x, y = TRAINING.tensors
        return Batches(x[rows[index]], y[rows[index]], batch_size=10, seed=index) if index < 2 else None

    whole = fresh_loop()
    whole.run_epochs(ChunkedData(load), 2)
    expected = values(whole)
    first = fresh_loop()
    first.run_steps(ChunkedData(load), 5)
    state = first.state_dict()
    second = fresh_loop(seed=9)
    second.load_state_dict(state)
    second.run_to_step(ChunkedData(load), 16)

    assert values(second) == expected


# -- providers -------------------------------------------------------------------------------------------------------


def test_lists_and_loaders_are_providers_data_as_they_are() -> None:
    closed: list[int] = []
    loader: Any = DataLoader(TensorDataset(*TRAINING.tensors), batch_size=8)
    given = GivenData(loader, BATCHES, {"sizes": {"pixels": 6}}, close=lambda: closed.append(1))

    assert isinstance(given, DataProvider)
    assert given.training_data(BatchConfig()) is loader
    assert given.validation_data(BatchConfig()) is BATCHES
    assert given.metadata == {"sizes": {"pixels": 6}}
    given.close()
    given.close()
    assert closed == [1]
    with pytest.raises(DataError, match="the provider is closed"):
        given.training_data(BatchConfig())


def test_a_table_is_read_from_frames_arrays_tensors_and_datasets() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "kind": ["y", "x", "y"]})
    table = as_table(frame, "kind")
    bunch = as_table(load_breast_cancer())

    assert (table.features, table.classes, table.y.tolist()) == (("a", "b"), ("x", "y"), [1, 0, 1])
    assert table.x.tolist() == [[1.0, 0.5], [2.0, 1.5], [3.0, 2.5]]
    assert table.sizes == {"features": 2, "classes": 2}
    assert (bunch.sizes, bunch.classes, len(bunch)) == ({"features": 30, "classes": 2}, ("malignant", "benign"), 569)
    assert torch.equal(bunch.y, torch.from_numpy(load_breast_cancer().target))
    assert as_table(frame[["a"]], frame["b"]).classes == ()
    assert as_table(np.eye(3), [5, 7, 5]).y.tolist() == [0, 1, 0]
    assert as_table(torch.eye(3), torch.tensor([0.5, 1.0, 2.0])).y.dtype == torch.float32
    assert as_table(load_diabetes()).sizes == {"features": 10}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: as_table(pd.DataFrame({"a": ["x"], "b": [1]}), "b"),
            "columns that are not numeric: a; encode or drop",
        ),
        (lambda: as_table(pd.DataFrame({"a": [np.nan], "b": [1]}), "b"), "missing or infinite values in a"),
        (lambda: as_table(pd.DataFrame({"age": [1]}), "agee"), "no column `agee`; did you mean `age`"),
        (lambda: as_table(np.eye(3), [1, 2]), r"features are \[3, 3\] and the target \[2\]"),
        (lambda: as_table(np.eye(2), [1.0, float("nan")]), "the target has missing values"),
        (lambda: as_table(np.eye(2), [[1], [2]]), "the target has values of list"),
        (lambda: as_table(np.eye(2)), "the table has no target"),
        (
            lambda: TableProvider(as_table(np.eye(4), [0, 1, 0, 1]), validation=[0], training=[0, 1]),
            "1 rows are in both",
        ),
        (
            lambda: TableProvider(as_table(np.eye(4), [0, 1, 0, 1]), validation=[4]),
            "validation names row 4; there are 4",
        ),
        (lambda: TableProvider(as_table(np.eye(2), [0, 1]), validation=[0, 1]), "no rows are left to train on"),
        (lambda: TableProvider(as_table(np.eye(2), [0, 1]), validation=[0, 0]), "validation has rows twice"),
    ],
)
def test_a_table_that_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make()


def test_a_table_is_standardized_by_its_training_rows_alone() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    x[:, 2] = 7.0
    provider = TableProvider(as_table(x, torch.arange(50) % 2), validation=list(range(40, 50)))
    seen = torch.cat([a for a, _ in provider.training_data(BatchConfig(batch_size=7))])

    assert len(provider.training_data(BatchConfig(batch_size=7))) == 6
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0)[:2], torch.ones(2))
    validation = provider.validation_data(BatchConfig())
    assert validation is not None
    expected = (x[40:] - x[:40].mean(0)) / torch.cat([x[:40, :2].std(0, correction=0), torch.ones(1)])
    torch.testing.assert_close(next(iter(validation))[0], expected, atol=1e-5, rtol=1e-5)


def test_numbers_far_from_0_are_refused_rather_than_all_made_one() -> None:
    seconds = 1_700_000_000.0 + np.arange(50)
    narrow = "float32 cannot tell the values of {} apart, as they lie far from 0: subtract an origin"

    with pytest.raises(DataError, match=narrow.format("at")):
        as_table(pd.DataFrame({"at": seconds, "b": seconds % 7}), seconds % 2 > 0)
    with pytest.raises(DataError, match=narrow.format("column 0")):
        as_table(np.stack([seconds.astype(int), seconds.astype(int) % 3], 1), seconds % 2 > 0)
    with pytest.raises(DataError, match="float32 cannot tell the targets apart"):
        as_table(np.eye(50), seconds)
    noisy = 0.1 + 1e-17 * np.arange(50)  # one number but for rounding
    assert as_table(np.stack([noisy * 3 - noisy * 2, seconds - seconds[0]], 1), seconds % 2 > 0).x[-1, 1] == 49


def test_a_table_keeps_none_of_its_owners_memory() -> None:
    features, targets = torch.ones(4, 2), torch.ones(4)
    table = as_table(features, targets)
    features.zero_()
    targets.zero_()

    assert table.x.all()
    assert table.y.all()


def test_a_share_of_each_class_is_held_out_and_the_rest_is_trained_on() -> None:
    provider = data.get("iris")(validation=0.2, seed=3)
    table = provider.table

    assert torch.bincount(table.y[provider.validation]).tolist() == [10, 10, 10]
    assert sorted([*provider.training.tolist(), *provider.validation.tolist()]) == list(range(150))
    assert provider.metadata["training_rows"] == 120
    assert data.get("iris")(validation=0.0).validation_data(BatchConfig()) is None
    provider.close()
    with pytest.raises(DataError, match="the provider is closed"):
        provider.training_data(BatchConfig())


def test_every_dataset_by_name_has_the_sizes_it_says() -> None:
    for name in data:
        provider = data.get(name)()
        x, y = next(iter(provider.training_data(BatchConfig(batch_size=4))))

        assert x.shape == (4, provider.metadata["sizes"]["features"])
        assert y.is_floating_point() == ("classes" not in provider.metadata["sizes"])
        with pytest.raises(TypeError):
            data.get(name)(shuffled=True)
    with pytest.raises(ShapedError, match="did you mean `wine`"):
        data.get("wines")


def test_a_whole_number_is_a_share_and_never_a_row() -> None:
    table = as_table(torch.arange(20.0).view(10, 2), torch.tensor([0, 1] * 5))
    nothing: Any = (0, 0.0, torch.tensor(0.0), np.float32(0))
    for none in nothing:
        assert len(TableProvider(table, validation=none).validation) == 0
    assert len(TableProvider(table, validation=torch.tensor(0.25)).validation) == 3
    for wrong in (1, 1.0, -0.5):
        with pytest.raises(ValueError, match="a share is below 1; rows are a list"):
            TableProvider(table, validation=wrong)
    for rows in (True, None, [0.2, 1.7], torch.tensor([False] * 9 + [True])):
        with pytest.raises(DataError, match="validation is "):
            TableProvider(table, validation=rows)  # type: ignore[arg-type]


def test_a_column_that_is_there_twice_or_by_another_kind_of_name_is_named() -> None:
    twice = pd.DataFrame([[1.0, 0, 1], [2.0, 1, 1]], columns=["a", "y", "y"])
    with pytest.raises(DataError, match="the table has 2 columns named `y`"):
        as_table(twice, "y")
    numbered = pd.DataFrame({0: [1.0, 2.0], 1: [0, 1]})
    with pytest.raises(DataError, match="no column `1`; there is 1, an int"):
        as_table(numbered, "1")
    assert as_table(numbered, 1).y.tolist() == [0, 1]
    missing = pd.DataFrame({"a": [1.0, 2.0], "y": pd.array([0, None], dtype="Int64")})
    with pytest.raises(DataError, match="the target has missing values"):
        as_table(missing, "y")
    assert as_table(pd.DataFrame({"data": [1.0, 2.0], "target": [0, 1]}), "target").features == ("data",)
