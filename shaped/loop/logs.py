"""What a run measured: a line of JSON for each record, TensorBoard's event files, and services of others.

A log that cannot be written (a full disk, a link or a pipe in its place) warns once; training goes on.
"""

import errno
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaped import files
from shaped.arguments import checked
from shaped.errors import ShapedError

if TYPE_CHECKING:
    from shaped.loop.loop import Loop


_FIRST = b'{"step"'  # of each line, so that a file which begins otherwise is another's


class Training:
    """Records the training loss at every n-th step, and listens to all that is recorded; on several ranks rank 0 does.

    Args:
        every: Steps between the loop's own records: `loss`, `loss_average`, `lr`, `step_ms`, and with `terms` each term
            of the loss.
        terms: Compute the terms apart, one forward pass a record.
    """

    failures: tuple[type[Exception], ...] = (OSError, ValueError)  # of writing; training goes on without the log

    @checked
    def __init__(self, every: int = 10, *, terms: bool = False) -> None:
        self._every, self._terms = every, terms
        self._failed = False

    def attached(self, loop: "Loop") -> None:
        """Begin to listen."""
        loop.every_n_steps(self._every, self._record_step, name=loop.free_name(type(self).__name__), priority=-10)

    def _record_step(self, loop: "Loop") -> None:
        values = {"loss": loop.loss, "loss_average": loop.average.compute(), "lr": loop.lr}
        values["step_ms"] = 1e3 * loop.median_step
        if self._terms:
            values.update({f"loss/{name}": value for name, value in loop.terms().items()})
        self.on_record(loop, values)

    def on_record(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Write figures of this step; a failure to write is a warning, once."""
        if self._failed or not loop.peers.leads:
            return
        try:
            self.write(loop, {name: value for name, value in values.items() if not math.isnan(value)})
        except self.failures as error:
            self._failed = True
            warnings.warn(f"{self} cannot be written and is left out from here on: {error}", stacklevel=2)

    def write(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Put figures where they belong."""
        raise NotImplementedError


class JsonLines(Training):
    """A log of one JSON object a line: step, epoch, seconds of the run, and the figures by name.

    A resumed run appends, to a file of such lines alone; where a step is there twice, `read_log` takes the later one.

    Args:
        path: The file; its folder is made.
        every, terms: As for `Training`.
    """

    @checked
    def __init__(self, path: str | Path, every: int = 10, *, terms: bool = False) -> None:
        super().__init__(every, terms=terms)
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._descriptor: int | None = None

    def write(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Append a line.

        Raises:
            OSError: The file is no log of a run, and stays as it is; or it cannot be written.
        """
        seconds = round(time.monotonic() - self._began, 3)
        line = {"step": loop.step, "epoch": loop.epoch, "seconds": seconds, **values}
        text = json.dumps({key: value if _writable(value) else str(value) for key, value in line.items()})
        if self._descriptor is None:
            self._descriptor = files.open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            if os.lseek(self._descriptor, 0, os.SEEK_END):
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                if not _FIRST.startswith(os.read(self._descriptor, len(_FIRST))):
                    self.on_close(loop)
                    raise OSError(errno.EINVAL, "it is there already, and no log of a run")
                os.lseek(self._descriptor, -1, os.SEEK_END)
                if os.read(self._descriptor, 1) != b"\n":  # a kill tore the last line: it stays alone
                    text = f"\n{text}"
        os.write(self._descriptor, f"{text}\n".encode())  # unbuffered, so that a kill loses no line

    def on_close(self, loop: "Loop") -> None:
        """The run is over."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __str__(self) -> str:
        return f"the log {self.path}"


def _writable(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


@checked
def read_log(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """A JSON-lines log as series: (step, value) by figure, in order of steps, the later of two for one step.

    Lines that are cut off or are no figures are passed over.

    Raises:
        ShapedError: There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ShapedError(f"no log {path}")
    series: dict[str, dict[int, float]] = {}
    for line in _lines(path):
        step = line.get("step")
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in ("step", "seconds", "epoch") and number and isinstance(step, int):
                series.setdefault(name, {})[step] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


class TensorBoard(Training):
    """TensorBoard's event files, in `folder`; read with `tensorboard --logdir folder`.

    Args:
        folder: Where the event files go.
        every, terms: As for `Training`.

    Raises:
        ShapedError: tensorboard is not installed.
    """

    @checked
    def __init__(self, folder: str | Path, every: int = 10, *, terms: bool = False) -> None:
        super().__init__(every, terms=terms)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ShapedError('TensorBoard needs its package: pip install "shaped-trainer[tensorboard]"') from None
        self.folder = Path(folder)
        self._make: Any = SummaryWriter
        self._writer: Any = None  # made where something is written: on one rank of several

    def write(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Add a point to each figure's curve."""
        self._writer = self._writer or self._make(str(self.folder))
        for name, value in values.items():
            self._writer.add_scalar(name, value, loop.step)

    def on_close(self, loop: "Loop") -> None:
        """The run is over: write what waits."""
        if self._writer is not None:
            self._writer.flush()

    def __str__(self) -> str:
        return f"TensorBoard's {self.folder}"


class LogTo(Training):
    """Figures for a service that a team looks at, through its own package: Weights & Biases, MLflow, Comet.

        loop.attach(LogTo(wandb.init(project="digits").log))      # mode="offline" without a network
        loop.attach(LogTo(mlflow.log_metrics))                     # within `with mlflow.start_run():`

    Args:
        send: Called as `send(values, step=...)` with figures by name; you begin and end what it belongs to. Whatever it
            raises is a warning, once, and training goes on.
        every, terms: As for `Training`.
    """

    failures = (Exception,)

    @checked
    def __init__(self, send: Callable[..., Any], every: int = 10, *, terms: bool = False) -> None:
        super().__init__(every, terms=terms)
        self._send = send

    def write(self, loop: "Loop", values: Mapping[str, float]) -> None:
        """Hand on what there is."""
        if values:
            self._send(dict(values), step=loop.step)

    def __str__(self) -> str:
        return f"the log {getattr(self._send, '__qualname__', self._send)}"
