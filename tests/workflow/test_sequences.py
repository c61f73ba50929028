"""Sequences of eras: what each strategy shows, and that it is a function of seed and epoch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shaped.data import DataError
from shaped.workflow import SequenceProvider
from tests.workflow.loops import TRAINING, fresh_loop, values

ERAS = st.lists(st.integers(0, 12), min_size=1, max_size=40)


def test_consecutive_sequences_cover_every_era_once_in_order() -> None:
    provider = SequenceProvider(["b", "a", "c", "d", "a"], max_length=3)

    assert provider.sequences() == [("a", "b", "c"), ("d",)]
    assert [rows.tolist() for rows in provider.rows()] == [[1, 4, 0, 2], [3]]
    assert provider.sequences(5) == provider.sequences()


@given(ERAS, st.sampled_from(["random", "curriculum"]), st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_drawn_sequences_are_stretches_of_neighbouring_eras(
    eras: list[int], strategy: Any, longest: int, count: int, epoch: int
) -> None:
    provider = SequenceProvider(eras, strategy=strategy, max_length=longest, count=count, epochs=5, seed=epoch)
    names = sorted(set(eras))
    found = provider.sequences(epoch)

    assert len(found) == len(provider) == count
    for sequence, rows in zip(found, provider.rows(epoch), strict=True):
        start = names.index(sequence[0])
        assert list(sequence) == names[start : start + len(sequence)]
        assert 1 <= len(sequence) <= longest
        assert [eras[i] for i in rows] == sorted(e for e in eras if e in sequence)


def test_lengths_and_starts_are_uniform() -> None:
    provider = SequenceProvider(range(6), strategy="random", max_length=3, count=6000, seed=1)
    found = provider.sequences()
    lengths = [sum(len(s) == n for s in found) for n in (1, 2, 3)]
    starts = [sum(s == (i,) for s in found) for i in range(6)]

    assert all(abs(n - 2000) < 5 * (6000 * 2 / 9) ** 0.5 for n in lengths)  # five standard deviations
    assert all(abs(n - 333) < 5 * (6000 * 17 / 18**2) ** 0.5 for n in starts)


def test_the_curriculum_goes_from_one_era_to_any_length() -> None:
    provider = SequenceProvider(range(20), strategy="curriculum", max_length=5, count=300, epochs=5)
    longest = [max(map(len, provider.sequences(epoch))) for epoch in range(7)]

    assert longest == [1, 2, 3, 4, 5, 5, 5]


def test_sequences_are_a_function_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> Any:
        torch.rand(1)
        return SequenceProvider(range(30), strategy="random", count=8, seed=seed).sequences(epoch)

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(2, 1)
    assert drawn(1, 2) != drawn(1, 3)


def test_the_last_eras_validate_and_no_row_is_on_both_sides() -> None:
    eras = [i // 3 for i in range(30)]
    training, validation = SequenceProvider(eras, strategy="random", count=50, max_length=3).split(2, gap=1)

    assert (training.names, validation.names) == ((0, 1, 2, 3, 4, 5, 6), (8, 9))
    assert validation.sequences() == [(8, 9)]
    assert torch.cat(validation.rows()).tolist() == list(range(24, 30))
    assert int(torch.cat(training.rows()).max()) < 21
    again, held = training.split(2)
    assert (again.names, held.names) == ((0, 1, 2, 3, 4), (5, 6))
    assert torch.cat(held.rows()).tolist() == list(range(15, 21))
    with pytest.raises(ValueError, match="of 10 eras, 9 to validate and a gap of 1 leave 0"):
        SequenceProvider(eras).split(9, gap=1)
    with pytest.raises(ValueError, match=r"last is 1.5; it is a whole number"):
        SequenceProvider(eras).split(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed is 'a'; it is a whole number"):
        SequenceProvider(eras, seed="a")  # type: ignore[arg-type]


def test_a_loop_trains_on_sequences_and_resumes_between_them() -> None:
    x, y = TRAINING.tensors
    data = SequenceProvider([i // 4 for i in range(80)], strategy="curriculum", count=4, epochs=3).batches(x, y)
    whole = fresh_loop()
    whole.run_epochs(data, 3)
    expected = values(whole)
    first = fresh_loop()
    first.run_steps(data, 4)
    first.run_to_step(data, 6)
    state = first.state_dict()
    second = fresh_loop(seed=9)
    second.load_state_dict(state)
    second.run_to_step(data, 12)

    assert values(second) == expected


def test_what_cannot_be_is_refused() -> None:
    for wrong, said in (
        ({"strategy": "hard"}, "strategy is 'hard'; it is 'consecutive', 'random' or 'curriculum'"),
        ({"max_length": 0}, "max_length is 0; it is a whole number of at least 1"),
        ({"count": True}, "count is True"),
    ):
        with pytest.raises(ValueError, match=said):
            SequenceProvider([1, 2], **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there are no eras"):
        SequenceProvider([])
    with pytest.raises(DataError, match=r"a tensor is \[3\], and 2 rows have an era"):
        SequenceProvider([1, 2]).batches(torch.zeros(3))


@pytest.mark.parametrize(
    ("eras", "said"),
    [
        ([1.0, float("nan")], "rows without an era: 1, row 1 among them"),
        (np.array(["NaT", "2020-01-01"], dtype="datetime64[ns]"), "rows without an era: 1, row 0"),
        ([None, 1], "rows without an era"),
        ([1, "a"], "the eras have no order"),
        ([[1], [2]], "the eras have no order"),
    ],
)
def test_rows_without_a_time_or_an_order_are_refused(eras: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        SequenceProvider(eras)
