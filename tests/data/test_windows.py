"""Windows: labels outside of them, the rows that each is made of, sizes from text, and the form that a model takes."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer, ShapeError, SignatureError, prove
from shaped.data import create_windows, dispatch, flat_windows, last_rows, parse_window_sizes, single_windows


def numbered(time: int, features: int) -> Tensor:
    """Each value tells its row (the whole part) and its column (hundredths)."""
    return torch.arange(time, dtype=torch.float64)[:, None] + torch.arange(features, dtype=torch.float64) / 100


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, Any]:
    window, horizon = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    time, features = draw(st.integers(window + horizon, 20)), draw(st.integers(2, 4))
    label, stride = draw(st.integers(-features, features - 1)), draw(st.integers(1, 4))
    return {
        "time": time, "features": features, "window": window, "horizon": horizon, "label": label, "stride": stride
    }  # fmt: skip


@given(cuts(), st.booleans())
def test_windows_are_those_of_a_plain_loop(cut: dict[str, Any], keep: bool) -> None:
    time, features, window, horizon, label, stride = cut.values()
    data = numbered(time, features)
    made = create_windows(data, window, label=label, horizon=horizon, stride=stride, keep_label=keep)
    columns = [i for i in range(features) if keep or i != label % features]
    starts = range(0, time - window - horizon + 1, stride)

    assert torch.equal(made.inputs, torch.stack([data[s : s + window][:, columns] for s in starts]))
    assert torch.equal(made.labels, torch.stack([data[s + window - 1 + horizon, label] for s in starts]))
    assert made.spans.tolist() == [[s, s + window - 1 + horizon] for s in starts]


@given(cuts())
def test_the_label_of_a_window_is_not_inside_it(cut: dict[str, Any]) -> None:
    time, features, window, horizon, label, stride = cut.values()
    data = numbered(time, features)
    out = create_windows(data, window, label=label, horizon=horizon, stride=stride)
    past = create_windows(data, window, label=label, horizon=horizon + 1, stride=stride, keep_label=True) \
        if time > window + horizon else out  # fmt: skip

    assert not any((inside == own).any() for inside, own in zip(out.inputs, out.labels, strict=True))
    assert not any((inside == own).any() for inside, own in zip(past.inputs, past.labels, strict=True))


def test_a_kept_label_without_a_horizon_is_the_last_value_of_its_window() -> None:
    made = create_windows(numbered(9, 2), 3, keep_label=True)

    assert torch.equal(made.inputs[:, -1, -1], made.labels)


def test_labels_of_their_own_keep_their_dtype_and_all_columns_stay() -> None:
    made = create_windows(numbered(6, 2), 2, label=torch.arange(6), horizon=1)

    assert made.inputs.shape == (4, 2, 2)
    assert (made.labels.tolist(), made.labels.dtype) == ([2, 3, 4, 5], torch.int64)
    assert repr(made) == "WindowSet(4 windows of 2 rows and 2 features)"
    assert len(made) == 4


def test_windows_share_one_copy_of_the_series_and_none_with_its_owner() -> None:
    data = numbered(1000, 2)
    made = create_windows(data, 100)
    data.zero_()

    assert made.inputs.untyped_storage().nbytes() == 1000 * 8
    assert made.inputs[0, 5, 0] == 5


@pytest.mark.parametrize(
    ("data", "arguments", "kind", "message"),
    [
        (numbered(4, 2), {"window": 0}, ValueError, "window is 0; it is a whole number of at least 1"),
        (numbered(4, 2), {"window": 2, "horizon": -1}, ValueError, "horizon is -1; it is a whole number of at least 0"),
        (numbered(4, 2), {"window": 2, "stride": 0}, ValueError, "stride is 0; it is a whole number of at least 1"),
        (numbered(4, 2), {"window": 2, "label": 2}, ValueError, "label is column 2, and data has 2"),
        (
            numbered(4, 2), {"window": 3, "horizon": 2}, ShapeError,
            "no window of 3 rows with a label 2 rows later fits in 4 rows of data",
        ),
        (
            numbered(4, 1), {"window": 2}, ShapeError,
            "data has no column but the label's, and that is kept out of the windows: pass keep_label=True with a "
            "horizon of at least 1 to predict a series from its own past",
        ),
        (
            torch.zeros(4), {"window": 2}, ShapeError,
            "create_windows breaks its signature in its one entry.\n"
            '  data: expected Float "time features" = (time, features), got float32 (4,)\n      rank 1 instead of 2',
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(data: Tensor, arguments: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        create_windows(data, **arguments)

    assert str(caught.value) == message


def test_labels_of_another_length_are_refused_with_both_lengths() -> None:
    with pytest.raises(ShapeError, match=r"axis time is 4, set by data \(4, 2\)"):
        create_windows(numbered(4, 2), 2, label=torch.arange(3))


def test_window_sizes_are_read_from_text() -> None:
    assert parse_window_sizes("5, 10,20") == (5, 10, 20)
    assert parse_window_sizes(" 7 ") == (7,)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "entry 1 is ''"),
        ("5,,10", "entry 2 is ''"),
        ("5, ten, 2.5", "entry 2 is 'ten'; entry 3 is '2.5'"),
        ("0,-3", "entry 1 is '0'; entry 2 is '-3'"),
        ("5,10,5", "5 is there 2 times"),
    ],
)
def test_wrong_window_sizes_are_named(text: str, wrong: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_window_sizes(text)

    assert str(caught.value) == (f"window sizes {text!r}: {wrong}. Sizes are whole numbers of at least 1: '5, 10,20'")


class Flat(ParamList):
    w: Float[Tensor, " features"]


def flat_loss(p: Flat, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w - y).square().mean()


def windowed(x: Float[Tensor, "batch window features"]) -> Float[Tensor, " batch"]:
    return x.mean((1, 2))


def test_a_flat_model_gets_all_rows_of_a_window_or_the_last() -> None:
    x = torch.randn(4, 3, 2)

    assert torch.equal(dispatch(flat_loss, x), x.reshape(4, 6))
    assert torch.equal(dispatch(flat_loss, x, flat="last"), x[:, -1])
    assert dispatch(flat_loss, x[:, 0]).shape == (4, 2)


def test_a_windowed_model_gets_rows_as_windows_of_length_1() -> None:
    x = torch.randn(4, 2)

    assert torch.equal(dispatch(windowed, x), x[:, None])
    assert dispatch(windowed, x.view(4, 1, 2)).shape == (4, 1, 2)


def test_a_trainer_tells_the_form_that_its_loss_takes() -> None:
    trainer = ScalarTrainer(flat_loss, Flat.init(features=6, seed=0))
    x = dispatch(trainer, torch.randn(4, 3, 2))

    assert trainer.forward(x, torch.zeros(4)).shape == ()


@pytest.mark.smoke
def test_the_forms_are_proved_for_all_sizes() -> None:
    assert [prove(form).conditions for form in (flat_windows, last_rows, single_windows)] == [(), (), ()]


def test_a_model_or_batch_of_neither_form_is_refused() -> None:
    def series(x: Float[Tensor, " time"]) -> Float[Tensor, ""]:
        return x.sum()

    with pytest.raises(SignatureError) as model:
        dispatch(series, torch.zeros(2, 2))
    with pytest.raises(ShapeError) as batch:
        dispatch(windowed, torch.zeros(2))
    with pytest.raises(ValueError, match="flat is 'first'; it is 'all' or 'last'"):
        dispatch(windowed, torch.zeros(2, 2), flat="first")  # type: ignore[arg-type]

    assert str(model.value) == (
        "`series` takes x : [time]; a flat model takes [batch, features], a windowed one [batch, window, features]"
    )
    assert str(batch.value) == ("the batch is of rank 1; dispatch takes [batch, features] or [batch, window, features]")
