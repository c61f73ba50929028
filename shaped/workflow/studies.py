"""A search's study is optuna's: in memory, or in a SQLite file, where a finished trial is there whole or not at all.

A trial is finished when its result stands among its attributes, which is one transaction. One that a kill left open is
closed when the search goes on, and counts for nothing: samplers and pruner look at complete and pruned trials only, and
the sampler of each trial has a seed of its own. So what is chosen does not depend on where a search was stopped.
"""

import itertools
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from shaped import files
from shaped.errors import CheckpointCorrupt, CheckpointError, ShapedError, StateError
from shaped.workflow.space import Categorical, Dimension, Integer, Space, Values

NAME, _STUDY, _ABOUT, _RESULT = "search.db", "search", "search", "result"
_WAIT = 30.0  # seconds for another reader to let go of the file


def _optuna() -> Any:
    """The package, which is imported where a search is made and not before.

    Raises:
        ShapedError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ShapedError('a search is made by optuna: pip install "shaped-trainer[search]"') from None
    return optuna


# -- where a study is --------------------------------------------------------------------------------------------------


def in_memory(direction: str) -> Any:
    """A study that ends with the process."""
    return _made(None, direction)


def _made(storage: Any, direction: str) -> Any:
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports each study that is made
    try:
        return optuna.create_study(
            study_name=_STUDY, storage=storage, direction="minimize" if direction == "min" else "maximize"
        )
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def in_folder(folder: Path, about: Mapping[str, Any], *, make: bool) -> Iterator[Any]:
    """The study of a folder while the context lasts; None where there is none and none is to be made.

    Raises:
        StateError: It is of a search that is described otherwise. CheckpointCorrupt: The file is not what was written.
        CheckpointError: It cannot be read or made.
    """
    _optuna()
    path = folder / NAME
    if not os.path.lexists(path):
        if (old := folder / "search.jsonl").exists():
            raise CheckpointError(
                f"{old} is the journal of an earlier version, and trials are kept in {NAME} now: take another folder"
            )
        if not make:
            yield None
            return
        try:
            files.replace_by(path, lambda temporary: _begin(temporary, about))
        except sqlite3.Error as error:
            raise CheckpointError(f"{path}: {error}") from None
    study, storage = _opened(path)
    try:
        _check_about(path, study, about)
        yield study
    finally:
        _close(storage)


def _begin(path: Path, about: Mapping[str, Any]) -> None:
    """A file with a study that has no trial yet."""
    storage = _storage(path, make=True)
    try:
        _made(storage, about["direction"]).set_user_attr(_ABOUT, dict(about))
    finally:
        _close(storage)


def _opened(path: Path) -> tuple[Any, Any]:
    try:
        os.close(files.open_regular(path))
        with closing(sqlite3.connect(path, timeout=_WAIT)) as file:
            whole = file.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except files.NotRegular as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except sqlite3.OperationalError as error:  # no right to read, or held by another for long
        raise CheckpointError(f"{path}: {error}") from None
    except sqlite3.DatabaseError:
        whole = False
    if not whole:
        raise CheckpointCorrupt(f"{path}: it is not what was written there")
    storage = None
    try:
        storage = _storage(path, make=False)
        study = _optuna().load_study(study_name=_STUDY, storage=storage)
        dict(study.user_attrs[_ABOUT]["space"])
        study.get_trials(deepcopy=False)
    except Exception:  # whatever optuna, sqlalchemy and json say of tables that are absent, or of what stands in them
        _close(storage)
        raise CheckpointCorrupt(f"{path}: it has no study of a search") from None
    return study, storage


def _storage(path: Path, *, make: bool) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import QueuePool

    def connect() -> sqlite3.Connection:  # by its path as it is: a URL reads `?` and `{` in it
        return sqlite3.connect(path, timeout=_WAIT, check_same_thread=False)

    engine = {"creator": connect, "poolclass": QueuePool}
    return RDBStorage("sqlite://", engine_kwargs=engine, skip_table_creation=not make)


def _close(storage: Any) -> None:
    if storage is not None:
        storage.remove_session()
        storage.engine.dispose()


def _check_about(path: Path, study: Any, about: Mapping[str, Any]) -> None:
    """Raises StateError where a study was made by another search."""
    there, here = study.user_attrs[_ABOUT], json.loads(json.dumps(about))
    differ = [
        f"{key} was {there.get(key)!r} there, {value!r} here" for key, value in here.items() if there.get(key) != value
    ]
    if not differ and list(there["space"]) != list(here["space"]):  # draws and the grid go by the order
        differ = [f"the names stood in the order {list(there['space'])} there, {list(here['space'])} here"]
    if differ:
        raise StateError(f"{path} is the study of another search.\n  " + "\n  ".join(differ))


# -- its trials --------------------------------------------------------------------------------------------------------


@contextmanager
def _stored() -> Iterator[None]:
    """What a disk says, in our words; what an objective raises never comes through here."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause: Any = error.__cause__ if isinstance(error, StorageInternalError) else error
        said = str(getattr(cause, "orig", None) or cause or error).splitlines()[0]
        raise CheckpointError(f"{NAME} of the search: {said}; the finished trials are in it") from None


def finished(study: Any, space: Space) -> list[dict[str, Any]]:
    """The finished trials in order, each as what `tell` was given.

    Raises:
        CheckpointCorrupt: A trial is not what was written.
    """
    with _stored():
        trials = [t for t in study.get_trials(deepcopy=False) if _RESULT in t.user_attrs]
    found = []
    for number, trial in enumerate(trials):
        try:
            result = dict(trial.user_attrs[_RESULT])
            values = {name: trial.params[name] for name in space}
            reports = tuple(trial.intermediate_values[i] for i in range(len(trial.intermediate_values)))
        except (KeyError, TypeError, ValueError):
            raise CheckpointCorrupt(f"{NAME}: trial {number} is not what was written") from None
        score = math.nan if result["score"] is None else float(result["score"])
        found.append({**result, "number": number, "values": values, "reports": reports, "score": score})
    return found


def settle(study: Any) -> None:
    """Close trials that a kill or an error left open: finished where their result is there, else as if never made."""
    states = _optuna().trial.TrialState
    with _stored():
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            _tell(study, trial.number, trial.user_attrs.get(_RESULT, {"state": "failed"}))


def ask(study: Any, space: Space, sampler: Any, pruner: Any) -> tuple[Any, Values]:
    """A new trial and its values."""
    study.sampler, study.pruner = sampler, pruner
    with _stored():
        asked = study.ask({name: _distribution(dimension) for name, dimension in space.items()})
        return asked, {name: asked.params[name] for name in space}


def prunes(asked: Any, value: float, step: int) -> bool:
    """Keep a report of a trial; whether the pruner ends it."""
    with _stored():
        asked.report(value, step)
        return bool(asked.should_prune())


def tell(study: Any, asked: Any, *, score: float, state: str, steps: int, seconds: float, error: str) -> None:
    """Finish a trial."""
    result = {"score": None if math.isnan(score) else score, "state": state, "steps": steps, "seconds": seconds,
              "error": error}  # fmt: skip
    with _stored():
        asked.set_user_attr(_RESULT, result)
        _tell(study, asked.number, result)


def _tell(study: Any, number: int, result: Mapping[str, Any]) -> None:
    states = _optuna().trial.TrialState
    if result["state"] == "complete":
        study.tell(number, result["score"])
    else:
        study.tell(number, state={"pruned": states.PRUNED, "failed": states.FAIL}[result["state"]])


# -- how it chooses ----------------------------------------------------------------------------------------------------


def sampler(strategy: str, space: Space, number: int, *, seed: int, startup: int, points: int) -> Any:
    """The sampler of one trial; None where a grid has no more points."""
    optuna = _optuna()
    if strategy == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if strategy == "bayesian":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    columns = [dimension.grid(points) for dimension in space.values()]
    row = next(itertools.islice(itertools.product(*columns), number, None), None)
    return None if row is None else _at(dict(zip(space, row, strict=True)))


def _at(point: Values) -> Any:
    from optuna.samplers import BaseSampler

    class At(BaseSampler):  # type: ignore[misc]
        """A point of a grid: optuna's own sampler of grids goes over them in an order of chance."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return point[param_name]

    return At()


def pruner(pruning: str | None, startup: int) -> Any:
    """Optuna's median rule, or none."""
    pruners = _optuna().pruners
    return pruners.NopPruner() if pruning is None else pruners.MedianPruner(n_startup_trials=startup)


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Categorical):
        return CategoricalDistribution(dimension.choices)
    if isinstance(dimension, Integer):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
