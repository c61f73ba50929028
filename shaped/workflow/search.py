"""Search for hyper-parameters: candidates are chosen, each is really trained, hopeless ones are ended early.

    def objective(trial: Trial) -> float:
        loop = make_loop(**trial.values)
        loop.attach(trial.watch("validation/loss"))        # reports it, and ends the run where the trial is pruned
        loop.run_epochs(data, 20)
        return loop.latest["validation/loss"]

    search = Search({"lr": Real(1e-4, 1e-1, log=True)}, objective, trials=20, folder="runs/search")
    print(search.run().best.values)

With a folder each finished trial is a line of `search.jsonl`; a search that was stopped goes on after the last of them,
and makes the choices that it would have made.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from shaped import files
from shaped.arguments import checked, whole
from shaped.checkpoint.lock import Lock
from shaped.data.batches import mixed
from shaped.errors import (
    CheckpointCorrupt,
    CheckpointError,
    NonFiniteError,
    ShapedError,
    StateError,
    brief,
    columns,
    nearest,
)
from shaped.workflow.space import STRATEGIES, Past, Space, Values, as_score, check_space

if TYPE_CHECKING:
    from shaped.loop import Loop


class Pruned(ShapedError):
    """A trial is ended because others were better at this point. An objective lets it through."""


@dataclass(frozen=True)
class TrialResult:
    """A finished trial.

    Attributes:
        number: From 0.
        score: What the objective returned; the last report of a pruned one; NaN of one that failed.
        state: "complete", "pruned" or "failed".
        reports: What it reported on the way.
        steps: Training steps of the loops that it watched.
        error: Why it failed.
    """

    number: int
    values: Values
    score: float
    state: Literal["complete", "pruned", "failed"]
    reports: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    error: str = ""


class Trial:
    """A candidate that is being trained.

    Attributes:
        number: From 0. values: The hyper-parameters by name. seed: Of this trial, a function of the search's seed.
        folder: Of this trial alone, for checkpoints; None where the search has none.
    """

    def __init__(self, search: "Search", number: int, values: Values) -> None:
        self._search, self.number, self.values = search, number, values
        self.seed = mixed(search.seed, number) % 2**31
        self.folder = search.folder / f"trial-{number:04d}" if search.folder is not None else None
        self.reports: list[float] = []
        self.pruned = False
        self._loops: list[tuple[Loop, int]] = []  # that are watched, and their steps when that began

    @property
    def steps(self) -> int:
        """Training steps of the loops that it watches."""
        return sum(loop.step - start for loop, start in self._loops)

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise KeyError(f"the space has no `{name}`{nearest(name, list(self.values))}")
        return self.values[name]

    @checked
    def follow(self, loop: "Loop") -> None:
        """Count a loop's steps as this trial's."""
        self._loops.append((loop, loop.step))

    @checked
    def report(self, value: float) -> None:
        """Say how it goes, after an epoch for instance.

        Raises:
            Pruned: Others were better at this point. NonFiniteError: It is NaN or infinite; the trial fails.
        """
        value = float(value)
        if not math.isfinite(value):
            raise NonFiniteError(f"trial {self.number} reported {value}")
        self.reports.append(value)
        if self._search.prunes(self.reports):
            self.pruned = True
            raise Pruned(f"trial {self.number} at report {len(self.reports)}: {value:.4g}")

    @checked
    def watch(self, monitor: str = "validation/loss") -> "_Watch":
        """A listener for a loop: reports a recorded figure, and ends the run where the trial is pruned."""
        return _Watch(self, monitor)


class _Watch:
    """Reports what a loop records."""

    def __init__(self, trial: Trial, monitor: str) -> None:
        if not monitor:
            raise ValueError(f"monitor is {monitor!r}; it is the name of a recorded figure")
        self._trial, self._monitor = trial, monitor
        self.watches = monitor

    def attached(self, loop: "Loop") -> None:
        self._trial.follow(loop)

    def on_record(self, loop: "Loop", values: Mapping[str, float]) -> None:
        if self._monitor in values and not self._trial.pruned:
            try:
                self._trial.report(values[self._monitor])
            except Pruned as pruned:
                loop.stop(f"pruning: {pruned}")


@dataclass(frozen=True)
class SearchResult:
    """All trials; print it for a table."""

    trials: tuple[TrialResult, ...]
    direction: str

    @property
    def best(self) -> TrialResult:
        """The complete trial with the best score, the first of equals.

        Raises:
            ShapedError: No trial is complete.
        """
        complete = [trial for trial in self.trials if trial.state == "complete"]
        if not complete:
            failed = [trial.error for trial in self.trials if trial.error]
            raise ShapedError(f"no trial is complete{f'; the first failed by {failed[0]}' if failed else ''}")
        sign = 1 if self.direction == "min" else -1
        return min(complete, key=lambda trial: sign * trial.score)

    def __str__(self) -> str:
        names = list(self.trials[0].values) if self.trials else []
        rows = [["trial", *names, "score", "state", "steps"]]
        rows += [[str(t.number), *(brief(t.values[n]) for n in names), brief(t.score), t.state, str(t.steps)]
                 for t in self.trials]  # fmt: skip
        return "\n".join(columns(rows))


class Search:
    """Tries candidates until there are enough.

    Args:
        space: Names to `Real`, `Integer` or `Categorical`.
        objective: Trains a candidate and returns its score.
        strategy: "random"; "grid" (`points` values of each number, ends when all are tried); "bayesian" (optuna).
        trials: How many, those of an earlier run in the folder among them.
        direction: "min" or "max": which scores are better.
        seed: Of all choices.
        pruning: None, or "median": end a trial whose best report so far is worse than the median of what the complete
            trials had reported at the same point, once `startup` trials are complete.
        startup: Random trials before "bayesian" looks at what was found, and trials before any is pruned.
        points: Of the grid, for each number.
        folder: For the journal and the trials' own folders.
        catch: Errors that make a trial fail and let the search go on; others end it.

    Raises:
        ValueError: An argument is out of range. StateError: The folder has the journal of another search.
        CheckpointCorrupt: The journal is not what was written. CheckpointError: The folder is a file.
    """

    @checked
    def __init__(
        self,
        space: Space,
        objective: Callable[[Trial], float],
        *,
        strategy: Literal["random", "grid", "bayesian"] = "random",
        trials: int = 20,
        direction: Literal["min", "max"] = "min",
        seed: int = 0,
        pruning: Literal["median"] | None = None,
        startup: int = 5,
        points: int = 3,
        folder: str | Path | None = None,
        catch: tuple[type[Exception], ...] = (NonFiniteError,),
    ) -> None:
        whole("trials", trials, 1)
        whole("startup", startup, 1)
        whole("points", points, 1)
        whole("seed", seed, 0)
        self.space, self.objective = check_space(space), objective
        self.strategy, self.trials, self.direction, self.seed = strategy, trials, direction, seed
        self.pruning, self.startup, self.points, self.catch = pruning, startup, points, catch
        self.folder = Path(folder) if folder is not None else None
        self.results: list[TrialResult] = []
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise CheckpointError(f"{self.folder} is a file, and a search needs a folder") from None
            self._read()

    def run(self) -> SearchResult:
        """Try candidates until there are `trials` of them, or the grid has no more.

        Raises:
            What an objective raises and `catch` does not name; the trials before are in the journal. RunLocked: Another
            search runs in the folder.
        """
        if self.folder is None:
            return self._run()
        lock = Lock(self.folder)
        try:
            self._read(mend=True)  # what another search over this folder has added
            return self._run()
        finally:
            lock.release()

    def _run(self) -> SearchResult:
        choose = STRATEGIES[self.strategy]
        options = {"points": self.points, "startup": self.startup, "direction": self.direction}
        while len(self.results) < self.trials:
            past = [Past(t.values, t.score, t.state, t.reports) for t in self.results]
            values = choose(self.space, past, len(past), self.seed, **options)
            if values is None:
                break
            self.results.append(self._try(Trial(self, len(past), dict(values)), values))
            self._write(self.results[-1])
        return SearchResult(tuple(self.results), self.direction)

    def _try(self, trial: Trial, values: Values) -> TrialResult:
        began, state, score, error = time.perf_counter(), "complete", math.nan, ""
        try:
            score = as_score(self.objective(trial), f"trial {trial.number}: the objective")
            if not math.isfinite(score) and not trial.pruned:
                state, error = "failed", f"its score is {score}"
        except Pruned:
            trial.pruned = True
        except self.catch as caught:
            state, error = "failed", f"{type(caught).__name__}: {caught!s}".splitlines()[0]
        if trial.pruned:
            state, score = "pruned", trial.reports[-1]
        score = math.nan if state == "failed" else score
        seconds = round(time.perf_counter() - began, 3)
        return TrialResult(trial.number, values, score, state, tuple(trial.reports), trial.steps, seconds, error)  # type: ignore[arg-type]

    @checked
    def prunes(self, reports: list[float]) -> bool:
        """Whether the median rule ends a trial with these reports.

        Source: Golovin et al. 2017, Google Vizier, section 3.2; as optuna.pruners.MedianPruner decides.
        """
        finished = [t for t in self.results if t.state == "complete"]
        others = [t.reports[len(reports) - 1] for t in finished if len(t.reports) >= len(reports)]
        if self.pruning is None or len(finished) < self.startup or not others:
            return False
        sign = 1 if self.direction == "min" else -1
        return min(sign * r for r in reports) > sign * median(others)

    # -- the journal -----------------------------------------------------------------------------------------------

    @property
    def _about(self) -> dict[str, Any]:
        space = {name: dimension.spelled() for name, dimension in self.space.items()}
        about = {"space": space, "strategy": self.strategy, "direction": self.direction, "seed": self.seed}
        return {**about, "pruning": self.pruning, "startup": self.startup, "points": self.points}

    def _write(self, result: TrialResult) -> None:
        if self.folder is None:
            return
        path = self.folder / "search.jsonl"
        line = _line({**asdict(result), "score": None if math.isnan(result.score) else result.score})
        try:
            files.append_line(path, line, first=_line(self._about))
        except files.NotRegular as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None

    def _read(self, mend: bool = False) -> None:
        """Take over the journal's trials; with `mend`, cut off a line that a kill tore: that trial is made again."""
        assert self.folder is not None
        path = self.folder / "search.jsonl"
        try:
            content = files.read(path)
        except FileNotFoundError:
            return
        except files.NotRegular as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        whole, torn = files.lines(content)
        if torn and not whole:  # a journal begins with a whole line
            raise CheckpointCorrupt(f"{path}, line 1: it is not what was written there")
        lines = [_parsed(path, number, line) for number, line in enumerate(whole)]
        self.results = []
        if not lines:
            return
        about = json.loads(json.dumps(self._about))
        differ = [f"{key} was {lines[0].get(key)!r} there, {value!r} here" for key, value in about.items()
                  if lines[0].get(key) != value]  # fmt: skip
        if not differ and list(lines[0]["space"]) != list(self.space):  # draws and the grid go by the order
            differ = [f"the names stood in the order {list(lines[0]['space'])} there, {list(self.space)} here"]
        if differ:
            raise StateError(f"{path} is the journal of another search.\n  " + "\n  ".join(differ))
        for number, line in enumerate(lines[1:]):
            self.results.append(_result(path, number, line, self.space))
        if mend and torn:
            os.truncate(path, len(content) - len(torn))


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CheckpointCorrupt(f"{path}, line {number + 1}: it is not what was written there")
    return found


def _result(path: Path, number: int, line: Mapping[str, Any], space: Space) -> TrialResult:
    try:
        score = math.nan if line["score"] is None else float(line["score"])
        result = TrialResult(**{**line, "score": score, "reports": tuple(line["reports"])})
        whole = result.number == number and set(result.values) == set(space)
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise CheckpointCorrupt(f"{path}, line {number + 2}: it is not the line of trial {number}")
    return result
