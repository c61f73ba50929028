"""Search: every candidate is trained, hopeless ones are ended, and a stopped search goes on as if it had not been."""

import itertools
import math
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shaped import NonFiniteError, ShapedError, StateError
from shaped.errors import CheckpointCorrupt, CheckpointError, RunLocked
from shaped.workflow import Categorical, Integer, Pruned, Real, Search, Trial, studies
from shaped.workflow.space import Space
from tests.workflow.loops import TRAINING, VALIDATION, fresh_loop

SPACE: Space = {"lr": Real(1e-4, 1.0, log=True), "k": Integer(1, 5)}


def paraboloid(trial: Trial) -> float:
    for step in (1, 0):
        trial.report((math.log10(trial["lr"]) + 2) ** 2 + (trial["k"] - 3) ** 2 + step)
    return trial.reports[-1]


def train(trial: Trial) -> float:
    loop = fresh_loop(lr=trial["lr"], seed=trial.seed)
    loop.on_epoch(lambda loop: loop.evaluate(VALIDATION), name="validate")
    loop.attach(trial.watch())
    loop.run_epochs(TRAINING, 4)
    return loop.latest["validation/loss"]


def test_every_candidate_is_really_trained() -> None:
    found = Search(SPACE, train, trials=4).run()

    assert [(t.state, t.steps, len(t.reports)) for t in found.trials] == [("complete", 16, 4)] * 4
    assert len({t.score for t in found.trials}) == 4
    assert found.best.score == min(t.score for t in found.trials)


def test_a_pruned_candidate_ends_early_and_is_never_the_best() -> None:
    space: Space = {"lr": Categorical(0.02, 0.03, 0.04, 2.0, 3.0)}
    found = Search(space, train, strategy="grid", trials=5, pruning="median", startup=3).run()

    assert [t.state for t in found.trials] == ["complete"] * 3 + ["pruned"] * 2
    assert [t.steps for t in found.trials[3:]] == [4, 4]
    assert found.best.number < 3
    assert str(found).splitlines()[4].split() == ["3", "2", f"{found.trials[3].score:.4g}", "pruned", "4"]


@pytest.mark.parametrize("strategy", ["random", "grid", "bayesian"])
def test_a_stopped_search_goes_on_and_finds_the_same(strategy: Any, tmp_path: Path) -> None:
    options: Any = {"strategy": strategy, "pruning": "median", "startup": 2, "trials": 7}
    whole = Search(SPACE, paraboloid, **options).run()
    stop = [4]

    def stopped(trial: Trial) -> float:
        if trial.number == stop[0]:
            raise KeyboardInterrupt
        return paraboloid(trial)

    with pytest.raises(KeyboardInterrupt):
        Search(SPACE, stopped, folder=tmp_path, **options).run()
    before = (tmp_path / "search.db").read_bytes()
    Search(SPACE, paraboloid, folder=tmp_path, **options)  # looks, and leaves the file as it is: another may be writing
    assert (tmp_path / "search.db").read_bytes() == before
    again = Search(SPACE, paraboloid, folder=tmp_path, **options).run()
    once_more = Search(SPACE, paraboloid, folder=tmp_path, **options).run()

    def facts(result: Any) -> Any:
        return [(t.number, t.values, t.score, t.state, t.reports) for t in result.trials]

    assert facts(again) == facts(whole) == facts(once_more)
    assert any(t.state == "pruned" for t in whole.trials)
    with pytest.raises(StateError, match=r"is the study of another search\.\n  seed was 0 there, 1 here"):
        Search(SPACE, paraboloid, folder=tmp_path, seed=1, **options)


def test_a_grid_goes_over_every_combination_in_order_and_then_ends() -> None:
    space: Space = {"a": Integer(1, 2), "b": Real(1.0, 100.0, log=True), "c": Categorical("x", None)}
    found = [tuple(t.values.values()) for t in Search(space, lambda trial: 0.0, strategy="grid").run().trials]

    assert found == [(a, pytest.approx(b), c) for a in (1, 2) for b in (1.0, 10.0, 100.0) for c in ("x", None)]


def test_a_bayesian_search_learns_and_a_random_one_does_not() -> None:
    def score(trial: Trial) -> float:
        return float((math.log10(trial["lr"]) + 2) ** 2 + (trial["units"] - 4) ** 2 / 9)

    space: Space = {"lr": Real(1e-4, 1e-1, log=True), "units": Integer(2, 9), "rule": Categorical("sgd", "adam", None)}
    late = []
    for strategy in ("bayesian", "random"):
        found = Search(space, score, strategy=strategy, trials=40).run()  # type: ignore[arg-type]
        late.append(sum(t.score for t in found.trials[20:]) / 20)

    assert late[0] < 0.6 * late[1]


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_trial_is_pruned_that_is_worse_than_the_median_of_those_before(direction: Any) -> None:
    sign = 1 if direction == "min" else -1

    def reports(trial: Trial) -> float:
        for value in ([1.0, 1.0], [2.0, 2.0], [9.0, 3.0], [2.5, 2.5], [1.5, 1.5])[trial.number]:
            trial.report(sign * value)
        return trial.reports[-1]

    found = Search(SPACE, reports, trials=5, pruning="median", direction=direction, startup=3).run().trials

    assert [(t.state, len(t.reports)) for t in found] == [("complete", 2)] * 3 + [("pruned", 1), ("complete", 2)]


def test_a_candidate_that_is_not_finite_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    def fails(trial: Trial) -> float:
        if trial.number == 0:
            trial.report(math.nan)
        return math.inf if trial.number == 1 else 1.0

    search = Search(SPACE, fails, trials=3, folder=tmp_path)
    found = search.run()

    assert [t.state for t in found.trials] == ["failed", "failed", "complete"]
    assert [t.error for t in found.trials[:2]] == ["NonFiniteError: trial 0 reported nan", "its score is inf"]
    assert found.best.number == 2
    assert math.isnan(Search(SPACE, fails, trials=3, folder=tmp_path).results[0].score)
    with pytest.raises(ShapedError, match="no trial is complete; the first failed by NonFiniteError: trial 0"):
        _ = Search(SPACE, fails, trials=1).run().best


def test_an_error_that_is_not_caught_ends_the_search_and_an_objective_may_raise_pruned(tmp_path: Path) -> None:
    def broken(trial: Trial) -> float:
        if trial.number == 1:
            raise RuntimeError("a bug")
        return 1.0

    def gives_up(trial: Trial) -> float:
        trial.report(4.0)
        raise Pruned("hopeless")

    with pytest.raises(RuntimeError, match="a bug"):
        Search(SPACE, broken, folder=tmp_path).run()

    assert len(Search(SPACE, broken, folder=tmp_path).results) == 1
    assert [(t.state, t.score) for t in Search(SPACE, gives_up, trials=1).run().trials] == [("pruned", 4.0)]
    with pytest.raises(ValueError, match="strategy is 'tpe'; it is 'random', 'grid' or 'bayesian'"):
        Search(SPACE, broken, strategy="tpe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trials is 0"):
        Search(SPACE, broken, trials=0)
    with pytest.raises(KeyError, match="did you mean `lr`"):
        Trial(Search(SPACE, broken), 0, {"lr": 1.0})["lrr"]
    with pytest.raises(NonFiniteError):
        Trial(Search(SPACE, broken), 0, {}).report(math.inf)


def sphere(trial: Trial) -> float:
    return float(trial["lr"] + trial["k"])


def test_two_searches_over_one_folder_share_its_trials(tmp_path: Path) -> None:
    first, second = (Search(SPACE, sphere, trials=trials, folder=tmp_path) for trials in (3, 5))
    first.run()
    found = second.run()
    assert [t.number for t in found.trials] == [0, 1, 2, 3, 4]
    assert found.trials == Search(SPACE, sphere, trials=5, folder=tmp_path).run().trials

    def within(trial: Trial) -> float:
        return Search(SPACE, sphere, trials=9, folder=tmp_path).run().best.score

    with pytest.raises(RunLocked, match="is in use by this process"):
        Search(SPACE, within, trials=9, folder=tmp_path).run()


def test_a_search_whose_names_stand_in_another_order_is_another_search(tmp_path: Path) -> None:
    Search(SPACE, sphere, trials=1, folder=tmp_path).run()
    with pytest.raises(StateError, match=r"in the order \['lr', 'k'\] there, \['k', 'lr'\] here"):
        Search(dict(reversed(list(SPACE.items()))), sphere, trials=2, folder=tmp_path)
    finer: Space = {**SPACE, "lr": Real(1.00000001e-4, 1.0, log=True)}
    with pytest.raises(StateError, match="is the study of another search"):
        Search(finer, sphere, trials=2, folder=tmp_path)


def killed_in(folder: Path, place: Callable[[Callable[[], None]], None], **options: Any) -> None:
    """Search in a child that a place, which is given the end, lets kill itself by SIGKILL; else it ends by itself."""
    child = os.fork()
    if child == 0:
        place(lambda: os.kill(os.getpid(), signal.SIGKILL))
        Search(SPACE, paraboloid, trials=2, folder=folder, **options).run()
        os._exit(0)
    os.waitpid(child, 0)


def at_trial(end: Callable[[], None]) -> None:
    """Within the second objective."""
    real = Trial.report

    def report(self: Trial, value: float) -> None:
        if self.number == 1:
            end()
        real(self, value)

    Trial.report = report  # type: ignore[method-assign]


def between(end: Callable[[], None]) -> None:
    """When a result is kept, and its trial is not closed."""
    studies._tell = lambda study, number, result: end()  # type: ignore[assignment]


def at_transaction(end: Callable[[], None], number: int) -> None:
    """Before a transaction of the file."""
    real, seen = sqlite3.connect, itertools.count(1)

    class Connection(sqlite3.Connection):
        def commit(self) -> None:
            if next(seen) == number:
                end()
            super().commit()

    sqlite3.connect = lambda *given, **named: real(*given, factory=Connection, **named)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        (at_trial, 1),
        (between, 1),
        *(pytest.param(partial(at_transaction, number=n), None, marks=pytest.mark.slow) for n in range(1, 60, 8)),
    ],
)
def test_a_search_that_is_killed_loses_no_finished_trial_and_finds_the_same(
    place: Any, kept: int | None, tmp_path: Path
) -> None:
    options: Any = {"strategy": "bayesian", "startup": 1, "pruning": "median"}
    whole = [(t.values, t.score, t.state) for t in Search(SPACE, paraboloid, trials=3, **options).run().trials]
    killed_in(tmp_path, place, **options)
    left = Search(SPACE, paraboloid, trials=3, folder=tmp_path, **options)
    before = [(t.values, t.score, t.state) for t in left.results]
    after = [(t.values, t.score, t.state) for t in left.run().trials]

    assert after == whole
    assert before == whole[: len(before)]
    assert kept in (None, len(before))


def test_a_full_disk_ends_a_search_in_words_and_keeps_the_trials_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Search(SPACE, sphere, trials=1, folder=tmp_path).run()
    real = sqlite3.connect

    def small(*given: Any, **named: Any) -> sqlite3.Connection:
        connection = real(*given, **named)
        connection.execute(
            "PRAGMA max_page_count = 1"
        )  # as large as it is: SQLite takes the present size where it is more
        return connection

    def fails(trial: Trial) -> float:
        raise ArithmeticError("x" * 300_000)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", small)
        with pytest.raises(CheckpointError, match="database or disk is full; the finished trials are in it"):
            Search(SPACE, fails, trials=2, folder=tmp_path, catch=(ArithmeticError,)).run()

    assert len(Search(SPACE, sphere, trials=1, folder=tmp_path).results) == 1
    assert len(Search(SPACE, sphere, trials=2, folder=tmp_path).run().trials) == 2


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "page"])
def test_a_damaged_study_is_refused(damage: str, tmp_path: Path) -> None:
    Search(SPACE, sphere, trials=2, folder=tmp_path).run()
    path = tmp_path / "search.db"
    content = path.read_bytes()
    page = content.index(b"result")
    path.write_bytes({"garbage": b"garbage" * 4096, "empty": b"", "cut": content[:20000],
                      "page": content[:page] + b"\0" * 64 + content[page + 64:]}[damage])  # fmt: skip
    with pytest.raises(CheckpointCorrupt, match=r"search.db: it "):
        Search(SPACE, sphere, trials=3, folder=tmp_path)


def test_a_journal_of_an_earlier_version_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").write_text("{}")
    with pytest.raises(CheckpointError, match="is the journal of an earlier version, and trials are kept in"):
        Search(SPACE, sphere, folder=tmp_path)


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ShapedError, match=r'pip install "shaped-trainer\[search\]"'):
        Search(SPACE, sphere)


def test_what_an_objective_does_to_its_values_is_not_recorded() -> None:
    def changes(trial: Trial) -> float:
        trial.values["k"] = 100
        return float(trial.values.pop("lr"))

    best = Search(SPACE, changes, trials=3).run().best
    assert best.values["lr"] == best.score
    assert best.values["k"] <= 5


def test_what_is_no_score_no_name_or_no_folder_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ShapedError, match="trial 0: the objective returned None, a NoneType; a score is a number"):
        Search(SPACE, lambda trial: None, trials=1).run()  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="a key of space is 1; it is a text"):
        Search({1: Real(1, 2)}, sphere)  # type: ignore[dict-item]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, and a search needs a folder"):
        Search(SPACE, sphere, folder=tmp_path / "file")

    def silent(trial: Trial) -> float:
        raise AssertionError

    assert Search(SPACE, silent, trials=1, catch=(AssertionError,)).run().trials[0].error == "AssertionError: "
