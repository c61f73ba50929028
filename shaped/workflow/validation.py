"""Cross-validation: a fresh model for each fold, trained by a function of the user's, measured on rows it has not seen.

A fold is a function of its rows and its seed alone. So folds that a stopped run has finished are read from its folder,
and the result is the same as without the stop.
"""

import math
import os
import random
import statistics
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from shaped import files
from shaped.arguments import checked
from shaped.checkpoint import generators_kept
from shaped.checkpoint.codec import from_json, join, split
from shaped.checkpoint.files import write_small
from shaped.checkpoint.lock import Lock
from shaped.data import Batches
from shaped.data.batches import mixed
from shaped.errors import CheckpointCorrupt, CheckpointError, ShapedError, ShapeError, brief, columns
from shaped.loop import Loop
from shaped.metrics import evaluate
from shaped.trainer import ScalarTrainer
from shaped.workflow.overlaps import reach_of_windows, sharing
from shaped.workflow.splits import CVConfig, Purged, Splitter, fold_rows

Trained = Loop | ScalarTrainer | Mapping[str, float]


@dataclass(frozen=True)
class Fold:
    """What a model is trained on, and with what seed.

    Attributes:
        index: From 0.
        train, test: The rows of each tensor that was given, in the splitter's order.
        train_rows, test_rows: Their numbers.
        seed: Another one for each fold. Global generators begin with it too.
        folder: Of this fold alone, for checkpoints; None where the validator has no folder.
    """

    index: int
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    train_rows: Int64[Tensor, " train"]
    test_rows: Int64[Tensor, " test"]
    seed: int
    folder: Path | None


@dataclass(frozen=True)
class FoldResult:
    """The figures of one fold, by name, and how many rows it had."""

    index: int
    train: int
    test: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class CrossValidation:
    """The folds' figures, their mean and their deviation; print it for a table."""

    folds: tuple[FoldResult, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The figures' names, in order."""
        return tuple(self.folds[0].figures)

    @property
    def mean(self) -> dict[str, float]:
        """Mean over folds, each with the same weight."""
        return {name: statistics.fmean(self._column(name)) for name in self.names}

    @property
    def deviation(self) -> dict[str, float]:
        """Standard deviation between folds (over n - 1); NaN for a single one."""
        columns = {name: self._column(name) for name in self.names}
        return {name: statistics.stdev(c) if len(c) > 1 else math.nan for name, c in columns.items()}

    def _column(self, name: str) -> list[float]:
        return [fold.figures[name] for fold in self.folds]

    def __str__(self) -> str:
        rows = [
            [str(f.index), str(f.train), str(f.test), *(brief(f.figures[name]) for name in self.names)]
            for f in self.folds
        ]
        rows += [["mean", "", "", *map(brief, self.mean.values())]]
        rows += [["deviation", "", "", *map(brief, self.deviation.values())]]
        return "\n".join(columns([["fold", "train", "test", *self.names], *rows], left=1))


class CrossValidator:
    """Trains and measures a fresh model for each fold.

        def train(fold):
            trainer = ScalarTrainer(loss, Net.init(..., seed=fold.seed), optimizer=...)
            loop = Loop(trainer, metrics={"accuracy": ...})
            loop.run_epochs(Batches(*fold.train, batch_size=32, seed=fold.seed), 20)
            return loop

        print(CrossValidator(train, CVConfig("stratified", folds=5)).run(x, y))

    Args:
        train: From a `Fold` to a Loop or a ScalarTrainer, which are evaluated on `fold.test` (loss, and the loop's
            metrics), or to figures by name.
        splitter: A CVConfig, or anything with `split(X, y, groups)`.
        seed: Of the folds' seeds.
        batch_size: Test rows in a batch of the evaluation; None takes all at once, as a loss needs that is no mean over
            rows.
        folder: Where finished folds are kept, and read when the same run is started again. What `train` does is not
            compared: with another function take another folder.

    Raises:
        ValueError: An argument is of another kind.
    """

    @checked
    def __init__(
        self,
        train: Callable[[Fold], Trained],
        splitter: CVConfig | Splitter | None = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        folder: str | Path | None = None,
    ) -> None:
        splitter = CVConfig() if splitter is None else splitter
        self.train, self.splitter, self.seed, self.batch_size = train, splitter, seed, batch_size
        self.folder = None if folder is None else Path(folder)

    @checked
    def run(
        self,
        *tensors: Shaped[Tensor, "rows ..."],
        labels: Shaped[Tensor, " rows"] | None = None,
        groups: Shaped[Tensor, " rows"] | None = None,
        spans: Int64[Tensor, "rows 2"] | None = None,
        overlapping: bool = False,
    ) -> CrossValidation:
        """Train and measure every fold.

        Args:
            tensors: The data, rows along the first axis; a fold has its rows of each.
            labels: What the splitter stratifies by; the last of `tensors` by default.
            groups: For a splitter that keeps groups together.
            spans: First and last row of the series that each row is made of (`WindowSet.spans`): training rows that
                overlap with test rows are purged.
            overlapping: Let a fold train on windows that hold rows of its test windows, as without `spans` it may.

        Raises:
            ShapeError: Tensors differ in their first axis. ShapedError: Rows are windows of a series, without `spans`
            and with rows of it on both sides of a fold. A model was trained in two folds, or figures
            differ between folds. CheckpointError: The folder is of another run. ValueError: The splitter refuses.
        """
        if not tensors or len({len(t) for t in (*tensors, *_given(labels, groups, spans))}) > 1:
            beside = {"labels": labels, "groups": groups, "spans": spans}
            rows = {f"tensors[{i}]": t for i, t in enumerate(tensors)} | {
                n: t for n, t in beside.items() if t is not None
            }
            said = ", ".join(f"{name} {len(t)}" for name, t in rows.items()) or "there are none"
            raise ShapeError(f"cross-validation takes tensors with the same rows along their first axis: {said}")
        if not len(tensors[0]):
            raise ShapeError("cross-validation has no rows")
        folds = list(self._folds(tensors, labels if labels is not None else tensors[-1], groups, spans))
        if spans is None and not overlapping and getattr(self.splitter, "spans", None) is None:
            _refuse_sharing(tensors, folds)
        results: list[FoldResult] = []
        models: set[StorageWeakRef] = set()
        with self._owned():
            for fold in folds:
                results.append(self._kept(fold) or self._measure(fold, models))
                if set(results[-1].figures) != set(results[0].figures):
                    names = [", ".join(r.figures) for r in (results[0], results[-1])]
                    raise ShapedError(f"fold 0 has the figures {names[0]}, and fold {fold.index} {names[1]}")
        return CrossValidation(tuple(results))

    def _folds(
        self, tensors: Sequence[Tensor], labels: Tensor, groups: Tensor | None, spans: Tensor | None
    ) -> Iterator[Fold]:
        splitter = self.splitter
        if isinstance(splitter, CVConfig):
            splitter = splitter.splitter(spans)
        elif spans is not None:
            splitter = Purged(splitter, spans=spans)
        outer = torch.zeros(len(tensors[0]), 1).numpy()  # splitters want to know how many rows there are
        y, by = (None if t is None else t.detach().cpu().numpy() for t in (labels, groups))
        for index, (train, test) in enumerate(splitter.split(outer, y, by)):
            a, b = fold_rows(index, train, test, len(outer))
            parts = [tuple(t[rows.to(t.device)] for t in tensors) for rows in (a, b)]
            folder = None if self.folder is None else self.folder / f"fold-{index:02d}"
            yield Fold(index, parts[0], parts[1], a, b, mixed(self.seed, index), folder)

    def _measure(self, fold: Fold, models: set[StorageWeakRef]) -> FoldResult:
        if fold.folder is not None:
            fold.folder.mkdir(exist_ok=True)
        with generators_kept():
            _seed_all(fold.seed)
            before = [t._version for t in fold.test]
            trained = self.train(fold)
        if [t._version for t in fold.test] != before:
            raise ShapedError(f"fold {fold.index}: train wrote into fold.test, by which the model is measured")
        if isinstance(trained, Loop | ScalarTrainer):
            trainer = trained.trainer if isinstance(trained, Loop) else trained
            memory = {StorageWeakRef(t.untyped_storage()) for t in trainer.params if t.requires_grad}
            if memory & models:  # a frozen base may be shared
                raise ShapedError(
                    f"fold {fold.index} went on with another fold's parameters, which have seen its test rows: make "
                    "them anew in the function, for example with init(seed=fold.seed)"
                )
            models |= memory
            size = len(fold.test_rows) if self.batch_size is None else self.batch_size
            data = Batches(*fold.test, batch_size=size, shuffle=False)
            figures = evaluate(trainer, data, trained.metrics if isinstance(trained, Loop) else None)
        elif isinstance(trained, Mapping):
            figures = {str(name): float(value) for name, value in trained.items()}
        else:
            raise ShapedError(
                f"fold {fold.index}: train returned a {type(trained).__name__}; return the Loop, the ScalarTrainer, or "
                "figures by name"
            )
        result = FoldResult(fold.index, len(fold.train_rows), len(fold.test_rows), figures)
        if fold.folder is not None:
            data_, _ = split({"fold": self._about(fold), "figures": [list(pair) for pair in figures.items()]})
            write_small(fold.folder / "result.json", data_)
        return result

    # -- finished folds --------------------------------------------------------------------------------------------

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Keep a second process out of the folder."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder)
        try:
            yield
        finally:
            lock.release()

    def _about(self, fold: Fold) -> dict[str, Any]:
        return {"batch_size": self.batch_size, **_fingerprint(fold)}

    def _kept(self, fold: Fold) -> FoldResult | None:
        """The result of a fold that is finished already."""
        path = None if fold.folder is None else fold.folder / "result.json"
        if path is None or not os.path.lexists(path):
            return None
        try:
            found = join(from_json(files.read(path)), {})
            figures = {str(name): float(value) for name, value in found["figures"]}
            same = found["fold"] == self._about(fold)
        except (files.NotRegular, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointCorrupt(f"{path}: {error}; remove it to train the fold again") from None
        if not same:
            raise CheckpointError(f"{path} is of other data, another split, seed or batch size: choose another folder")
        return FoldResult(fold.index, len(fold.train_rows), len(fold.test_rows), figures)


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _refuse_sharing(tensors: Sequence[Tensor], folds: Sequence[Fold]) -> None:
    """Raise ShapedError where rows are windows of a series, and a fold has the same moments on both sides."""
    reach = max(map(reach_of_windows, tensors))
    for fold in folds if reach else ():
        if shared := sharing(reach, fold.train_rows, fold.test_rows):
            raise ShapedError(
                f"the rows are windows of a series, which share moments with the {reach} before them, and fold "
                f"{fold.index} trains on {shared} rows that share some with its test rows: pass spans= (of "
                f"create_windows) to purge them, leave a purge_gap of {reach} or more, or pass overlapping=True to "
                "measure with the leak"
            )


def _seed_all(seed: int) -> None:
    import numpy

    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def _fingerprint(fold: Fold) -> dict[str, Any]:
    """What a result depends on, save the training function."""
    parts = {"train": fold.train, "test": fold.test, "rows": (fold.train_rows, fold.test_rows)}
    return {"seed": fold.seed, **{name: [_checksum(t) for t in tensors] for name, tensors in parts.items()}}


def _checksum(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {zlib.crc32(content):08x}"
