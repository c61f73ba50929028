"""A mistake, and how it is planted into a copy of its model's module."""

import importlib.util
import inspect
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tests.corpus.catalogue import MODELS, Model


@dataclass(frozen=True)
class Fault:
    """An edit of one fragment of a model's source.

    Attributes:
        model: The name of the function.
        old: The fragment, which stands in its source once.
        new: What is written instead.
        kind: What sort of mistake it is.
        surfaces: A fragment of the line where it must be found, if that is not the edited one.
        silent: Whether plain torch returns what is declared, at distinct sizes.
    """

    model: str
    old: str
    new: str
    kind: str
    surfaces: str = ""
    silent: bool = False


@dataclass(frozen=True)
class Planted:
    """A model with a mistake in it, and where that must be found."""

    model: Model
    file: Path
    line: int


def plant(fault: Fault, folder: Path) -> Planted:
    """Write the module with the fault in it to `folder`, import it, and take the model from there.

    One folder holds one fault for each model.
    """
    model = next(model for model in MODELS if model.name == fault.model)
    module = sys.modules[model.function.__module__]
    source, body = inspect.getsource(module), inspect.getsource(model.function)
    wrong = body.replace(fault.old, fault.new)
    text = source.replace(body, wrong)
    at = wrong.index(fault.surfaces) if fault.surfaces else body.index(fault.old)
    assert [body.count(fault.old), source.count(body), wrong.count(fault.surfaces or wrong)] == [1, 1, 1], fault
    name = f"faulty_{fault.model}"
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    faulty = importlib.util.module_from_spec(spec)
    sys.modules[name] = faulty  # annotations are resolved in it
    spec.loader.exec_module(faulty)
    made = getattr(faulty, model.module.__name__) if model.module else None
    planted = replace(model, function=getattr(faulty, fault.model), module=made)
    return Planted(planted, file, text[: source.index(body) + at].count("\n") + 1)
