"""Search: every candidate is trained, hopeless ones are ended, and a stopped search goes on as if it had not been."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaped import NonFiniteError, ShapedError, StateError
from shaped.errors import CheckpointCorrupt, CheckpointError, RunLocked
from shaped.workflow import Categorical, Integer, Pruned, Real, Search, Trial
from shaped.workflow.space import Space
from tests.workflow.loops import TRAINING, VALIDATION, fresh_loop

SPACE: Space = {"lr": Real(1e-4, 1.0, log=True), "k": Integer(1, 5)}


def paraboloid(trial: Trial) -> float:
    for step in (3, 2, 1, 0):
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


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=4),
    st.sampled_from(["min", "max"]),
    st.integers(1, 4),
)
def test_the_median_rule_prunes_as_optunas_pruner_does(
    others: list[list[float]], mine: list[float], direction: Any, startup: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=0)
    study = optuna.create_study(direction="minimize" if direction == "min" else "maximize", pruner=pruner)
    search = Search(SPACE, paraboloid, pruning="median", direction=direction, startup=startup)
    for number, reports in enumerate(others):
        search.results.append(_complete(number, reports))
        study.add_trial(optuna.trial.create_trial(value=reports[-1], intermediate_values=dict(enumerate(reports))))
    trial = study.ask()
    for step, value in enumerate(mine):
        trial.report(value, step)

    assert search.prunes(mine) == trial.should_prune()


def _complete(number: int, reports: list[float]) -> Any:
    from shaped.workflow import TrialResult

    return TrialResult(number, {}, reports[-1], "complete", tuple(reports))


@pytest.mark.parametrize("strategy", ["random", "grid", "bayesian"])
def test_a_stopped_search_goes_on_and_finds_the_same(strategy: Any, tmp_path: Path) -> None:
    options: Any = {"strategy": strategy, "pruning": "median", "startup": 3, "trials": 9}
    whole = Search(SPACE, paraboloid, **options).run()
    stop = [5]

    def stopped(trial: Trial) -> float:
        if trial.number == stop[0]:
            raise KeyboardInterrupt
        return paraboloid(trial)

    with pytest.raises(KeyboardInterrupt):
        Search(SPACE, stopped, folder=tmp_path, **options).run()
    with open(tmp_path / "search.jsonl", "a") as file:
        file.write('{"number": 5, "values": {"lr')  # a line that a kill cut off
    Search(SPACE, paraboloid, folder=tmp_path, **options)  # looks, and leaves the file as it is: another may be writing
    assert (tmp_path / "search.jsonl").read_text().endswith('{"lr')
    again = Search(SPACE, paraboloid, folder=tmp_path, **options).run()
    once_more = Search(SPACE, paraboloid, folder=tmp_path, **options).run()

    def facts(result: Any) -> Any:
        return [(t.number, t.values, t.score, t.state, t.reports) for t in result.trials]

    assert facts(again) == facts(whole) == facts(once_more)
    assert any(t.state == "pruned" for t in whole.trials)
    with pytest.raises(StateError, match=r"is the journal of another search\.\n  seed was 0 there, 1 here"):
        Search(SPACE, paraboloid, folder=tmp_path, seed=1, **options)


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
    assert [json.loads(line)["score"] for line in (tmp_path / "search.jsonl").read_text().splitlines()[1:]] == [
        None,
        None,
        1.0,
    ]
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
    with pytest.raises(StateError, match="is the journal of another search"):
        Search(finer, sphere, trials=2, folder=tmp_path)


def test_a_journal_takes_a_line_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.write, [70, 0]  # a disk that takes 70 bytes, then none

    def short(descriptor: int, content: Any) -> int:
        if len(content) < 20:  # the lock's
            return write(descriptor, content)
        if not (room := left.pop(0)):
            raise OSError(errno.ENOSPC, "no space left")
        return write(descriptor, content[:room])

    Search(SPACE, sphere, trials=1, folder=tmp_path).run()
    before = (tmp_path / "search.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(OSError, match="no space left"):
            Search(SPACE, sphere, trials=2, folder=tmp_path).run()

    assert (tmp_path / "search.jsonl").read_bytes() == before
    assert len(Search(SPACE, sphere, trials=2, folder=tmp_path).run().trials) == 2


@pytest.mark.parametrize("damage", ["garbage\n", "\n", "[]\n", '{"number": 0}\n', ""])
def test_a_damaged_journal_is_refused_with_its_line(damage: str, tmp_path: Path) -> None:
    Search(SPACE, sphere, trials=2, folder=tmp_path).run()
    path = tmp_path / "search.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + damage + lines[2])
    with pytest.raises(CheckpointCorrupt, match=r"search.jsonl, line 2: it is not"):
        Search(SPACE, sphere, trials=3, folder=tmp_path)


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
