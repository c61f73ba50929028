"""The signature of a function: its arguments as specs, its result, and where each is declared."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, get_origin

from shaped.errors import SignatureError
from shaped.shapes.annotations import (
    Entry,
    TensorSpec,
    annotated_part,
    is_tensor_annotation,
    read_tensor,
    resolve_hints,
    spell,
)


class Structure(Protocol):
    """Ordered, named tensors with one signature, and how to build an instance over them (a ParamList's layout)."""

    @property
    def name(self) -> str: ...

    @property
    def entries(self) -> tuple[Entry, ...]: ...

    def build(self, tensors: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Argument:
    """One argument: a tensor, a structured list of tensors, or a plain Python value (always its default)."""

    name: str
    kind: Literal["tensor", "structured", "static"]
    entries: tuple[Entry, ...] = ()
    structure: Structure | None = None
    default: Any = None
    keyword: bool = False


@dataclass(frozen=True)
class Signature:
    """What a function takes and returns; `call` applies it to flat tensors."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    result: tuple[TensorSpec, ...]
    result_is_tuple: bool

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor, params ++ inputs, in order."""
        return tuple(entry for argument in self.arguments for entry in argument.entries)

    def call(self, tensors: Sequence[Any]) -> Any:
        """Run the function on flat tensors, rebuilt into its arguments."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        at = 0
        for argument in self.arguments:
            part = tensors[at : at + len(argument.entries)]
            at += len(argument.entries)
            if argument.structure is not None:
                value = argument.structure.build(part)
            else:
                value = part[0] if part else argument.default
            if argument.keyword:
                keywords[argument.name] = value
            else:
                positional.append(value)
        return self.function(*positional, **keywords)

    def __str__(self) -> str:
        shown = [
            argument.structure.name if argument.structure else str(argument.entries[0].spec)
            for argument in self.arguments
            if argument.kind != "static"
        ]
        result = ", ".join("scalar" if not spec.dims else str(spec) for spec in self.result)
        return f"{self.name} : {', '.join(shown)} -> {result}"


def read_signature(function: Callable[..., Any], structures: Mapping[str, Structure] | None = None) -> Signature:
    """Read a function's annotations.

    Args:
        function: Any annotated callable. A jaxtyped or functools-wrapped one is unwrapped, so that no run-time
            checker runs inside a trace.
        structures: What some arguments really are, instead of what their annotation alone tells (a parameter list
            whose nested lists have their real lengths).

    Raises:
        SignatureError: An argument or the result is unannotated, or an annotation is not understood.
    """
    bare = inspect.unwrap(function)
    target = annotated_part(bare)
    name = target.__name__ if target.__name__ != "__call__" else type(bare).__name__
    if isinstance(target, type):
        raise SignatureError(f"`{name}` is a class, not a function with annotated arguments")
    try:
        parameters = inspect.signature(bare).parameters.values()
    except ValueError:
        raise SignatureError(f"`{name}` is built in and says nothing of its shapes: wrap it in a function") from None
    hints = resolve_hints(target)
    origin = _origin(target)
    arguments = [_argument(parameter, hints, name, origin, structures or {}) for parameter in parameters]
    result, is_tuple = _result(hints, name)
    return Signature(name, bare, tuple(arguments), result, is_tuple)


def _argument(
    parameter: inspect.Parameter,
    hints: Mapping[str, Any],
    function: str,
    origin: tuple[str, int] | None,
    structures: Mapping[str, Structure],
) -> Argument:
    where = f"`{function}`, argument `{parameter.name}`"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise SignatureError(f"{where}: name each argument instead of {stars}{parameter.name}; a signature is fixed")
    keyword = parameter.kind is parameter.KEYWORD_ONLY
    structure = structures.get(parameter.name)
    if structure is None and inspect.ismethod(layout := getattr(hints.get(parameter.name), "layout", None)):
        structure = layout()  # a ParamList class
    if structure is not None and not structure.entries:
        raise SignatureError(f"{where}: {structure.name} declares no entries; annotate with the class that is passed")
    if structure is not None:
        return Argument(parameter.name, "structured", structure.entries, structure, keyword=keyword)
    if parameter.name not in hints:
        raise SignatureError(
            f'{where} has no annotation; write for example `{parameter.name}: Float[Tensor, "batch features"]`'
        )
    annotation = hints[parameter.name]
    if is_tensor_annotation(annotation):
        entry = Entry(parameter.name, read_tensor(annotation, where), origin)
        return Argument(parameter.name, "tensor", (entry,), keyword=keyword)
    if parameter.default is not parameter.empty:
        return Argument(parameter.name, "static", default=parameter.default, keyword=keyword)
    if annotation in (int, float, bool, str):
        raise SignatureError(f"{where} is a plain {annotation.__name__}: give it a default, which the proof then uses")
    raise SignatureError(
        f'{where}: `{spell(annotation)}` has no shape; annotate it as a ParamList or as Float[Tensor, "batch features"]'
    )


def _result(hints: Mapping[str, Any], name: str) -> tuple[tuple[TensorSpec, ...], bool]:
    if "return" not in hints:
        raise SignatureError(f'`{name}` has no return annotation; a loss returns Float[Tensor, ""]')
    annotation = hints["return"]
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        return tuple(read_tensor(part, f"`{name}`, result {i}") for i, part in enumerate(parts)), True
    return (read_tensor(annotation, f"`{name}`, its result"),), False


def _origin(function: Callable[..., Any]) -> tuple[str, int] | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
