"""The signature of a function: its arguments as specs, its result, and where each is declared."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Number
from typing import Any, Literal, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from shaped.errors import ShapeError, SignatureError, nearest
from shaped.shapes.annotations import (
    Entry,
    Origin,
    TensorSpec,
    annotated_part,
    is_tensor_annotation,
    resolve_annotations,
    without_none,
)
from shaped.shapes.containers import Container, read_container
from shaped.shapes.dims import Dim


class Structure(Protocol):
    """Ordered, named tensors with one signature, and how to build an instance over them (a ParamList's layout)."""

    @property
    def name(self) -> str: ...

    @property
    def entries(self) -> tuple[Entry, ...]: ...

    def build(self, tensors: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Argument:
    """One argument: a tensor or a container of tensors, a list of parameters, or a plain Python value (its default).

    A number without a default (`beta: float`) is a tensor without axes. An optional one (`... | None`) may be None.
    """

    name: str
    kind: Literal["tensor", "container", "parameters", "static"]
    entries: tuple[Entry, ...] = ()
    structure: Structure | None = None
    default: Any = None  # of an input: the number that stands for one that is not given
    keyword: bool = False
    optional: bool = False
    number: bool = False  # annotated as a plain one

    @property
    def container(self) -> Container | None:
        """How an input is flattened; None for parameters and plain values."""
        return self.structure if isinstance(self.structure, Container) else None


@dataclass(frozen=True)
class Signature:
    """What a function takes and returns; `call` applies it to flat tensors."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    returns: Container

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor, params ++ inputs, in order."""
        return tuple(entry for argument in self.arguments for entry in argument.entries)

    @cached_property
    def result(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the result, in order."""
        return tuple(entry.spec for entry in self.returns.entries)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The names of `*batch` axes."""
        found = (spec.axes for spec in (*(entry.spec for entry in self.entries), *self.result))
        return tuple(dict.fromkeys(name for name in found if name is not None))

    @cached_property
    def _given(self) -> tuple[Argument, ...]:
        """The arguments that a call passes on: defaults may change, so the function looks its own up."""
        given = [a.kind != "static" or a.optional for a in self.arguments]
        last = max((i for i, a in enumerate(self.arguments) if given[i] and not a.keyword), default=-1)
        return tuple(a for i, a in enumerate(self.arguments) if given[i] or (i < last and not a.keyword))

    def without(self, absent: Collection[str]) -> "Signature":
        """The signature of calls that leave out these optional inputs: they are None."""
        left = tuple(
            Argument(a.name, "static", keyword=a.keyword, optional=True) if a.name in absent else a
            for a in self.arguments
        )
        return replace(self, arguments=left) if absent else self

    def at_ranks(self, ranks: Mapping[str, int], numbered: bool = True) -> "Signature":
        """The signature with `*batch` written out as `batch1 batch2`; unless `numbered`, one axis keeps the name."""
        taken = {name for entry in self.entries for dim in entry.spec.dims for name in dim.names}
        axes: dict[str, list[Dim]] = {}
        for name, rank in ranks.items():
            stem = next(stem for stem in (name, f"{name}_", f"{name}__") if f"{stem}1" not in taken)
            axes[name] = [Dim(f"{stem}{i}") for i in range(1, rank + 1)]
            if rank == 1 and not numbered and name not in taken:
                axes[name] = [Dim(name)]
        arguments = []
        for argument in self.arguments:
            entries = tuple(replace(entry, spec=entry.spec.with_axes(axes)) for entry in argument.entries)
            structure = argument.structure
            if isinstance(structure, Container):
                structure = structure.map(lambda spec: spec.with_axes(axes))
            arguments.append(replace(argument, entries=entries, structure=structure))
        return replace(self, arguments=tuple(arguments), returns=self.returns.map(lambda spec: spec.with_axes(axes)))

    def call(self, tensors: Sequence[Any]) -> Any:
        """Run the function on flat tensors, rebuilt into its arguments; plain values are its own defaults."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        at = 0
        for argument in self._given:
            part = tensors[at : at + len(argument.entries)]
            at += len(argument.entries)
            value = argument.default
            if argument.structure is not None and not (argument.optional and all(leaf is None for leaf in part)):
                value = argument.structure.build(part)
            if argument.keyword:
                keywords[argument.name] = value
            else:
                positional.append(value)
        return self.function(*positional, **keywords)

    def arrange(self, positional: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """The flat tensors of a call's inputs (the arguments that are no parameters), by position and by name.

        An optional input that is not given is None, for each of its tensors.

        Raises:
            ShapeError: Inputs are missing, extra, or no container of the declared kind.
        """
        inputs = [argument for argument in self.arguments if argument.kind in ("tensor", "container")]
        names = [argument.name for argument in inputs]
        given = {**dict(zip(names, positional, strict=False)), **named}
        plain = {argument.name for argument in self.arguments if argument.kind == "static"}
        wrong = [f"`{name}` {_PLAIN if name in plain else f'is unknown{nearest(name, names)}'}"
                 for name in named if name not in names]  # fmt: skip
        wrong += [f"`{name}` is given twice" for name in names[: len(positional)] if name in named]
        wrong += [f"{len(positional) - len(names)} too many"] if len(positional) > len(names) else []
        left = {a.name: a.default for a in inputs if a.name not in given and (a.optional or a.default is not None)}
        wrong += [f"`{name}` is missing" for name in names if name not in given and name not in left]
        if wrong:
            raise ShapeError(f"`{self.name}` takes the inputs {', '.join(names)}: {'; '.join(wrong)}")
        return [leaf for a in inputs for leaf in _leaves(a, {**left, **given}[a.name])]

    def __str__(self) -> str:
        shown = [f"{a.structure.name}{' or None' if a.optional else ''}" for a in self.arguments if a.structure]
        parts = self.returns.parts if self.returns.kind == "tuple" else (self.returns,)
        return f"{self.name} : {', '.join(shown)} -> {', '.join(part.name for part in parts)}"


_PLAIN = 'is a plain value, and the proof is for its default; as Float[Tensor, ""], with that default, it is an input'


def _leaves(argument: Argument, value: Any) -> list[Any]:
    """The tensors of an input, in order; None for each where it is optional and left out."""
    if argument.container is None:
        return []
    if value is None and argument.optional:
        return [None] * len(argument.entries)
    return argument.container.flatten(value)


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
    annotations = resolve_annotations(target)
    origin = _origin(target)
    arguments: list[Argument] = []
    wrong: list[SignatureError] = []
    for parameter in parameters:
        try:
            arguments.append(_argument(parameter, annotations, name, origin, structures or {}))
        except SignatureError as error:
            wrong.append(error)
    try:
        returns = _returns(annotations, name)
    except SignatureError as error:
        wrong.append(error)
    if wrong:
        raise (
            wrong[0]
            if len(wrong) == 1
            else SignatureError(
                f"`{name}` has {len(wrong)} mistakes in its signature.\n  " + "\n  ".join(map(str, wrong))
            )
        )
    return Signature(name, bare, tuple(arguments), returns)


def _argument(
    parameter: inspect.Parameter,
    annotations: Mapping[str, Any],
    function: str,
    origin: Origin,
    structures: Mapping[str, Structure],
) -> Argument:
    where = f"`{function}`, argument `{parameter.name}`"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise SignatureError(f"{where}: name each argument instead of {stars}{parameter.name}; a signature is fixed")
    keyword = parameter.kind is parameter.KEYWORD_ONLY
    structure = structures.get(parameter.name)
    if structure is None and inspect.ismethod(layout := getattr(annotations.get(parameter.name), "layout", None)):
        structure = layout()  # a ParamList class
    if structure is not None and not structure.entries:
        raise SignatureError(f"{where}: {structure.name} declares no entries; annotate with the class that is passed")
    if structure is not None:
        return Argument(parameter.name, "parameters", structure.entries, structure, keyword=keyword)
    if parameter.name not in annotations:
        raise SignatureError(
            f'{where} has no annotation; write for example `{parameter.name}: Float[Tensor, "batch features"]`'
        )
    default = None if parameter.default is parameter.empty else parameter.default
    annotation, optional = without_none(annotations[parameter.name])
    if isinstance(default, Tensor):
        raise SignatureError(f"{where} is bound to a tensor already: prove the function, and pass the tensor to it")
    tensor, has_default = is_tensor_annotation(annotation), parameter.default is not parameter.empty
    optional = (optional or (has_default and default is None)) and _holds_tensors(annotation)
    if has_default and not tensor and not (optional and default is None):
        return Argument(parameter.name, "static", default=default, keyword=keyword)
    if annotation in (bool, str):
        raise SignatureError(f"{where} is a plain {annotation.__name__}: give it a default, which the proof then uses")
    plain = next((tensor for number, tensor in _NUMBERS if annotation is number), annotation)
    container = read_container(plain, parameter.name, where, origin)
    kind: Literal["tensor", "container"] = "tensor" if container.spec is not None else "container"
    if default is not None and (container.spec is None or container.spec.dims or not isinstance(default, Number)):
        raise SignatureError(
            f"{where} has the default {default!r}: the default of an input is a number where it has no axes, or None"
        )
    return Argument(
        parameter.name, kind, container.entries, container, default, keyword, optional, plain is not annotation
    )


# What plain numbers without a default stand for.
_NUMBERS: Sequence[tuple[type, Any]] = ((float, Float[Tensor, ""]), (int, Int[Tensor, ""]))


def _holds_tensors(annotation: Any) -> bool:
    """Whether it is a tensor's annotation, or a container's."""
    if is_tensor_annotation(annotation):
        return True
    try:
        return bool(read_container(annotation, "", "").entries)
    except SignatureError:
        return False


def _returns(annotations: Mapping[str, Any], name: str) -> Container:
    if "return" not in annotations:
        raise SignatureError(f'`{name}` has no return annotation; a loss returns Float[Tensor, ""]')
    return read_container(annotations["return"], "result", f"`{name}`, its result")


def _origin(function: Callable[..., Any]) -> Origin:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else None
