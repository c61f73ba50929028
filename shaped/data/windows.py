"""Windows of a time series, and batches in the form that a model takes.

    row of the series      0 1 2 3 4 5 6 7
    window=3, horizon=2    x x x . y            the first window and its label
                             x x x . y          the next one (stride 1)

The label of a window is never inside it, unless `keep_label` asks for that. Windows are a view of one copy of the
series: w times the rows, once the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from shaped.arguments import checked, only_tensors, whole
from shaped.errors import ShapeError, SignatureError
from shaped.shapes import Entry, bind, read_signature, read_tensor
from shaped.trainer import ScalarTrainer


@dataclass(frozen=True)
class WindowSet:
    """Windows, their labels, and the rows of the series that each is made of.

    Attributes:
        inputs: Float "windows window features"; windows share memory with each other.
        labels: Shaped " windows".
        spans: Int64 "windows 2": first and last row that a window and its label are made of. What `Purged` needs to
            keep overlapping windows out of training.
    """

    inputs: Float[Tensor, "windows window features"]
    labels: Shaped[Tensor, " windows"]
    spans: Int64[Tensor, "windows 2"]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        windows, window, features = self.inputs.shape
        return f"WindowSet({windows} windows of {window} rows and {features} features)"


@checked
def create_windows(
    data: Float[Tensor, "time features"],
    window: int,
    *,
    label: int | Shaped[Tensor, " time"] = -1,
    horizon: int = 0,
    stride: int = 1,
    keep_label: bool = False,
) -> WindowSet:
    """Cut a series into windows, each with a label that is not in it.

    Args:
        data: The series, a row for each moment.
        window: Rows in a window.
        label: A column of `data`, or labels of their own, one for each row and of any dtype.
        horizon: Rows from a window's last one to its label. At 0 the label belongs to the last row itself.
        stride: Rows from one window to the next.
        keep_label: Leave the label's column in the windows. With a horizon of 1 or more that is the label's past; with
            0 the label itself is then an input.

    Returns:
        (time - window - horizon) // stride + 1 windows, in order.

    Raises:
        ShapeError: The series has another rank or dtype, is too short, or no column is left for the windows.
        ValueError: A number is out of range.
    """
    whole("window", window, 1)
    whole("horizon", horizon, 0)
    whole("stride", stride, 1)
    column = label if isinstance(label, int) else None
    tensors = [data] if isinstance(label, int) else [data, label]
    sizes = bind(_ENTRIES[: len(tensors)], tensors, owner="create_windows").sizes
    time, features = sizes["time"], sizes["features"]
    if column is not None and not -features <= column < features:
        raise ValueError(f"label is column {column}, and data has {features}")
    if time < window + horizon:
        raise ShapeError(f"no window of {window} rows with a label {horizon} rows later fits in {time} rows of data")
    kept = [i for i in range(features) if keep_label or column is None or i != column % features]
    if not kept:
        raise ShapeError(
            "data has no column but the label's, and that is kept out of the windows: pass keep_label=True with a "
            "horizon of at least 1 to predict a series from its own past"
        )
    starts = torch.arange(0, time - window - horizon + 1, stride, device=data.device)
    ends = starts + window - 1 + horizon
    target = data[:, column] if isinstance(label, int) else label
    inputs = data[:, kept].unfold(0, window, stride)[: len(starts)].transpose(1, 2)
    return WindowSet(inputs, target[ends], torch.stack([starts, ends], dim=1))


_ENTRIES = (
    Entry("data", read_tensor(Float[Tensor, "time features"], "data")),
    Entry("label", read_tensor(Shaped[Tensor, " time"], "label")),
)


@checked
def parse_window_sizes(text: str) -> tuple[int, ...]:
    """Window sizes from a comma-separated list: "5, 10,20" is (5, 10, 20).

    Raises:
        ValueError: Every entry that is no whole number of at least 1, or is there twice, is named.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [f"entry {i} is {part!r}" for i, part in enumerate(parts, 1) if not _is_size(part)]
    sizes = [int(part) for part in parts if _is_size(part)]
    wrong += [f"{size} is there {sizes.count(size)} times" for size in dict.fromkeys(sizes) if sizes.count(size) > 1]
    if wrong:
        raise ValueError(
            f"window sizes {text!r}: {'; '.join(wrong)}. Sizes are whole numbers of at least 1: '5, 10,20'"
        )
    return tuple(sizes)


def _is_size(part: str) -> bool:
    return part.isascii() and part.isdecimal() and int(part) >= 1


# -- flat and windowed models ------------------------------------------------------------------------------------------


def flat_windows(x: Float[Tensor, "batch window features"]) -> Float[Tensor, "batch window*features"]:
    """Windows as flat rows, the oldest moment first: what a model over features takes."""
    only_tensors("flat_windows", 3, x=x)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2])


def last_rows(x: Float[Tensor, "batch window features"]) -> Float[Tensor, "batch features"]:
    """The last moment of each window."""
    only_tensors("last_rows", 3, x=x)
    return x[:, -1]


def single_windows(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch 1 features"]:
    """Flat rows as windows of length 1: what a model over windows takes."""
    only_tensors("single_windows", 2, x=x)
    return x.unsqueeze(1)


def dispatch(
    model: Callable[..., Any] | ScalarTrainer,
    x: Float[Tensor, "batch features"] | Float[Tensor, "batch window features"],
    *,
    flat: Literal["all", "last"] = "all",
) -> Tensor:
    """Give a flat or a windowed batch the form that a model declares, so that both kinds take both.

    Args:
        model: An annotated function or loss, or a trainer; its first tensor input tells: "batch features" is flat,
            "batch window features" is windowed.
        x: Either form.
        flat: What a flat model gets of a window: all rows, or the last one.

    Raises:
        SignatureError: The model's first input is neither. ShapeError: `x` is neither.
        ValueError: `flat` is unknown.
    """
    if flat not in ("all", "last"):
        raise ValueError(f"flat is {flat!r}; it is 'all' or 'last'")
    rank = _declared_rank(model)
    if not isinstance(x, Tensor) or x.dim() not in (2, 3):
        form = f"of rank {x.dim()}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ShapeError(f"the batch is {form}; dispatch takes [batch, features] or [batch, window, features]")
    if x.dim() == rank:
        return x
    if rank == 3:
        return single_windows(x)
    return flat_windows(x) if flat == "all" else last_rows(x)


def _declared_rank(model: Callable[..., Any] | ScalarTrainer) -> int:
    signature = model.proof.setting.signature if isinstance(model, ScalarTrainer) else read_signature(model)
    first = next((argument for argument in signature.arguments if argument.kind == "tensor"), None)
    if first is None:
        raise SignatureError(f"`{signature.name}` has no tensor input")
    spec = first.entries[0].spec
    if spec.axes is not None or len(spec.dims) not in (2, 3):
        raise SignatureError(
            f"`{signature.name}` takes {first.name} : {spec}; a flat model takes [batch, features], a windowed one "
            "[batch, window, features]"
        )
    return len(spec.dims)
