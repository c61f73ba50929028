"""What a job shows: lines, a progress bar, and learning curves as a PNG."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shaped import files
from shaped.errors import ShapedError
from shaped.ranks import rank_here

_INSTALL = 'pip install "shaped-trainer[recipes]"'


def say(text: str) -> None:
    """Print a line of the job's report; on several ranks once."""
    if rank_here() == 0:
        print(text, flush=True)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; the function it yields advances it by one and sets its note.

    Without a terminal it prints one plain line when it ends.

    Raises:
        ShapedError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        raise ShapedError(f"a recipe shows its progress with rich: {_INSTALL}") from None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    console = Console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, note="")
        last = ""

        def advance(note: str) -> None:
            nonlocal last
            last = note
            progress.update(task, advance=1, note=note)

        yield advance
    if not console.is_terminal:
        say(f"{title}: {total} steps, {last}")


class Curves:
    """Figures by epoch, and their plot."""

    def __init__(self) -> None:
        """
        Raises:
            ShapedError: matplotlib is not installed; better now than after the training.
        """
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError:
            raise ShapedError(f"a recipe plots with matplotlib: {_INSTALL}") from None
        self._series: dict[str, list[float]] = {}

    def add(self, **figures: float) -> None:
        """One epoch's figures."""
        for name, value in figures.items():
            self._series.setdefault(name, []).append(value)

    def last(self, name: str) -> float:
        """The newest figure; NaN before the first epoch."""
        values = self._series.get(name)
        return values[-1] if values else float("nan")

    def save(self, path: Path, title: str) -> Path:
        """Plot each series in a panel of its own."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots(1, max(len(self._series), 1), squeeze=False)[0]
        for axis, (name, values) in zip(axes, self._series.items(), strict=False):
            axis.plot(range(1, len(values) + 1), values, linewidth=1.8)
            axis.set(xlabel="epoch", ylabel=name, title=f"{name}: {values[-1]:.4g} at the end")
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title)
        files.replace_by(path, lambda temporary: figure.savefig(temporary, dpi=120))
        return path
