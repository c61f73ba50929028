"""Search for hyper-parameters: candidates are chosen, each is really trained, hopeless ones are ended early.

    def objective(trial: Trial) -> float:
        loop = make_loop(**trial.values)
        loop.attach(trial.watch("validation/loss"))        # reports it, and ends the run where the trial is pruned
        loop.run_epochs(data, 20)
        return loop.latest["validation/loss"]

    search = Search({"lr": Real(1e-4, 1e-1, log=True)}, objective, trials=20, folder="runs/search")
    print(search.run().best.values)

Samplers, pruner and storage are optuna's. With a folder the study is the SQLite file `search.db` there; a search that
was stopped, or killed, goes on after the last finished trial, and makes the choices that it would have made.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shaped.arguments import checked, whole
from shaped.checkpoint.lock import Lock
from shaped.data.batches import mixed
from shaped.errors import CheckpointError, NonFiniteError, ShapedError, brief, columns, nearest
from shaped.workflow import studies
from shaped.workflow.space import Space, Values, as_score, check_space

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

    def __init__(self, search: "Search", number: int, values: Values, asked: Any = None) -> None:
        self.number, self.values = number, values
        self._asked = asked  # optuna's trial; without one nothing is pruned
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
        if self._asked is not None and studies.prunes(self._asked, value, len(self.reports) - 1):
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
        strategy: "random"; "grid" (`points` values of each number, ends when all are tried); "bayesian" (a
            tree-structured Parzen estimator).
        trials: How many, those of an earlier run in the folder among them.
        direction: "min" or "max": which scores are better.
        seed: Of all choices.
        pruning: None, or "median": end a trial whose best report so far is worse than the median of what the complete
            trials had reported at the same point, once `startup` trials are complete (optuna's MedianPruner).
        startup: Random trials before "bayesian" looks at what was found, and trials before any is pruned.
        points: Of the grid, for each number.
        folder: For the study and the trials' own folders.
        catch: Errors that make a trial fail and let the search go on; others end it.

    Raises:
        ValueError: An argument is out of range. StateError: The folder has the study of another search.
        CheckpointCorrupt: The study is not what was written. CheckpointError: The folder is a file, or cannot be read.
        ShapedError: optuna is not installed.

    Source: Bergstra et al. 2011, NeurIPS 24 (the estimator); Golovin et al. 2017, Google Vizier, section 3.2 (pruning).
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
        self._study = None if self.folder is not None else studies.in_memory(direction)
        self.results: list[TrialResult] = []
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise CheckpointError(f"{self.folder} is a file, and a search needs a folder") from None
            with studies.in_folder(self.folder, self._about, make=False) as study:
                self.results = [] if study is None else self._found(study)

    def run(self) -> SearchResult:
        """Try candidates until there are `trials` of them, or the grid has no more.

        Raises:
            What an objective raises and `catch` does not name; the trials before are in the study. RunLocked: Another
            search runs in the folder. CheckpointError: The study cannot be written.
        """
        if self.folder is None:
            return self._run(nullcontext(self._study))
        lock = Lock(self.folder)
        try:
            return self._run(studies.in_folder(self.folder, self._about, make=True))
        finally:
            lock.release()

    def _run(self, opened: Any) -> SearchResult:
        with opened as study:
            studies.settle(study)
            self.results = self._found(study)  # what another search over this folder has added among them
            while len(self.results) < self.trials:
                number = len(self.results)
                sampler = studies.sampler(self.strategy, self.space, number, seed=mixed(self.seed, number) % 2**32,
                                          startup=self.startup, points=self.points)  # fmt: skip
                if sampler is None:
                    break
                asked, values = studies.ask(study, self.space, sampler, studies.pruner(self.pruning, self.startup))
                result = self._try(Trial(self, number, dict(values), asked), values)
                studies.tell(study, asked, score=result.score, state=result.state, steps=result.steps,
                             seconds=result.seconds, error=result.error)  # fmt: skip
                self.results.append(result)
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
            state, score = "pruned", trial.reports[-1] if trial.reports else math.nan
        score = math.nan if state == "failed" else score
        seconds = round(time.perf_counter() - began, 3)
        return TrialResult(trial.number, values, score, state, tuple(trial.reports), trial.steps, seconds, error)  # type: ignore[arg-type]

    def _found(self, study: Any) -> list[TrialResult]:
        return [TrialResult(**trial) for trial in studies.finished(study, self.space)]

    @property
    def _about(self) -> dict[str, Any]:
        space = {name: dimension.spelled() for name, dimension in self.space.items()}
        about = {"space": space, "strategy": self.strategy, "direction": self.direction, "seed": self.seed}
        return {**about, "pruning": self.pruning, "startup": self.startup, "points": self.points}
