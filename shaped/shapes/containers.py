"""Tuples, named tuples, typed dictionaries and dataclasses of tensors, as arguments and as results.

What is annotated so has a fixed number of tensors, each with its own annotation. It is flattened to them in order, and
built again from them; the path of each tensor is the way to write it: `batch[0]`, `batch.ids`, `batch["mask"]`.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args, get_origin

from shaped.errors import ShapeError, SignatureError
from shaped.shapes.annotations import (
    Entry,
    Origin,
    TensorSpec,
    is_tensor_annotation,
    read_tensor,
    resolve_annotations,
    spell,
)


@dataclass(frozen=True)
class Container:
    """An annotation that holds tensors, or one tensor (a leaf)."""

    path: str
    kind: str  # as it is written: "Batch", "tuple"
    spec: TensorSpec | None = None  # of a leaf
    parts: tuple["Container", ...] = ()
    keys: tuple[str, ...] = ()  # of the parts; positions for a tuple
    make: Callable[[Sequence[Any]], Any] = tuple  # an instance from its parts
    origin: Origin = None

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor in it, in order."""
        if self.spec is not None:
            return (Entry(self.path, self.spec, self.origin),)
        return tuple(entry for part in self.parts for entry in part.entries)

    @property
    def name(self) -> str:
        """How a statement shows it: its class, or the shapes of a bare tuple."""
        if self.spec is not None:
            return str(self.spec) if self.spec.dims else "scalar"
        return f"({', '.join(part.name for part in self.parts)})" if self.kind == "tuple" else self.kind

    def map(self, change: Callable[[TensorSpec], TensorSpec]) -> "Container":
        """The same container of other specs."""
        parts = tuple(part.map(change) for part in self.parts)
        return dataclasses.replace(self, spec=self.spec and change(self.spec), parts=parts)

    def build(self, tensors: Sequence[Any]) -> Any:
        """An instance over these tensors, which are not checked."""
        return self._take(iter(tensors))

    def _take(self, tensors: Iterator[Any]) -> Any:
        return next(tensors) if self.spec is not None else self.make([part._take(tensors) for part in self.parts])

    def flatten(self, value: Any) -> list[Any]:
        """The tensors of an instance, in order; they themselves are not checked.

        Raises:
            ShapeError: It is no such container: another class, length or set of keys.
        """
        if self.spec is not None:
            return [value]
        if isinstance(value, Mapping):
            found = dict(value)
        elif isinstance(value, tuple | list):
            names = getattr(value, "_fields", None) or map(str, range(len(value)))
            found = dict(zip(names, value, strict=True))
        elif dataclasses.is_dataclass(value):
            found = {key: getattr(value, key) for key in self.keys if hasattr(value, key)}
        else:
            found = {}
        if set(found) != set(self.keys):
            have = f"one with {', '.join(found)}" if found else f"a {type(value).__name__}"
            raise ShapeError(f"{self.path} is {self.kind} with {', '.join(self.keys)}, got {have}")
        return [leaf for key, part in zip(self.keys, self.parts, strict=True) for leaf in part.flatten(found[key])]


def read_container(annotation: Any, path: str, where: str, origin: Origin = None) -> Container:
    """Read an annotation whose leaves are tensors.

    Raises:
        SignatureError: It has no shape, or holds a number of tensors that it does not tell.
    """
    if is_tensor_annotation(annotation):
        return Container(path, "tensor", read_tensor(annotation, where), origin=origin)
    base = get_origin(annotation) or annotation
    fields = _fields(base, get_args(annotation), where)
    if fields is None:
        raise SignatureError(f"{where}: `{spell(annotation)}` {_REMEDY[_holds_many(base)]}")
    annotations, make, form = fields
    names = [(hint, path + form.format(key)) for key, hint in annotations.items()]
    parts = tuple(read_container(hint, name, f"{where}, `{name}`", origin) for hint, name in names)
    return Container(path, base.__name__, None, parts, tuple(annotations), make, origin)


_REMEDY = {
    True: 'does not say how many tensors it holds: write tuple[Float[Tensor, "a b"], Int[Tensor, " a"]], a NamedTuple, '
    "a TypedDict or a dataclass",
    False: 'has no shape; annotate it as a ParamList or as Float[Tensor, "batch features"]',
}


def _holds_many(base: Any) -> bool:
    return isinstance(base, type) and issubclass(base, Mapping | Sequence) and base is not str


def _fields(
    base: Any, arguments: Sequence[Any], where: str
) -> tuple[Mapping[str, Any], Callable[..., Any], str] | None:
    """What a container holds, how an instance is made of its parts, how a part is written; None if it is none."""
    if base is tuple and arguments and Ellipsis not in arguments:
        return {str(i): part for i, part in enumerate(arguments)}, tuple, "[{}]"
    if not (typing.is_typeddict(base) or dataclasses.is_dataclass(base) or hasattr(base, "_fields")):
        return None
    annotations = resolve_annotations(base)
    if typing.is_typeddict(base):
        if base.__optional_keys__:
            optional = ", ".join(sorted(base.__optional_keys__))
            raise SignatureError(f"{where}: `{spell(base)}` may lack {optional}; a signature is fixed")
        return annotations, lambda parts: dict(zip(annotations, parts, strict=True)), '["{}"]'
    if dataclasses.is_dataclass(base):
        make: Any = base
        names = [field.name for field in dataclasses.fields(base) if field.init]
        return {n: annotations[n] for n in names}, lambda parts: make(**dict(zip(names, parts, strict=True))), ".{}"
    return {name: annotations.get(name) for name in base._fields}, lambda parts: base(*parts), ".{}"
