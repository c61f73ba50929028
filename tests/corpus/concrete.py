"""A model at concrete sizes: its arguments by its annotations, a run, and whether the result is the declared one.

Nothing of the prover is used here, so that one can be held against the other.
"""

import ast
import dataclasses
import inspect
import random
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList
from tests.corpus.catalogue import Model

PLAIN = (int, float, bool, str)


@dataclass(frozen=True)
class Sizes:
    """A number for each dimension name, and the leading axes that `*batch` stands for."""

    named: Mapping[str, int]
    leading: tuple[int, ...] = ()

    def satisfy(self, model: Model) -> bool:
        return all(eval(condition, {}, dict(self.named)) for condition in model.conditions)

    def shape(self, axes: str) -> tuple[int, ...]:
        """The shape that an annotation such as `"*batch 4*dim"` has here."""
        parts = [self.leading if axis.startswith("*") else (eval(axis, {}, dict(self.named)),) for axis in axes.split()]
        return tuple(size for part in parts for size in part)


def draw_sizes(model: Model, generator: random.Random) -> Sizes:
    """Random sizes from 1 on, often equal and often 1, with the static ones as they are.

    Divisibility rarely holds by chance, so that most draws make it hold.
    """
    most = generator.choice((2, 4, 9))
    named = {name: generator.randint(1, most) for name in dimensions(model)}
    for condition in model.conditions:
        left, _, remainder = condition.partition(" == ")
        name, _, divisor = left.partition(" % ")
        if name in named and divisor and generator.random() < 0.8:
            named[name] = named.get(divisor, 0) or int(divisor)
            named[name] = named[name] * generator.randint(1, 2) + int(remainder)
    rank = generator.randint(0, 3) if has_leading_axes(model) else 0
    return Sizes({**named, **model.static}, tuple(generator.randint(1, 3) for _ in range(rank)))


def distinct_sizes(model: Model) -> Sizes:
    """Sizes that satisfy the conditions, no two of them equal."""
    names = dimensions(model)
    generator = random.Random(0)
    for _ in range(100_000):
        named = dict(zip(names, generator.sample(range(2, 40), len(names)), strict=True))
        sizes = Sizes({**named, **model.static}, (41,) if has_leading_axes(model) else ())
        if len(set(sizes.named.values())) == len(names) and sizes.satisfy(model):
            return sizes
    raise ValueError(f"{model.function.__name__}: no distinct sizes satisfy its conditions")


def failure(model: Model, sizes: Sizes) -> str:
    """Why the model fails at these sizes; nothing if it returns what it declares and has gradients."""
    try:
        arguments = {name: _make(hint, sizes, model) for name, hint in _inputs(model).items()}
        result = _call(model, arguments)
        wrong = _difference(_hints(model)["return"], result, sizes)
        parameters = [t for a in arguments.values() if isinstance(a, ParamList) for t in a if t.requires_grad]
        if not wrong and parameters and isinstance(result, Tensor) and result.ndim == 0:
            torch.autograd.grad(result, parameters, allow_unused=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return wrong


def dimensions(model: Model) -> tuple[str, ...]:
    """The names of a model's sizes, without leading axes (`*batch`)."""
    axes = [axis for text in _axes(model) for axis in text.split() if not axis.startswith("*")]
    nodes = [node for axis in axes for node in ast.walk(ast.parse(axis))]
    return tuple(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))


def has_leading_axes(model: Model) -> bool:
    return any("*" in axis[:1] for text in _axes(model) for axis in text.split())


def _call(model: Model, arguments: dict[str, Any]) -> Any:
    if _over_output(model):
        assert model.module is not None
        inputs = [arguments.pop(name) for name in _forward_hints(model)]
        return model.function(model.module()(*inputs), *arguments.values())
    keywords = [p.name for p in inspect.signature(model.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    by_name = {name: arguments.pop(name) for name in keywords if name in arguments}
    return model.function(*arguments.values(), **by_name)


def _make(hint: Any, sizes: Sizes, model: Model) -> Any:
    """Random floats, zeros for integers (a valid index into anything) and true booleans, nested as annotated."""
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        assert model.module is not None
        return model.module()
    if isinstance(hint, type) and issubclass(hint, ParamList):
        return hint.layout().build([_make(entry, sizes, model).requires_grad_() for entry in _entries(hint)])
    if typing.get_origin(hint) is tuple:
        return tuple(_make(part, sizes, model) for part in typing.get_args(hint))
    if _is_record(hint):
        return hint(**{name: _make(part, sizes, model) for name, part in _fields(hint).items()})
    shape = sizes.shape(hint.dim_str)
    if "float32" in hint.dtypes:
        return torch.rand(shape)
    return torch.zeros(shape, dtype=torch.int64) if "int64" in hint.dtypes else torch.ones(shape, dtype=torch.bool)


def _difference(hint: Any, value: Any, sizes: Sizes) -> str:
    """How a result differs from its annotation, or nothing."""
    if typing.get_origin(hint) is tuple:
        parts = zip(typing.get_args(hint), value, strict=True)
        return next(filter(None, (_difference(part, item, sizes) for part, item in parts)), "")
    if _is_record(hint):
        items = value if isinstance(value, dict) else {name: getattr(value, name) for name in _fields(hint)}
        return next(filter(None, (_difference(part, items[name], sizes) for name, part in _fields(hint).items())), "")
    if tuple(value.shape) != (declared := sizes.shape(hint.dim_str)):
        return f"returns {tuple(value.shape)}, declared {declared}"
    return "" if str(value.dtype).removeprefix("torch.") in hint.dtypes else f"returns {value.dtype}"


def _axes(model: Model) -> Iterator[str]:
    """The axes of every tensor that goes in, as annotated."""
    waiting = list(_inputs(model).values())
    while waiting:
        hint = waiting.pop(0)
        if isinstance(hint, type) and issubclass(hint, ParamList):
            waiting[:0] = _entries(hint)
        elif typing.get_origin(hint) is tuple:
            waiting[:0] = typing.get_args(hint)
        elif hasattr(hint, "dim_str"):
            yield hint.dim_str
        elif _is_record(hint):
            waiting[:0] = _fields(hint).values()


def _inputs(model: Model) -> dict[str, Any]:
    """Annotations of what is passed; a loss over a module's output gets the inputs of the module in its place."""
    hints = {name: hint for name, hint in _hints(model).items() if name != "return" and hint not in PLAIN}
    if _over_output(model):
        return {**_forward_hints(model), **dict(list(hints.items())[1:])}
    return hints


def _over_output(model: Model) -> bool:
    first = next(iter(_hints(model).values()))
    return model.module is not None and not (isinstance(first, type) and issubclass(first, nn.Module))


def _forward_hints(model: Model) -> dict[str, Any]:
    assert model.module is not None
    hints = typing.get_type_hints(type(model.module()).forward, include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return"}


def _hints(model: Model) -> dict[str, Any]:
    return typing.get_type_hints(model.function, include_extras=True)


def _entries(params: type[ParamList]) -> list[Any]:
    """The tensors of a ParamList as annotations, nested ones in the terms of the whole."""
    return [Float[Tensor, " ".join(map(str, entry.spec.dims))] for entry in params.layout().entries]


def _fields(record: Any) -> dict[str, Any]:
    return typing.get_type_hints(record, include_extras=True)


def _is_record(hint: Any) -> bool:
    return typing.is_typeddict(hint) or dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")
