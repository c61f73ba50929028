"""Configuration as frozen dataclasses, read strictly: every unknown key and wrong value is reported at once.

    config = read_config(WorkflowConfig, "job.toml")
    config = from_dict(WorkflowConfig, {"model": {"name": "mlp_classifier"}, "data": {"name": "wine"}})

What is meant for others stands under `extensions`, which is kept as it is.
"""

import json
import math
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from shaped import files
from shaped.arguments import checked, number, whole
from shaped.backends import BackendName
from shaped.errors import CheckpointCorrupt, ShapedError, StateError, nearest
from shaped.optim.table import OPTIMIZERS
from shaped.workflow.stopping import EarlyStopping

C = TypeVar("C")
# What a run may be gone on with: how long it is, what is measured, and where it runs.
_MAY_CHANGE = ("epochs", "early_stopping", "metrics", "backend", "device", "folder", "extensions")


class ConfigError(ShapedError, ValueError):
    """A configuration has unknown keys, lacks some, or has values of the wrong kind; all are listed."""


@checked
@dataclass(frozen=True)
class Part:
    """A part by its name in a registry, or as `module:attribute`, and what it is called with."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@checked
@dataclass(frozen=True)
class BatchConfig:
    """How examples become batches. `seed` is the workflow's where it is None."""

    batch_size: int = 32
    shuffle: bool = True
    drop_last: bool = False
    seed: int | None = None
    extensions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size, 1)


@checked
@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule by its name in `shaped.optim.OPTIMIZERS`, its learning rate, and further arguments of its class.

    Raises:
        ValueError: There is no such rule, or the learning rate is no number.
    """

    name: str = "adamw"
    lr: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name is {self.name!r}; it is one of {', '.join(map(repr, OPTIMIZERS))}")
        number("lr", self.lr)


@checked
@dataclass(frozen=True)
class StoppingConfig:
    """Arguments of `EarlyStopping`; the workflow's `monitor` and `mode` are used."""

    patience: int = 10
    alpha: float = 0.1
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        EarlyStopping(self.patience, alpha=self.alpha, min_delta=self.min_delta)


@checked
@dataclass(frozen=True)
class WorkflowConfig:
    """All that a workflow needs to be run again.

    Attributes:
        model, data: By name, with options; None where the parts are given to the workflow itself.
        epochs: Passes over the training data at most.
        seed: Of the parameters and the order of the data.
        schedule: Of torch.optim.lr_scheduler or `warmup_cosine` and the like of `shaped.optim.schedules`, by name.
        metrics: Names in the registry of metrics, computed on validation data.
        monitor, mode: The figure that says which epoch is best, and whether "min" or "max" is.
        restore_best: End with the parameters of the best epoch.
        max_norm: Clip gradients to this global 2-norm.
        folder: For checkpoints after each epoch, the log and curves; None writes nothing.
        extensions: For other programs; kept as it is and handed on to the results.

    Raises:
        ConfigError: A value is out of range, or two of them exclude each other.
    """

    model: Part | None = None
    data: Part | None = None
    epochs: int = 10
    seed: int = 0
    backend: BackendName = "eager"
    device: str = "cpu"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)
    schedule: Part | None = None
    early_stopping: StoppingConfig | None = None
    metrics: tuple[str, ...] = ()
    monitor: str = "validation/loss"
    mode: Literal["min", "max"] = "min"
    restore_best: bool = False
    max_norm: float | None = None
    folder: Path | None = None
    extensions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("epochs", self.epochs, 0, ConfigError)
        whole("seed", self.seed, 0, ConfigError)
        if self.max_norm is not None and not number("max_norm", self.max_norm):
            raise ConfigError("max_norm is 0; it is a positive number, or None")
        if self.restore_best and self.epochs == 0:
            raise ConfigError("restore_best needs an epoch, and epochs is 0")


@checked
def read_config(kind: type[C], path: str | Path) -> C:
    """A configuration from a TOML or JSON file.

    Raises:
        ConfigError: It cannot be read, or breaks `kind`; every fault is listed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    return from_dict(kind, values)


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """A configuration dataclass from plain data, strictly.

    Nested dataclasses are read from mappings, tuples from lists, paths from text, and a whole number passes as a float.

    Raises:
        ConfigError: Unknown or missing keys, or values of another kind; every fault is listed, with the nearest name.
    """
    wrong: list[str] = []
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ConfigError(f"kind is {kind!r}; it is a dataclass")
    made = _read(kind, values, "", wrong)
    if wrong:
        raise ConfigError(f"{kind.__name__} cannot be read.\n  " + "\n  ".join(wrong))
    result: C = made
    return result


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The table of a JSON object. Raises ValueError where a key is there twice, as TOML does."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key `{next(key for key in names if names.count(key) > 1)}` is there twice")
    return table


def check_same(path: Path, config: WorkflowConfig) -> None:
    """Refuse to go on with a run that was begun under another configuration, save what may change between runs.

    Raises:
        StateError: Something differs; all of it is listed. CheckpointCorrupt: The file is no configuration.
    """
    if not os.path.lexists(path):  # a run from before configurations were kept
        return
    try:
        there = json.loads(files.read(path))
        here = to_dict(config)
        keys = [key for key in here if key not in _MAY_CHANGE]
        differ = [
            f"{key} was {there.get(key)!r} there, {here[key]!r} here" for key in keys if there.get(key) != here[key]
        ]
    except (files.NotRegular, ValueError, AttributeError):
        raise CheckpointCorrupt(f"{path} is not what was written there") from None
    if differ:
        raise StateError(
            f"{path.parent} is of a run with another configuration: choose another folder.\n  " + "\n  ".join(differ)
        )


def to_dict(config: Any) -> dict[str, Any]:
    """The plain data of a configuration, for JSON: `from_dict` of it is the configuration again.

    In options and extensions, tuples become lists, and paths texts.

    Raises:
        ConfigError: It has values that no file can hold (a dtype, a tensor, NaN); all are listed.
    """
    wrong: list[str] = []
    plain: dict[str, Any] = _plain(config, "", wrong)
    if wrong:
        raise ConfigError(f"a {type(config).__name__} is written as plain data.\n  " + "\n  ".join(wrong))
    return plain


def _plain(value: Any, where: str, wrong: list[str]) -> Any:
    """The value as JSON has it; what it has not is added to `wrong`."""
    lead = f"{where}." if where else ""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), lead + f.name, wrong) for f in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(each, lead + key, wrong) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{i}]", wrong) for i, each in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if not (value is None or finite or isinstance(value, str)):
        wrong.append(f"{where} is {value!r}, a {type(value).__name__}: give text, numbers, lists or tables")
    return value


def _read(kind: Any, value: Any, where: str, wrong: list[str]) -> Any:
    """The value as the kind; faults are added to `wrong`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, where, wrong)
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else _read_dataclass(kind, value, where, wrong)
    if kind is Any:
        return value
    if origin is Literal:
        good, made = value in arguments and not isinstance(value, bool), value
    elif origin is tuple:
        good = isinstance(value, list | tuple)
        made = tuple(_read(arguments[0], x, f"{where}[{i}]", wrong) for i, x in enumerate(value)) if good else value
    elif origin in (dict, Mapping):
        good = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        made = {k: _read(arguments[1], x, f"{where}.{k}", wrong) for k, x in value.items()} if good else value
    elif kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        made = float(value) if good else value
    elif kind is Path:
        good, made = isinstance(value, str | Path), Path(value) if isinstance(value, str | Path) else value
    else:
        good, made = isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), value
    if not good:
        wrong.append(f"{where}: {value!r} is no {_spelled(kind)}")
    return made


def _read_union(kinds: Sequence[Any], value: Any, where: str, wrong: list[str]) -> Any:
    if value is None and type(None) in kinds:
        return None
    choices = [kind for kind in kinds if kind is not type(None)]
    tried: list[list[str]] = []
    for kind in choices:
        faults: list[str] = []
        made = _read(kind, value, where, faults)
        if not faults:
            return made
        tried.append(faults)
    wrong += tried[0] if len(tried) == 1 else [f"{where}: {value!r} is none of {', '.join(map(_spelled, choices))}"]
    return value


def _read_dataclass(kind: type[Any], values: Any, where: str, wrong: list[str]) -> Any:
    if not isinstance(values, Mapping):
        wrong.append(f"{where or kind.__name__}: {values!r} is no table of {kind.__name__}")
        return values
    lead = f"{where}." if where else ""
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}
    wrong += [f"{lead}{key}: unknown{_nearest(str(key), list(known))}" for key in values if key not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    wrong += [f"{lead}{name}: missing" for name in needed if name not in values]
    faults: list[str] = []
    given = {name: _read(hints[name], values[name], lead + name, faults) for name in known if name in values}
    wrong += faults
    if faults or any(name not in given for name in needed):
        return values
    try:
        return kind(**given)
    except ValueError as error:  # what the dataclass itself refuses
        wrong.append(f"{lead}{error}")
        return values


def _nearest(name: str, known: Sequence[str]) -> str:
    return nearest(name, known) or f"; there are {', '.join(known)}"


def _spelled(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {int: "whole number", float: "finite number", str: "text", bool: "true or false", Path: "path"}
    return names.get(kind, "list" if get_origin(kind) is tuple else getattr(kind, "__name__", str(kind)))
