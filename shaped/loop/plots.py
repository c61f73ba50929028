"""Learning curves as a PNG, from what was recorded or from a log on disk."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shaped import files
from shaped.arguments import checked
from shaped.errors import ShapedError
from shaped.loop.logs import read_log

if TYPE_CHECKING:
    from shaped.loop.loop import Loop

Series = Mapping[str, Sequence[tuple[int, float]]]
_HIDDEN = ("step_ms",)


class Curves:
    """Keeps `run/log.jsonl` drawn as `run/curves.png`: when the run is over, and every so many seconds.

    Args:
        log: The JSON-lines log; the picture stands beside it.
        seconds: Between two drawings while the run goes on.

    Raises:
        ShapedError: matplotlib is not installed; better now than after the training.
    """

    @checked
    def __init__(self, log: str | Path, seconds: float = 60.0) -> None:
        _figure_class()
        self.log, self._seconds = Path(log), seconds
        self.picture = self.log.with_name("curves.png")

    def attached(self, loop: "Loop") -> None:
        """Draw from time to time."""
        loop.periodic(self._seconds, self.on_close, name=loop.free_name("Curves"), priority=100)

    def on_close(self, loop: "Loop") -> None:
        """Draw; a picture that cannot be written is a warning."""
        try:
            if loop.peers.leads and self.log.is_file():
                plot(read_log(self.log), self.picture, title=self.log.parent.name)
        except OSError as error:
            warnings.warn(f"the curves {self.picture} cannot be written: {error}", stacklevel=2)


@checked
def plot_run(run: str | Path, picture: str | Path | None = None) -> Path:
    """Draw the log of a run.

    Args:
        run: Its folder, or the log itself.
        picture: Where to; `curves.png` beside the log by default.

    Raises:
        ShapedError: There is no log, it has no figures, or matplotlib is not installed.
    """
    log = Path(run)
    log = log / "log.jsonl" if log.is_dir() else log
    series = read_log(log)
    if not series:
        raise ShapedError(f"{log} has no figures")
    return plot(series, Path(picture) if picture else log.with_name("curves.png"), title=log.resolve().parent.name)


def plot(series: Series, picture: Path, title: str = "") -> Path:
    """A panel for each kind of figure: `loss` and `validation/loss` share one."""
    panels: dict[str, list[str]] = {}
    for name in series:
        if name not in _HIDDEN:
            panels.setdefault(name.rpartition("/")[2].removesuffix("_average"), []).append(name)
    figure = _figure_class()(figsize=(4.8 * max(len(panels), 1), 3.6), layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axis, (panel, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            steps, values = zip(*series[name], strict=True)
            faint = name == "loss" and "loss_average" in names
            axis.plot(steps, values, linewidth=1.0 if faint else 1.8, alpha=0.35 if faint else 1.0, label=name,
                      marker="." if len(steps) < 30 else None)  # fmt: skip
        axis.set(xlabel="step", title=f"{panel}: {series[names[-1]][-1][1]:.4g} at the end")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axis.legend(frameon=False)
    figure.suptitle(title)
    kind = picture.suffix.lstrip(".") or "png"  # matplotlib would give a file without an ending one
    files.replace_by(picture, lambda temporary: figure.savefig(temporary, dpi=120, format=kind))
    return picture


def _figure_class() -> "type[Figure]":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ShapedError('curves are drawn with matplotlib: pip install "shaped-trainer[recipes]"') from None
    return Figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure
