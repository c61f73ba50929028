"""Cross-validation: fresh models, figures by hand, and the same result after a stop."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import CheckpointError, Loop, ParamList, ScalarTrainer, ShapedError, ShapeError, losses
from shaped.data import Batches, create_windows, flat_windows
from shaped.errors import CheckpointCorrupt, RunLocked
from shaped.optim import SGD
from shaped.workflow import CrossValidation, CrossValidator, CVConfig, Fold, FoldResult, Purged


class Line(ParamList):
    w: Float[Tensor, " features"]


def loss(p: Line, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return losses.mse(x @ p.w, y)


def table(rows: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return x, x @ torch.tensor([1.0, -2.0, 0.5])


def train(fold: Fold) -> Loop:
    params = Line.init(features=3, seed=fold.seed)
    loop = Loop(
        ScalarTrainer(loss, params, optimizer=SGD(params, lr=0.05)),
        metrics={"mae": lambda p, x, y: (x @ p.w - y).abs().mean()},
    )
    loop.run_epochs(Batches(*fold.train, batch_size=8, seed=fold.seed), 2)
    return loop


def test_every_fold_is_measured_on_its_test_rows_alone() -> None:
    x, y = table()
    seen: list[Fold] = []

    def remember(fold: Fold) -> Loop:
        seen.append(fold)
        return train(fold)

    made = CrossValidator(remember, CVConfig(folds=2)).run(x, y)
    for fold, result in zip(seen, made.folds, strict=True):
        again = train(fold)
        rows = torch.arange(fold.index * 20, fold.index * 20 + 20)
        expected = (x[rows] @ again.trainer.get_params().w.detach() - y[rows]).abs().mean()

        assert torch.equal(fold.test_rows, rows)
        assert torch.equal(fold.train[0], x[fold.train_rows])
        assert set(fold.train_rows.tolist()).isdisjoint(rows.tolist())
        assert (result.train, result.test) == (20, 20)
        assert result.figures["mae"] == pytest.approx(float(expected), rel=1e-6)
    assert len({fold.seed for fold in seen}) == 2


def test_mean_deviation_and_table_are_of_the_folds() -> None:
    made = CrossValidation(
        (FoldResult(0, 8, 2, {"loss": 1.0, "acc": 0.5}), FoldResult(1, 8, 2, {"loss": 3.0, "acc": 0.5}))
    )

    assert made.mean == {"loss": 2.0, "acc": 0.5}
    assert made.deviation == {"loss": pytest.approx(math.sqrt(2)), "acc": 0.0}
    assert str(made) == (
        "fold       train  test   loss  acc\n"
        "0              8     2      1  0.5\n"
        "1              8     2      3  0.5\n"
        "mean                        2  0.5\n"
        "deviation               1.414    0"
    )


def test_a_trainer_or_figures_may_be_returned_in_place_of_a_loop() -> None:
    x, y = table()
    by_trainer = CrossValidator(lambda fold: train(fold).trainer, CVConfig(folds=2)).run(x, y)
    by_figures = CrossValidator(lambda fold: {"rows": len(fold.test_rows)}).run(x, y)

    assert by_trainer.names == ("loss",)
    assert by_figures.mean == {"rows": 8.0}


def test_the_evaluation_in_batches_is_that_of_all_rows() -> None:
    whole, parts = (CrossValidator(train, CVConfig(folds=2), batch_size=size).run(*table()).mean for size in (None, 3))

    assert parts == pytest.approx(whole, rel=1e-5)


def test_global_generators_begin_with_the_folds_seed_and_end_as_they_were() -> None:
    drawn: list[float] = []

    def draw(fold: Fold) -> dict[str, float]:
        drawn.append(torch.rand(()).item())
        return {"x": drawn[-1]}

    before = torch.get_rng_state()
    CrossValidator(draw).run(*table())
    torch.rand(7)
    CrossValidator(draw).run(*table())
    torch.set_rng_state(before)
    torch.rand(7)

    assert drawn[:5] == drawn[5:]
    assert len(set(drawn[:5])) == 5


def test_a_run_that_was_stopped_goes_on_with_the_next_fold_to_the_same_result(tmp_path: Path) -> None:
    splitter = CVConfig(folds=3)
    whole = CrossValidator(train, splitter).run(*table())
    trained: list[int] = []

    def stops(fold: Fold) -> Loop:
        if fold.index == 1 and 1 not in trained:
            trained.append(1)
            raise RuntimeError("stopped")
        trained.append(fold.index)
        return train(fold)

    with pytest.raises(RuntimeError, match="stopped"):
        CrossValidator(stops, splitter, folder=tmp_path).run(*table())
    resumed = CrossValidator(stops, splitter, folder=tmp_path).run(*table())

    assert trained == [0, 1, 1, 2]
    assert resumed == whole


def test_figures_that_are_not_finite_are_kept_too(tmp_path: Path) -> None:
    first, second = (CrossValidator(lambda fold: {"x": math.inf}, folder=tmp_path).run(*table()) for _ in range(2))

    assert first == second


def test_a_folder_of_other_data_or_another_seed_is_refused(tmp_path: Path) -> None:
    x, y = table()
    CrossValidator(lambda fold: {"x": 1.0}, folder=tmp_path).run(x, y)
    for data, seed in (((x, y + 1), 0), ((x, y), 1)):
        with pytest.raises(CheckpointError, match="of other data, another split, seed or batch size"):
            CrossValidator(lambda fold: {"x": 1.0}, folder=tmp_path, seed=seed).run(*data)


def test_a_damaged_result_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    def nested(fold: Fold) -> dict[str, float]:
        CrossValidator(lambda fold: {"x": 1.0}, folder=tmp_path).run(*table())
        return {"x": 1.0}

    with pytest.raises(RunLocked):
        CrossValidator(nested, folder=tmp_path).run(*table())
    CrossValidator(lambda fold: {"x": 1.0}, folder=tmp_path).run(*table())
    (tmp_path / "fold-02" / "result.json").write_text(json.dumps({"fold": 1}))
    with pytest.raises(CheckpointCorrupt, match="fold-02"):
        CrossValidator(lambda fold: {"x": 1.0}, folder=tmp_path).run(*table())


def test_a_model_that_has_seen_the_test_rows_is_refused() -> None:
    params = Line.init(features=3, seed=0)
    with pytest.raises(ShapedError, match="fold 1 went on with another fold's parameters"):
        CrossValidator(lambda fold: ScalarTrainer(loss, params)).run(*table())


def test_overlapping_windows_are_purged_by_their_spans() -> None:
    made = create_windows(torch.randn(60, 3), 5)
    sizes: dict[str, list[int]] = {}

    def count(name: str) -> Any:
        def train(fold: Fold) -> dict[str, float]:
            sizes.setdefault(name, []).append(len(fold.train_rows))
            return {"x": 0.0}

        return train

    CrossValidator(count("plain"), CVConfig(folds=4)).run(made.inputs, made.labels, overlapping=True)
    CrossValidator(count("purged"), CVConfig(folds=4)).run(made.inputs, made.labels, spans=made.spans)

    assert [a - b for a, b in zip(sizes["plain"], sizes["purged"], strict=True)] == [4, 8, 8, 4]


def measured(*tensors: torch.Tensor, config: Any = None, **more: Any) -> int:
    """Folds that were trained."""
    trained: list[int] = []

    def train(fold: Fold) -> dict[str, float]:
        trained.append(fold.index)
        return {"x": 0.0}

    CrossValidator(train, config or CVConfig(folds=3)).run(*tensors, **more)
    return len(trained)


def series_windows(stride: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    series = torch.randint(0, 50, (60, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    return create_windows(series, 6, horizon=1, stride=stride, keep_label=True)


@pytest.mark.parametrize("form", [lambda x: x, flat_windows, lambda x: x.flip(1), lambda x: flat_windows(x).double()])
def test_windows_that_share_moments_across_a_fold_are_refused_without_their_spans(form: Any) -> None:
    made = series_windows()
    with pytest.raises(ShapedError) as caught:
        measured(form(made.inputs), made.labels)

    assert str(caught.value) == (
        "the rows are windows of a series, which share moments with the 5 before them, and fold 0 trains on 5 rows "
        "that share some with its test rows: pass spans= (of create_windows) to purge them, leave a purge_gap of 5 or "
        "more, or pass overlapping=True to measure with the leak"
    )
    assert measured(form(made.inputs), made.labels, spans=made.spans) == 3
    assert measured(form(made.inputs), made.labels, overlapping=True) == 3
    assert measured(form(made.inputs), made.labels, config=CVConfig(folds=3, purge_gap=5)) == 3
    with pytest.raises(ShapedError, match="fold 0 trains on 1 rows"):
        measured(form(made.inputs), made.labels, config=CVConfig(folds=3, purge_gap=4))


def test_rows_that_share_nothing_are_no_windows() -> None:
    made = series_windows(stride=6)
    table = torch.randint(0, 2, (40, 5), generator=torch.Generator().manual_seed(1))

    assert measured(made.inputs, made.labels) == 3
    assert measured(table, table[:, 0]) == 3
    assert measured(torch.ones(12, 4), torch.arange(12)) == 3
    assert measured(torch.arange(12.0)) == 3


class Yields:
    """A splitter with one fold, as it is given."""

    def __init__(self, train: Any, test: Any) -> None:
        self.fold = train, test

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]:
        yield self.fold


def rows(splitter: Any, **options: Any) -> list[tuple[list[int], list[int]]]:
    seen: list[tuple[list[int], list[int]]] = []

    def train(fold: Fold) -> dict[str, float]:
        seen.append((fold.train_rows.tolist(), fold.test_rows.tolist()))
        return {"x": 0.0}

    CrossValidator(train, splitter).run(*table(12), **options)
    return seen


def test_any_splitter_is_accepted_also_one_with_several_test_sets_in_a_fold() -> None:
    combinatorial = Yields(np.arange(4), [np.array([4, 5]), np.array([9])])

    assert rows(combinatorial) == [([0, 1, 2, 3], [4, 5, 9])]
    assert rows(Purged(combinatorial, gap=1)) == [([0, 1, 2], [4, 5, 9])]
    assert rows(Yields([0, 2], [1])) == [([0, 2], [1])]


def test_no_group_is_on_both_sides() -> None:
    groups = torch.arange(12) // 3
    for train, test in rows(CVConfig("group", folds=2), groups=groups):
        assert set(groups[train].tolist()).isdisjoint(groups[test].tolist())


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [2, 3, 1], "fold 0: 2 rows are in training and in test, row 1 first"),
        ([0, 1], [12], "fold 0: test rows are none, or not all within the 12 rows"),
        ([], [1], "fold 0: training rows are torch.float32 of rank 1, not row numbers"),
        ([True, False], [1], "fold 0: training rows are torch.bool of rank 1, not row numbers"),
    ],
)
def test_folds_that_leak_or_are_no_row_numbers_are_refused(train: Any, test: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        rows(Yields(train, test))

    assert str(caught.value) == message


def wrong(value: Any) -> Any:
    """What a type checker would refuse."""
    return value


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: CrossValidator(wrong(3)), ValueError, "train is 3; it is a function"),
        (lambda: CrossValidator(train, wrong(3)), ValueError,
         "splitter is 3; it is a CVConfig, a Splitter or None"),
        (
            lambda: CrossValidator(train).run(wrong(np.zeros((4, 3))), torch.zeros(4)), ValueError,
            "tensors[0] is a ndarray; it is a tensor",
        ),
        (
            lambda: CrossValidator(train).run(torch.zeros(4, 3), torch.zeros(5)), ShapeError,
            "cross-validation takes tensors with the same rows along their first axis: tensors[0] 4, tensors[1] 5",
        ),
        (
            lambda: CrossValidator(lambda fold: wrong(3.0)).run(*table()), ShapedError,
            "fold 0: train returned a float; return the Loop, the ScalarTrainer, or figures by name",
        ),
        (
            lambda: CrossValidator(lambda fold: {f"x{fold.index}": 1.0}).run(*table()), ShapedError,
            "fold 0 has the figures x0, and fold 1 x1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_validated_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        make()

    assert str(caught.value) == message


def test_a_table_has_each_figure_under_its_name_after_a_resume_too(tmp_path: Path) -> None:
    x, y = table()
    CrossValidator(lambda fold: {"b": 1.0, "a": 2.0}, folder=tmp_path).run(x, y)
    (tmp_path / "fold-00" / "result.json").unlink()
    found = CrossValidator(lambda fold: {"b": 1.0, "a": 2.0}, folder=tmp_path).run(x, y)
    rows = [line.split()[-2:] for line in str(found).splitlines()]
    assert rows[0] == ["b", "a"]
    assert rows[1:-1] == [["1", "2"]] * (len(found.folds) + 1)
    swapped = CrossValidator(lambda fold: {"b": 1.0, "a": 2.0} if fold.index else {"a": 2.0, "b": 1.0}).run(x, y)
    assert [line.split()[-2:] for line in str(swapped).splitlines()][2] == ["2", "1"]


def test_a_module_that_goes_on_from_fold_to_fold_is_refused_and_so_is_a_changed_test_set() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 1)

        def forward(self, x: Float[Tensor, "batch 3"]) -> Float[Tensor, " batch"]:
            found: Tensor = self.inner(x)[:, 0]
            return found

    def error(guess: Float[Tensor, " batch"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        return losses.mse(guess, y)

    (x, y), net = table(), Net()
    with pytest.raises(ShapedError, match="fold 1 went on with another fold's parameters"):
        CrossValidator(lambda fold: ScalarTrainer(error, net)).run(x, y)

    def writes(fold: Fold) -> dict[str, float]:
        fold.test[0].zero_()
        return {"loss": 0.0}

    with pytest.raises(ShapedError, match=r"train wrote into fold\.test"):
        CrossValidator(writes).run(x, y)
