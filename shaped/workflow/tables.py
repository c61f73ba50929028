"""Tables: rows of features and a target, from tensors, numpy, pandas or scikit-learn, as a provider of batches."""

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shaped.arguments import checked
from shaped.data import Batches, DataError
from shaped.errors import ShapedError, nearest
from shaped.workflow.config import BatchConfig
from shaped.workflow.splits import split


@checked
@dataclass(frozen=True)
class Table:
    """Features [rows, features] in float32, and a target [rows]: classes from 0 on, or numbers in float32."""

    x: Float[Tensor, "rows features"]
    y: Tensor
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = field(default=())  # empty for a target of numbers

    def __len__(self) -> int:
        return len(self.x)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that a model needs: `features`, and `classes` where the target has some."""
        return {"features": self.x.shape[1], **({"classes": len(self.classes)} if self.classes else {})}


def as_table(features: Any, target: Any = None) -> Table:
    """A Table from what people have.

    Args:
        features: A pandas DataFrame, a numpy array or tensor [rows, features], or a scikit-learn dataset (Bunch), which
            brings its target.
        target: The name of a DataFrame's column, or a Series, array, tensor or list [rows]. Text, bools and whole
            numbers are classes, in sorted order; floating-point numbers are a target of regression.

    Raises:
        DataError: A column is not numeric or has missing values, a name is unknown, or the lengths differ.
    """
    if target is None and isinstance(features, Mapping) and "data" in features and "target" in features:
        named = list(features.get("target_names", ()) if _is_text(features.get("target_names", ())) else ())
        return _table(
            features["data"],
            features["target"],
            [str(n) for n in features.get("feature_names", ())],
            [str(n) for n in named],
        )
    if isinstance(target, str | int):
        columns = list(getattr(features, "columns", ()))
        if target not in columns:
            alike = [f"{column!r}, an {type(column).__name__}" for column in columns if str(column) == str(target)]
            close = f"; there is {alike[0]}" if alike else nearest(str(target), [str(c) for c in columns])
            raise DataError(f"the table has no column `{target}`{close}")
        if columns.count(target) > 1:
            raise DataError(f"the table has {columns.count(target)} columns named `{target}`")
        target, features = features[target], features.drop(columns=[target])
    if target is None:
        raise DataError("the table has no target: as_table(features, target)")
    names = [str(name) for name in getattr(features, "columns", ())]
    return _table(features, target, names, [])


def _is_text(names: Any) -> bool:
    return all(isinstance(name, str) for name in names)  # numpy's texts are str too


def _table(features: Any, target: Any, names: list[str], classes: list[str]) -> Table:
    x = _numbers(features, names)
    y, found = _target(target)
    if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or not len(x):
        raise DataError(
            f"features are {list(x.shape)} and the target {list(y.shape)}: expected [rows, features], [rows]"
        )
    classes = classes if len(classes) == len(found) else found
    return Table(x, y, tuple(names or (f"x{i}" for i in range(x.shape[1]))), tuple(classes))


def _numbers(features: Any, names: Sequence[str]) -> Tensor:
    if hasattr(features, "dtypes") and hasattr(features, "to_numpy"):  # a DataFrame
        kinds = [getattr(kind, "kind", "O") for kind in features.dtypes]
        text = [name for name, kind in zip(names, kinds, strict=True) if kind not in "fiub"]
        if text:
            raise DataError(f"columns that are not numeric: {', '.join(text)}; encode or drop them")
        features = features.to_numpy(dtype="float64", na_value=float("nan"))
    copied = features.copy() if hasattr(features, "copy") else features  # an array may be read-only, or a view of yours
    try:
        given = torch.as_tensor(copied).detach()
        x = given.to(torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the features are not numeric: {error}") from None
    bad = [] if x.dim() != 2 else torch.nonzero(~torch.isfinite(x).all(0)).flatten().tolist()
    if bad:
        raise DataError(f"missing or infinite values in {', '.join(names[i] if names else f'column {i}' for i in bad)}")
    if x.dim() == 2 and len(x) and (blurred := torch.nonzero(_is_blurred(given, x)).flatten().tolist()):
        shown = ", ".join(names[i] if names else f"column {i}" for i in blurred)
        raise DataError(f"float32 cannot tell the values of {shown} apart, as they lie far from 0: subtract an origin")
    return x


def _is_blurred(given: Tensor, narrow: Tensor) -> Tensor:
    """Whether rounding to float32 moves a column's values by a thousandth of their range, which is none of rounding."""
    wide = given.double()
    span = wide.amax(0) - wide.amin(0)
    off = (narrow.double() - wide).abs().amax(0)
    return (off > 1e-3 * span) & (span > 1e-12 * wide.abs().amax(0))


def _target(target: Any) -> tuple[Tensor, list[str]]:
    """The target as a tensor, and the names of its classes; none for floating-point numbers."""
    if isinstance(target, Tensor):
        values: list[Any] = target.detach().flatten().tolist() if target.dim() == 1 else []
        if target.dim() != 1:
            return target, []
    else:
        values = (
            target.tolist() if hasattr(target, "tolist") else list(target) if isinstance(target, Iterable) else target
        )
        if not isinstance(values, list):
            raise DataError(f"the target is a {type(target).__name__}; it is a column's name, or a value for each row")
    if any(value is None or type(value).__name__ in ("NAType", "NaTType") or value != value for value in values):
        raise DataError("the target has missing values")
    if all(isinstance(value, float) for value in values):
        if any(math.isinf(value) for value in values):
            raise DataError("the target has infinite values")
        given = torch.tensor(values, dtype=torch.float64)
        if values and bool(_is_blurred(given, given.float())):
            raise DataError("float32 cannot tell the targets apart, as they lie far from 0: subtract an origin")
        return given.float(), []
    if not all(isinstance(value, str | bool | int) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(f"the target has values of {kinds}: pass numbers, or texts or whole numbers as classes")
    classes = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    number = {value: i for i, value in enumerate(classes)}
    return torch.tensor([number[value] for value in values]), [str(value) for value in classes]


class TableProvider:
    """A table as training and validation batches `(x, y)`.

    Args:
        table: A Table, or what `as_table` makes one of.
        validation: The share of rows held out, as `split` draws them (of each class, where there are classes); or the
            rows' numbers; 0 holds out none.
        training: The rows' numbers; by default all that are not held out.
        standardize: Subtract each feature's mean and divide by its deviation, both over the training rows alone.
        seed: Of which rows are held out.
        device: Where the batches are.

    Raises:
        DataError: Rows are in both parts, are not there, are no whole numbers, or none are left to train on.
        ValueError: The share is out of range.
    """

    @checked
    def __init__(
        self,
        table: Any,
        *,
        validation: Any = 0.2,
        training: Any = None,
        standardize: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.table = table if isinstance(table, Table) else as_table(table)
        share = _share(validation)
        held = _rows("validation", validation) if share is None else _held_out(self.table, share, seed)
        kept = _rows("training", training) if training is not None else _others(held, len(self.table))
        _check_rows(kept, held, len(self.table))
        self.training, self.validation = kept, held
        x = self.table.x
        self.mean, self.deviation = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        if standardize:
            self.mean = x[kept].double().mean(0).float()
            spread = x[kept].double().std(0, correction=0).float()
            self.deviation = torch.where(spread > 0, spread, torch.ones_like(spread))  # a constant feature becomes 0
        self._device, self._closed = device, False

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Sizes, names and counts."""
        t = self.table
        counts = {"training_rows": len(self.training), "validation_rows": len(self.validation)}
        return {"sizes": t.sizes, "features": t.features, "classes": t.classes, **counts}

    @checked
    def tensors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features, standardized, and targets of some rows. DataError where the provider is closed."""
        if self._closed:
            raise DataError("the provider is closed")
        if rows.dtype not in (torch.int64, torch.int32, torch.bool) or rows.dim() != 1:
            raise DataError(f"rows is {rows.dtype} {list(rows.shape)}; it has the numbers of rows")
        x = (self.table.x[rows] - self.mean) / self.deviation
        return x.to(self._device), self.table.y[rows].to(self._device)

    @checked
    def training_data(self, batches: BatchConfig) -> Batches:
        """Training rows in batches, in another order in each epoch."""
        return Batches(*self.tensors(self.training), batch_size=batches.batch_size, shuffle=batches.shuffle,
                       drop_last=batches.drop_last, seed=batches.seed or 0)  # fmt: skip

    @checked
    def validation_data(self, batches: BatchConfig) -> Batches | None:
        """Rows held out, in order and all of them, in batches of up to 1,024; None where there are none."""
        if not len(self.validation):
            return None
        return Batches(*self.tensors(self.validation), batch_size=1024, shuffle=False)

    def close(self) -> None:
        """Give out nothing more."""
        self._closed = True


def _share(validation: Any) -> float | None:
    """The share that a single number says; None of a list of rows."""
    if isinstance(validation, bool):
        raise DataError(f"validation is {validation}: pass a share, or a list of rows")
    if isinstance(validation, int | float):
        if not 0 <= validation < 1:
            raise ValueError(f"validation is {validation}: a share is below 1; rows are a list, as in [0, 1]")
        return float(validation)
    single = getattr(validation, "shape", None) == ()  # a number of numpy or torch
    return _share(validation.item()) if single else None


def _rows(name: str, rows: Any) -> Tensor:
    try:
        found = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"{name} is {rows!r}: pass row numbers{', or a share' if name == 'validation' else ''}"
        ) from None
    if not found.numel():
        return torch.arange(0)
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex() or found.dim() != 1:
        said = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        raise DataError(f"{name} is {said}: rows are a list of whole numbers; of a mask pass torch.nonzero(mask)[:, 0]")
    return found.long().cpu()


def _others(rows: Tensor, count: int) -> Tensor:
    kept = torch.ones(count, dtype=torch.bool)
    kept[rows[(rows >= 0) & (rows < count)]] = False
    return torch.nonzero(kept).flatten()


def _held_out(table: Table, share: float, seed: int) -> Tensor:
    """A share of the rows, of each class where the target has classes."""
    if share == 0:
        return torch.arange(0)
    classes = table.y if table.classes else None
    how: Literal["random", "stratified"] = "random" if classes is None else "stratified"
    return split(len(table), how, test=share, labels=classes, seed=seed).test.sort().values


def _check_rows(training: Tensor, validation: Tensor, count: int) -> None:
    for name, rows in (("training", training), ("validation", validation)):
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= count):
            raise DataError(f"{name} names row {int(rows.min() if rows.min() < 0 else rows.max())}; there are {count}")
        if len(rows.unique()) != len(rows):
            raise DataError(f"{name} has rows twice")
    both = set(training.tolist()) & set(validation.tolist())
    if both:
        raise DataError(f"{len(both)} rows are in both training and validation, {min(both)} among them")
    if not len(training):
        raise DataError("no rows are left to train on")


def _sklearn(name: str, options: dict[str, Any]) -> TableProvider:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise ShapedError(f'{name} comes with scikit-learn: pip install "shaped-trainer[recipes]"') from None
    return TableProvider(as_table(getattr(datasets, f"load_{name}")()), **options)


def breast_cancer(**options: Any) -> TableProvider:
    """569 tumours, 30 features, 2 classes (Wolberg et al. 1995), as shipped with scikit-learn."""
    return _sklearn("breast_cancer", options)


def diabetes(**options: Any) -> TableProvider:
    """442 patients, 10 features, disease progression as a number (Efron et al. 2004)."""
    return _sklearn("diabetes", options)


def digits(**options: Any) -> TableProvider:
    """1,797 handwritten digits, 64 features, 10 classes (Alpaydin & Kaynak 1998)."""
    return _sklearn("digits", options)


def iris(**options: Any) -> TableProvider:
    """150 irises, 4 features, 3 classes (Fisher 1936)."""
    return _sklearn("iris", options)


def wine(**options: Any) -> TableProvider:
    """178 wines, 13 features, 3 classes (Forina et al. 1988)."""
    return _sklearn("wine", options)
