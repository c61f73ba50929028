"""Which rows train and which test: one split, or the folds of a cross-validation.

scikit-learn draws the rows; what it lacks is ours: a purge that looks at the rows each window is made of, a gap and an
embargo around any splitter's test rows.

    time series        0 . . . . . . . 10        T test, x train, - purged (gap), = embargo
    gap=1, embargo=2   x x x - T T - = = x x

Anything with `split(X, y, groups)` that yields pairs of row numbers is a splitter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from shaped.arguments import checked, whole
from shaped.errors import ShapedError, ShapeError

Rows = Int64[Tensor, " rows"]
METHODS = ("k_fold", "stratified", "time_series", "group")


@runtime_checkable
class Splitter(Protocol):
    """What scikit-learn calls a splitter: it yields training and test rows, fold by fold."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]: ...


@dataclass(frozen=True)
class Split:
    """Row numbers by purpose; no row is in two of them."""

    train: Rows
    test: Rows
    validation: Rows

    @checked
    def take(self, *tensors: Shaped[Tensor, "rows ..."]) -> tuple[tuple[Tensor, ...], ...]:
        """The rows of some tensors: those for training, for test, and for validation, each as a tuple.

        Raises:
            ShapeError: One of the tensors has too few rows.
        """
        last = max([int(rows.max()) for rows in (self.train, self.test, self.validation) if len(rows)], default=-1)
        for i, t in enumerate(tensors):
            if t.dim() < 1 or len(t) <= last:
                raise ShapeError(f"tensors[{i}] is {list(t.shape)}, and the split has a row {last}")
        return tuple(tuple(t[rows.to(t.device)] for t in tensors) for rows in (self.train, self.test, self.validation))


@checked
def split(
    rows: int | Shaped[Tensor, "rows ..."],
    how: Literal["random", "chronological", "stratified"] = "random",
    *,
    test: float = 0.2,
    validation: float = 0.0,
    labels: Shaped[Tensor, " rows"] | None = None,
    gap: int = 0,
    seed: int = 0,
) -> Split:
    """Split rows once.

    Args:
        rows: How many, or a tensor with the rows along its first axis.
        how: "random"; "chronological", where training comes first, then validation, then test; "stratified", random
            with every class of `labels` in its share.
        test, validation: Shares of all rows. They are rounded up to whole rows.
        labels: Classes, for "stratified".
        gap: Rows left out between the parts of a chronological split.
        seed: Of the order.

    Returns:
        The rows that scikit-learn's `train_test_split` gives for this seed, test first; chronological ones in order.

    Raises:
        ValueError: A share, the method or the gap is out of range, labels are missing or a class is too small.
        ShapedError: scikit-learn is not installed ("random" and "stratified").
    """
    count = len(rows) if isinstance(rows, Tensor) else rows
    if not 0 < test < 1 or not 0 <= validation < 1 or test + validation >= 1:
        raise ValueError(f"test is {test} and validation {validation}; they are shares, and leave some for training")
    if gap < 0 or (gap and how != "chronological"):
        raise ValueError(f"gap is {gap}; it is a whole number of rows between the parts of a chronological split")
    if (labels is None) == (how == "stratified") or (labels is not None and len(labels) != count):
        given = "none" if labels is None else f"{len(labels)} of them"
        raise ValueError(f"labels: {given}; a stratified split takes one for each of the {count} rows, others none")
    sizes = _ceil(test * count), _ceil(validation * count)
    if count - sum(sizes) - gap * (1 + (validation > 0)) < 1:
        raise ValueError(f"{count} rows leave none for training beside {sizes[0]} for test and {sizes[1]} between")
    if how == "chronological":
        return _in_order(count, *sizes, gap)
    rest, tested = _drawn(torch.arange(count), sizes[0], labels, seed)
    if not sizes[1]:
        return Split(rest, tested, rest[:0])
    train, checked = _drawn(rest, sizes[1], labels[rest] if labels is not None else None, seed)
    return Split(train, tested, checked)


def _ceil(share: float) -> int:
    return -int(-share // 1)


def _in_order(count: int, test: int, validation: int, gap: int) -> Split:
    rows = torch.arange(count)
    before_test = count - test - gap
    train = before_test - validation - gap * (validation > 0)
    return Split(rows[:train], rows[count - test :], rows[before_test - validation : before_test])


def _drawn(rows: Tensor, size: int, labels: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    from_sklearn = model_selection().train_test_split
    classes = None if labels is None else labels.cpu().numpy()
    left, taken = from_sklearn(rows.numpy(), test_size=size, random_state=seed, stratify=classes)
    return torch.from_numpy(left), torch.from_numpy(taken)


def model_selection() -> Any:
    """sklearn.model_selection.

    Raises:
        ShapedError: scikit-learn is not installed.
    """
    try:
        import sklearn.model_selection
    except ImportError:
        raise ShapedError('splits come with scikit-learn: pip install "shaped-trainer[recipes]"') from None
    return sklearn.model_selection


def fold_rows(number: int, train: Any, test: Any, count: int) -> tuple[Rows, Rows]:
    """What a splitter yielded, as row numbers; several test sets (skfolio's combinatorial folds) count as one.

    Raises:
        ValueError: They are no numbers of the `count` rows, or some row is in both.
    """
    parts = (
        [torch.as_tensor(x) for x in test] if isinstance(test, list | tuple) and len(test) else [torch.as_tensor(test)]
    )
    rows, tested = torch.as_tensor(train), torch.cat([part.reshape(-1) for part in parts])
    for name, found in (("training", rows), ("test", tested)):
        if found.dtype.is_floating_point or found.dtype == torch.bool or found.dim() != 1:
            raise ValueError(f"fold {number}: {name} rows are {found.dtype} of rank {found.dim()}, not row numbers")
        if not len(found) or int(found.min()) < 0 or int(found.max()) >= count:
            raise ValueError(f"fold {number}: {name} rows are none, or not all within the {count} rows")
    both = set(rows.tolist()) & set(tested.tolist())
    if both:
        raise ValueError(f"fold {number}: {len(both)} rows are in training and in test, row {min(both)} first")
    return rows.long(), tested.long()


@checked
@dataclass(frozen=True)
class CVConfig:
    """How cross-validation splits, as plain data.

    Attributes:
        method: "k_fold"; "stratified"; "time_series", where training comes before test; "group", where no group is on
            both sides.
        folds: How many.
        purge_gap: Rows left out of training on both sides of test rows.
        embargo: Further rows left out after test rows.
        test_size: Test rows in a fold of "time_series"; None divides the rows evenly.
        shuffle: Shuffle rows before "k_fold" and "stratified" divide them. Not with a gap or an embargo, which would
            then leave next to nothing.
        seed: Of the shuffle.

    Raises:
        ValueError: There is no such method, a number is out of range, or two of them exclude each other.
    """

    method: Literal["k_fold", "stratified", "time_series", "group"] = "k_fold"
    folds: int = 5
    purge_gap: int = 0
    embargo: int = 0
    test_size: int | None = None
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole("folds", self.folds, 2)
        whole("purge_gap", self.purge_gap, 0)
        whole("embargo", self.embargo, 0)
        if self.test_size is not None:
            whole("test_size", self.test_size, 1)
        if self.test_size is not None and self.method != "time_series":
            raise ValueError(f"test_size is of time_series; the method is {self.method!r}")
        if self.shuffle and (self.purge_gap or self.embargo or self.method in ("time_series", "group")):
            raise ValueError("shuffle is of k_fold and stratified without purge_gap and embargo")

    @checked
    def splitter(self, spans: Int64[Tensor, "rows 2"] | None = None) -> Splitter:
        """A splitter as this says, purged where a gap, an embargo or `spans` ask for it.

        Raises:
            ShapedError: scikit-learn is not installed.
        """
        sklearn, order = (
            model_selection(),
            {"shuffle": self.shuffle, "random_state": self.seed if self.shuffle else None},
        )
        made: Splitter = {
            "k_fold": lambda: sklearn.KFold(self.folds, **order),
            "stratified": lambda: sklearn.StratifiedKFold(self.folds, **order),
            "time_series": lambda: sklearn.TimeSeriesSplit(self.folds, test_size=self.test_size),
            "group": lambda: sklearn.GroupKFold(self.folds),
        }[self.method]()
        if not (self.purge_gap or self.embargo) and spans is None:
            return made
        return Purged(made, gap=self.purge_gap, embargo=self.embargo, spans=spans)


class Purged:
    """A splitter whose training rows keep away from its test rows.

    A training row stays if the rows of the series that it is made of neither overlap with those of a test row, nor lie
    within `gap` of them, nor begin within `gap + embargo` after them.

    Args:
        splitter: Which rows are test, and which may train.
        gap: Rows left out on both sides of test rows.
        embargo: Further rows left out after test rows: what follows them may be correlated with them.
        spans: First and last row of the series that each row is made of (`WindowSet.spans`); by default itself alone.

    Raises:
        ValueError: A number is negative. ShapeError: `spans` is no [rows, 2] of whole numbers in order.

    Source: López de Prado 2018, Advances in Financial Machine Learning, chapter 7.
    """

    @checked
    def __init__(
        self, splitter: Splitter, *, gap: int = 0, embargo: int = 0, spans: Int64[Tensor, "rows 2"] | None = None
    ) -> None:
        whole("gap", gap, 0)
        whole("embargo", embargo, 0)
        if spans is not None:
            _check_spans(spans)
        self.splitter, self.gap, self.embargo, self.spans = splitter, gap, embargo, spans

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """How many folds there are, as the inner splitter says."""
        return int(self.splitter.get_n_splits(X, y, groups))  # type: ignore[attr-defined]

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]:
        """Yield training and test rows of each fold, as numpy arrays.

        Raises:
            ShapeError: There are not as many spans as rows. ValueError: A purge leaves no row for training.
        """
        spans = torch.arange(len(X))[:, None].expand(-1, 2) if self.spans is None else self.spans.cpu()
        if len(spans) != len(X):
            raise ShapeError(f"there are {len(spans)} spans for {len(X)} rows")
        for number, (train, test) in enumerate(self.splitter.split(X, y, groups)):
            rows, tested = fold_rows(number, train, test, len(X))
            kept = rows[~self._near(spans[rows], spans[tested])]
            if not len(kept):
                raise ValueError(f"fold {number}: the purge leaves none of {len(rows)} rows for training")
            yield kept.numpy(), tested.numpy()

    def _near(self, spans: Tensor, tested: Tensor) -> Tensor:
        """Which spans overlap with a test span that is widened by gap and embargo; both ends belong to a span."""
        if not len(tested):
            return torch.zeros(len(spans), dtype=torch.bool)
        least = min(int(spans.min()), int(tested.min()) - self.gap) if len(spans) else int(tested.min()) - self.gap
        most = max(int(spans.max()) if len(spans) else 0, int(tested.max()) + self.gap + self.embargo)
        opened = torch.zeros(most - least + 2, dtype=torch.int64)
        ones = torch.ones(len(tested), dtype=torch.int64)
        opened.index_add_(0, tested[:, 0] - self.gap - least, ones)
        opened.index_add_(0, tested[:, 1] + self.gap + self.embargo + 1 - least, -ones)
        covered = torch.cat([torch.zeros(1, dtype=torch.int64), (opened.cumsum(0) > 0).cumsum(0)])
        return covered[spans[:, 1] - least + 1] > covered[spans[:, 0] - least]


def _check_spans(spans: Tensor) -> None:
    whole = isinstance(spans, Tensor) and spans.dim() == 2 and spans.shape[1] == 2 and spans.dtype == torch.int64
    if not whole or bool((spans[:, 0] > spans[:, 1]).any()):
        raise ShapeError("spans are int64 [rows, 2]: the first and the last row of the series that each row is made of")
