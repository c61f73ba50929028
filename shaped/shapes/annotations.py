"""jaxtyping annotations read into specs.

jaxtyping gives the notation (`Float[Tensor, "batch pixels"]`); nothing of its run-time checking is used, because its
`isinstance` guards or specialises silently when sizes are symbolic, and forgets each name when a call returns.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import torch
from torch import Tensor

from shaped.errors import SignatureError
from shaped.shapes.dims import Dim

_EXAMPLE = 'Float[Tensor, "batch pixels"]'


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its dimensions, and the dtypes that its class (`Float`, `Int32`, ...) admits."""

    dims: tuple[Dim, ...]
    dtypes: tuple[torch.dtype, ...]
    kind: str  # the annotation's class name, for messages

    def __str__(self) -> str:
        return "[" + ", ".join(map(str, self.dims)) + "]"

    @property
    def quoted(self) -> str:
        """As in the annotation: `Float "batch pixels"`."""
        return f'{self.kind} "{" ".join(map(str, self.dims))}"'

    @property
    def floating(self) -> bool:
        return any(dtype.is_floating_point or dtype.is_complex for dtype in self.dtypes)

    def default_dtype(self, floating: torch.dtype | None = None) -> torch.dtype:
        """The dtype to assume where no tensor says: `floating` if admitted, float32, int64, bool, else the first."""
        for dtype in (floating, torch.get_default_dtype(), torch.int64, torch.bool):
            if dtype in self.dtypes:
                return typing.cast(torch.dtype, dtype)
        return self.dtypes[0]

    def rename(self, mapping: Mapping[str, Dim]) -> "TensorSpec":
        return TensorSpec(tuple(dim.substitute(mapping) for dim in self.dims), self.dtypes, self.kind)


@dataclass(frozen=True)
class Entry:
    """A named tensor of a signature, and the line that declares it."""

    path: str  # "w1", "blocks.0.w", "x"
    spec: TensorSpec
    origin: tuple[str, int] | None = None  # file and line of the declaration


@dataclass(frozen=True)
class Renames:
    """`Annotated[Conv, dims(cin="rgb", cout="2*c1")]`: the names of Conv, read in the enclosing class's terms."""

    mapping: Mapping[str, Dim]


def dims(**mapping: str | int) -> Renames:
    """Use a class at other dimensions: each of its names becomes an expression over the names around it.

    A name that is not mapped keeps its own name and so is shared through the whole tree.
    """
    return Renames({name: Dim.parse(str(text)) for name, text in mapping.items()})


def split_annotated(annotation: Any) -> tuple[Any, Mapping[str, Dim]]:
    """The bare annotation and its `dims(...)`, if any."""
    if get_origin(annotation) is not Annotated:
        return annotation, {}
    bare, *extras = get_args(annotation)
    renames = [extra for extra in extras if isinstance(extra, Renames)]
    return bare, renames[0].mapping if renames else {}


def is_tensor_annotation(annotation: Any) -> bool:
    """Whether it is a jaxtyping annotation (`Float[Tensor, "..."]`)."""
    return isinstance(annotation, type) and hasattr(annotation, "dim_str") and hasattr(annotation, "dtypes")


def read_tensor(annotation: Any, where: str) -> TensorSpec:
    """The spec of one jaxtyping annotation; SignatureError says what is wrong `where`."""
    if not is_tensor_annotation(annotation):
        raise SignatureError(f"{where}: `{_name(annotation)}` has no shape; write for example {_EXAMPLE}")
    if not (isinstance(annotation.array_type, type) and issubclass(annotation.array_type, Tensor)):
        raise SignatureError(
            f"{where}: the array type is `{_name(annotation.array_type)}`, not torch.Tensor; write {_EXAMPLE}"
        )
    read = tuple(_read_dim(token, i, where) for i, token in enumerate(annotation.dim_str.split()))
    return TensorSpec(read, _torch_dtypes(annotation.dtypes), annotation.dtype.__name__)


def _read_dim(token: str, axis: int, where: str) -> Dim:
    if token.startswith("*") or token == "...":
        raise SignatureError(
            f"{where}: `{token}` stands for any number of axes, and a proof needs the rank: name each axis"
        )
    if token[0] in "#?":
        raise SignatureError(f"{where}: `{token}` is not supported: write the plain name, or 1 for a broadcast axis")
    if token == "_":
        raise SignatureError(f"{where}: axis {axis} is `_`; give it a name, so that an error can speak of it")
    try:
        return Dim.parse(token.split("=", 1)[-1])  # "rows=3" documents a fixed size
    except SignatureError as error:
        raise SignatureError(f"{where}: {error}") from None


def _torch_dtypes(names: Any) -> tuple[torch.dtype, ...]:
    """jaxtyping's dtype names that torch has; `Shaped` admits any dtype and lists none."""
    every = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    if not isinstance(names, (list, tuple)):
        return tuple(dict.fromkeys(every))
    return tuple(dict.fromkeys(dtype for dtype in every if str(dtype).removeprefix("torch.") in names))


def resolve_hints(owner: type | Callable[..., Any]) -> dict[str, Any]:
    """Annotations as objects, strings resolved; SignatureError names one that does not resolve."""
    name = getattr(owner, "__qualname__", str(owner))
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except NameError as error:
        raise SignatureError(
            f"`{name}`: an annotation is a string that does not resolve ({error}); import the name at the top of the "
            "module, or drop `from __future__ import annotations`"
        ) from None
    except (SyntaxError, TypeError, AttributeError) as error:
        raise SignatureError(f"`{name}`: an annotation does not resolve: {error}") from None


def _name(annotation: Any) -> str:
    if isinstance(annotation, (types.GenericAlias, str)):
        return str(annotation)
    return getattr(annotation, "__name__", str(annotation))
