"""Every public callable, with arguments of a wrong kind."""

import ast
import importlib
import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from torch import Tensor

import shaped
from shaped.errors import ShapedError
from shaped.loop.listening import HEARD
from tests.doors import valid_online, valid_rules, valid_workflow  # noqa: F401 - their calls are in the table too
from tests.doors.valid_training import TABLE

DOORS = (
    "shaped", "shaped.optim", "shaped.optim.schedules", "shaped.losses", "shaped.data", "shaped.loop",
    "shaped.checkpoint", "shaped.lora", "shaped.fp8", "shaped.architecture", "shaped.metrics", "shaped.export",
    "shaped.workflow", "shaped.workflow.online", "shaped.recipes", "shaped_kernels",
)  # fmt: skip
WRONG: tuple[Any, ...] = (
    1, 1.5, "x", None, object(), torch.ones(2, 3), [1], {"a": 1}, lambda *args, **named: None,
)  # fmt: skip
# What is called otherwise in a message, since it stands there for a whole batch, or for what it should have been.
SAID = {
    ("ParamList.set_values", "other"): "The new value of MLP",
    ("ParamList.from_module", "module"): "",
    ("from_dict", "values"): "is no table of WorkflowConfig",
    ("evaluate", "metrics"): "metric",
    ("dispatch", "model"): "is not a function",
    ("dispatch", "x"): "the batch",
    ("OnlineLearner.observe", "inputs"): "ensor",
    ("Loop.keep", "thing"): "`mean` is a",
}
# What the library, a loop or a workflow calls.
CALLED = (
    *HEARD, "write", "note", "forward", "add", "training_data", "validation_data", "near", "get_n_splits", "split",
    "unscaled", "rule_of", "rule_for", "reference", "adopt", "around", "limit", "measures",
)  # fmt: skip
# The library makes these itself, a user writes their like, or they are called by a loop.
OURS = (
    "Proof", "Resumed", "Checkpoint", "Hook", "Elastic", "Adapted", "Fp8Linear", "Architecture", "TrainingResult",
    "ValidationResult", "ModelInfo", "Member", "PopulationResult", "SearchResult", "Trial", "TrialResult", "Fold",
    "CrossValidation", "FoldResult", "Split", "Observation", "Update", "Candidate", "Version", "FullBackpropagation",
    "OneStep", "GradientStrategy", "Metric", "DataProvider", "Splitter", "DriftDetector", "Interrupted", "Mean",
    "WindowSet", "Batch", "OnnxFile", "Rule", "Hyper", "GroupUpdate",
)  # fmt: skip


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    function = function.__init__ if inspect.isclass(function) else function  # type: ignore[misc]
    return get_type_hints(inspect.unwrap(function), localns=vars(shaped))


def admits(hint: Any, value: Any) -> bool:
    """beartype's own answer, part by part; a text is no sequence of texts, and any function is a strategy."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, str):
        parts = tuple(p for p in parts if not (isinstance(get_origin(p), type) and issubclass(get_origin(p), Iterable)))
    parts = tuple(Callable if part is shaped.GradientStrategy else part for part in parts)
    return any(is_bearable(value, part, conf=BeartypeConf(is_pep484_tower=True)) for part in parts)


def state(thing: Any, depth: int = 3) -> Any:
    """What can be seen of a value, to be compared."""
    if isinstance(thing, Tensor):
        return thing.dtype, thing.detach().cpu().tolist()
    if hasattr(thing, "state_dict") and not inspect.isclass(thing):
        return state(thing.state_dict(), 9)
    if isinstance(thing, Mapping) and depth:
        return {str(key): state(value, depth - 1) for key, value in thing.items()}
    if isinstance(thing, list | tuple | shaped.ParamList) and depth:
        return [state(value, depth - 1) for value in thing]
    if isinstance(thing, Path):
        return {str(path): path.stat().st_size for path in thing.rglob("*") if path.is_file()}
    return thing if isinstance(thing, int | float | str) else None


def everything(function: Callable[..., Any], given: Mapping[str, Any], folder: Path) -> Any:
    owner = getattr(function, "__self__", None)
    return state([owner, dict(given), folder, torch.get_rng_state()], 9), random.getstate()


@pytest.mark.parametrize("name", TABLE)
def test_an_argument_of_a_wrong_kind_is_refused_by_name_and_nothing_has_changed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, given = TABLE[name](tmp_path)
    hints, faults = hints_of(function), []
    for argument in given:
        hint = hints.get(argument, hints.get("sizes", Any))
        for wrong in WRONG:
            if hint is not Any and admits(hint, wrong):
                continue
            before = everything(function, given, tmp_path)
            try:
                function(**{**given, argument: wrong})
            except (ShapedError, ValueError) as error:
                said = SAID.get((name, argument), argument)
                if hint is not Any and said not in str(error):
                    faults.append(f"{argument} = {wrong!r}: its name is not in: {error}")
                if hint is not Any and everything(function, given, tmp_path) != before:
                    faults.append(f"{argument} = {wrong!r}: something has changed")
            except Exception as error:
                faults.append(f"{argument} = {wrong!r}: {type(error).__name__}: {error}")
            else:
                if hint is not Any:
                    faults.append(f"{argument} = {wrong!r}: was taken, and is {hint}")
                function, given = TABLE[name](tmp_path)

    assert "\n".join(faults) == ""


def exported(door: str) -> list[str]:
    module = importlib.import_module(door)
    tree = ast.parse(inspect.getsource(module)).body
    if str(module.__file__).endswith("__init__.py"):
        return [a.asname for node in tree if isinstance(node, ast.ImportFrom) for a in node.names if a.asname]
    own = [node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in own if not name.startswith("_")]


@pytest.mark.parametrize("door", DOORS)
def test_the_table_has_every_public_callable_with_arguments(door: str) -> None:
    module, missing = importlib.import_module(door), []
    for name in exported(door):
        thing = getattr(module, name)
        if inspect.isfunction(thing) and inspect.signature(thing).parameters and name not in (*TABLE, *CALLED):
            missing.append(name)
        if not inspect.isclass(thing) or issubclass(thing, Exception):
            continue
        if name not in (*TABLE, *OURS):
            missing.append(name)
        for method, value in vars(thing).items():
            value = getattr(value, "__func__", value)
            known = any(f"{kind.__name__}.{method}" in TABLE for kind in thing.__mro__)  # torch wraps `step` anew
            if not inspect.isfunction(value) or method.startswith("_") or known:
                continue
            if len(inspect.signature(value).parameters) > 1 and method not in CALLED and name not in OURS:
                missing.append(f"{name}.{method}")

    assert missing == []
