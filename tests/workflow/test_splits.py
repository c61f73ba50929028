"""Splits: scikit-learn's own rows, and training rows that keep away from test rows."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import model_selection
from torch import Tensor

from shaped import ShapedError, ShapeError
from shaped.data import create_windows
from shaped.workflow import CVConfig, Purged, split


def folds(splitter: Any, count: int, y: Any = None, groups: Any = None) -> list[tuple[list[int], list[int]]]:
    return [(list(a), list(b)) for a, b in splitter.split(np.zeros((count, 1)), y, groups)]


@given(count=st.integers(5, 200), test=st.floats(0.05, 0.7), seed=st.integers(0, 1000))
def test_a_random_split_is_that_of_scikit_learn(count: int, test: float, seed: int) -> None:
    made = split(count, test=test, seed=seed)
    train, tested = model_selection.train_test_split(np.arange(count), test_size=test, random_state=seed)

    assert (made.train.tolist(), made.test.tolist()) == (train.tolist(), tested.tolist())
    assert len(made.validation) == 0


@given(count=st.integers(20, 200), seed=st.integers(0, 1000))
def test_a_stratified_split_is_that_of_scikit_learn(count: int, seed: int) -> None:
    labels = torch.arange(count) % 3
    made = split(count, "stratified", test=0.3, labels=labels, seed=seed)
    train, tested = model_selection.train_test_split(
        np.arange(count), test_size=0.3, random_state=seed, stratify=labels.numpy()
    )

    assert (made.train.tolist(), made.test.tolist()) == (train.tolist(), tested.tolist())


@given(
    how=st.sampled_from(["random", "chronological", "stratified"]),
    count=st.integers(30, 120),
    test=st.floats(0.1, 0.4),
    validation=st.floats(0.1, 0.4),
)
def test_the_parts_of_a_split_are_disjoint_and_complete(how: Any, count: int, test: float, validation: float) -> None:
    labels = torch.arange(count) % 2 if how == "stratified" else None
    made = split(torch.zeros(count, 2), how, test=test, validation=validation, labels=labels)
    together = torch.cat([made.train, made.test, made.validation])

    assert sorted(together.tolist()) == list(range(count))
    assert len(made.test) == -int(-test * count // 1)


@given(count=st.integers(30, 120), gap=st.integers(0, 5))
def test_a_chronological_split_trains_before_it_validates_before_it_tests(count: int, gap: int) -> None:
    made = split(count, "chronological", test=0.2, validation=0.2, gap=gap)

    assert made.train.tolist() == list(range(len(made.train)))
    assert made.validation[0] - made.train[-1] == made.test[0] - made.validation[-1] == gap + 1
    assert made.test[-1] == count - 1


def test_a_split_takes_its_rows_of_every_tensor() -> None:
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    train, test, validation = split(10, "chronological", test=0.2, validation=0.1).take(x, y)

    assert [part[1].tolist() for part in (train, validation, test)] == [list(range(7)), [7], [8, 9]]
    assert test[0].flatten().tolist() == [8, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "shuffled"}, "how is 'shuffled'; it is 'random', 'chronological' or 'stratified'"),
        ({"test": 0.0}, "test is 0.0 and validation 0.0; they are shares, and leave some for training"),
        ({"test": 0.5, "validation": 0.5},
         "test is 0.5 and validation 0.5; they are shares, and leave some for training"),
        ({"gap": 1}, "gap is 1; it is a whole number of rows between the parts of a chronological split"),
        (
            {"how": "stratified"},
            "labels: none; a stratified split takes one for each of the 10 rows, others none",
        ),
        (
            {"how": "chronological", "gap": 9},
            "10 rows leave none for training beside 2 for test and 0 between",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        split(10, **arguments)

    assert str(caught.value) == message


# -- folds -------------------------------------------------------------------------------------------------------------

LABELS = np.arange(60) % 3
GROUPS = np.arange(60) // 7


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (CVConfig(), model_selection.KFold(5)),
        (CVConfig(folds=3, shuffle=True, seed=7), model_selection.KFold(3, shuffle=True, random_state=7)),
        (CVConfig("stratified"), model_selection.StratifiedKFold(5)),
        (CVConfig("stratified", 4, shuffle=True, seed=1),
         model_selection.StratifiedKFold(4, shuffle=True, random_state=1)),
        (CVConfig("time_series", 4), model_selection.TimeSeriesSplit(4)),
        (CVConfig("time_series", 4, test_size=6), model_selection.TimeSeriesSplit(4, test_size=6)),
        (CVConfig("time_series", 4, purge_gap=3), model_selection.TimeSeriesSplit(4, gap=3)),
        (CVConfig("group", 4), model_selection.GroupKFold(4)),
    ],
)  # fmt: skip
def test_the_folds_are_those_of_scikit_learn(config: CVConfig, theirs: Any) -> None:
    groups = GROUPS if config.method == "group" else None  # the others warn that they take none

    assert folds(config.splitter(), 60, LABELS, groups) == folds(theirs, 60, LABELS, groups)


@given(
    count=st.integers(20, 80), gap=st.integers(0, 3), embargo=st.integers(0, 4),
    method=st.sampled_from(["k_fold", "time_series"]),
)  # fmt: skip
def test_no_training_row_lies_within_gap_or_embargo_of_a_test_row(
    count: int, gap: int, embargo: int, method: Any
) -> None:
    config = CVConfig(method, 3, purge_gap=gap, embargo=embargo)
    plain = folds(CVConfig(method, 3).splitter(), count)
    for (train, test), (before, same) in zip(folds(config.splitter(), count), plain, strict=True):
        near = {i for i in before if any(-gap <= i - j <= gap + embargo for j in test)}

        assert test == same
        assert train == [i for i in before if i not in near]


@given(
    count=st.integers(40, 80), window=st.integers(1, 6), horizon=st.integers(0, 3), stride=st.integers(1, 3),
    gap=st.integers(0, 2), shuffle=st.booleans(),
)  # fmt: skip
def test_no_row_of_the_series_is_in_windows_of_both_sides(
    count: int, window: int, horizon: int, stride: int, gap: int, shuffle: bool
) -> None:
    spans = create_windows(torch.zeros(count, 2), window, horizon=horizon, stride=stride).spans
    inner = model_selection.KFold(4, shuffle=shuffle, random_state=0 if shuffle else None)
    made: list[tuple[list[int], list[int]]] = []
    with suppress(ValueError):  # a purge may leave no row, which is refused
        made = folds(Purged(inner, gap=gap, spans=spans), len(spans))
    for train, test in made:
        used = {row for i in train for row in range(spans[i, 0], spans[i, 1] + 1)}
        tested = {row for i in test for row in range(int(spans[i, 0]) - gap, int(spans[i, 1]) + gap + 1)}

        assert not used & tested


def test_any_object_with_split_is_a_splitter_and_may_be_purged() -> None:
    class Halves:
        def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[list[int], list[int]]]:
            half = len(X) // 2
            yield list(range(half)), list(range(half, len(X)))
            yield list(range(half, len(X))), list(range(half))

    made = folds(Purged(Halves(), gap=1, embargo=2), 10)

    assert made == [([0, 1, 2, 3], [5, 6, 7, 8, 9]), ([8, 9], [0, 1, 2, 3, 4])]


def test_a_purged_splitter_says_how_many_folds_there_are() -> None:
    assert Purged(model_selection.KFold(4), gap=1).get_n_splits() == 4


def bad_spans() -> Tensor:
    return torch.tensor([[3, 2]])


def wrong(value: Any) -> Any:
    """What a type checker would refuse."""
    return value


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: CVConfig(wrong("kfold")), ValueError,
         "method is 'kfold'; it is 'k_fold', 'stratified', 'time_series' or 'group'"),
        (lambda: CVConfig(folds=1), ValueError, "folds is 1; it is a whole number of at least 2"),
        (lambda: CVConfig(embargo=-1), ValueError, "embargo is -1; it is a whole number of at least 0"),
        (lambda: CVConfig(test_size=3), ValueError, "test_size is of time_series; the method is 'k_fold'"),
        (lambda: CVConfig(shuffle=True, purge_gap=1), ValueError,
         "shuffle is of k_fold and stratified without purge_gap and embargo"),
        (lambda: Purged(wrong(3)), ValueError, "splitter is 3; it is a Splitter"),
        (lambda: Purged(model_selection.KFold(2), gap=-1), ValueError, "gap is -1; it is a whole number of at least 0"),
        (
            lambda: Purged(model_selection.KFold(2), spans=bad_spans()), ShapeError,
            "spans are int64 [rows, 2]: the first and the last row of the series that each row is made of",
        ),
        (
            lambda: folds(Purged(model_selection.KFold(2), spans=torch.zeros(3, 2, dtype=torch.int64)), 4), ShapeError,
            "there are 3 spans for 4 rows",
        ),
        (
            lambda: folds(Purged(model_selection.KFold(2), gap=5), 10), ValueError,
            "fold 0: the purge leaves none of 5 rows for training",
        ),
    ],
)  # fmt: skip
def test_a_wrong_way_to_split_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        make()

    assert str(caught.value) == message


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ShapedError) as caught:
        split(10)

    assert str(caught.value) == 'splits come with scikit-learn: pip install "shaped-trainer[recipes]"'
