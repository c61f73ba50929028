"""jaxtyping annotations read into specs.

jaxtyping gives the notation (`Float[Tensor, "batch pixels"]`); nothing of its run-time checking is used, because its
`isinstance` guards or specialises silently when sizes are symbolic, and forgets each name when a call returns.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import torch
from torch import Tensor

from shaped.arguments import checked
from shaped.errors import SignatureError
from shaped.shapes.dims import Dim

_EXAMPLE = 'Float[Tensor, "batch pixels"]'

Origin = tuple[str, int] | None  # file and line of a declaration


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
        """Whether a dtype that it admits can have gradients."""
        return any(dtype.is_floating_point or dtype.is_complex for dtype in self.dtypes)

    def default_dtype(self, floating: torch.dtype | None = None) -> torch.dtype:
        """The dtype to assume where no tensor says: `floating` if admitted, torch's default, int64, else the first."""
        wanted = (floating, torch.get_default_dtype(), torch.int64)
        return next((dtype for dtype in wanted if dtype is not None and dtype in self.dtypes), self.dtypes[0])

    def rename(self, mapping: Mapping[str, Dim]) -> "TensorSpec":
        """The same spec in other dimension names."""
        return TensorSpec(tuple(dim.substitute(mapping) for dim in self.dims), self.dtypes, self.kind)

    @property
    def axes(self) -> str | None:
        """`batch` where `*batch` stands for any number of axes."""
        return next((dim.text[1:] for dim in self.dims if dim.is_axes), None)

    def with_axes(self, axes: Mapping[str, Sequence[Dim]]) -> "TensorSpec":
        """The same spec with `*batch` written out."""
        dims = [part for dim in self.dims for part in (axes[dim.text[1:]] if dim.is_axes else (dim,))]
        return TensorSpec(tuple(dims), self.dtypes, self.kind)


@dataclass(frozen=True)
class Entry:
    """A named tensor of a signature, and the line that declares it."""

    path: str  # "w1", "blocks.0.w", "x"
    spec: TensorSpec
    origin: Origin = None


@dataclass(frozen=True)
class Renames:
    """`Annotated[Conv, dims(cin="rgb", cout="2*c1")]`: the names of Conv, read in the enclosing class's terms."""

    mapping: Mapping[str, Dim]


@checked
def dims(**mapping: str | int) -> Renames:
    """Use a class at other dimensions: each of its names becomes an expression over the names around it.

    A name that is not mapped keeps its own name and so is shared through the whole tree.
    """
    return Renames({name: _read_dim(str(text), f"dims({name}={text!r})") for name, text in mapping.items()})


def compose(inner: Mapping[str, Dim], outer: Mapping[str, Dim]) -> dict[str, Dim]:
    """One renaming for two: names are read as `inner` says, and what that gives as `outer` says."""
    return {**outer, **{name: dim.substitute(outer) for name, dim in inner.items()}}


def split_annotated(annotation: Any) -> tuple[Any, Mapping[str, Dim]]:
    """The bare annotation and its `dims(...)`, composed from the inside out where there are several."""
    if get_origin(annotation) is not Annotated:
        return annotation, {}
    bare, *extras = get_args(annotation)
    renames: Mapping[str, Dim] = {}
    for extra in extras:
        renames = compose(renames, extra.mapping) if isinstance(extra, Renames) else renames
    return bare, renames


def without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation of an optional value without its None, and whether it had one; other unions stay as they are."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    parts = get_args(annotation)
    others = [part for part in parts if part is not NoneType]
    return (others[0], True) if len(others) == 1 and len(parts) == 2 else (annotation, False)


def is_tensor_annotation(annotation: Any) -> bool:
    """Whether it is a jaxtyping annotation (`Float[Tensor, "..."]`)."""
    return isinstance(annotation, type) and hasattr(annotation, "dim_str") and hasattr(annotation, "dtypes")


def read_tensor(annotation: Any, where: str) -> TensorSpec:
    """The spec of one jaxtyping annotation; SignatureError says what is wrong `where`."""
    if not is_tensor_annotation(annotation):
        raise SignatureError(f"{where}: `{spell(annotation)}` has no shape; write for example {_EXAMPLE}")
    if not (isinstance(annotation.array_type, type) and issubclass(annotation.array_type, Tensor)):
        raise SignatureError(
            f"{where}: the array type is `{spell(annotation.array_type)}`, not torch.Tensor; write {_EXAMPLE}"
        )
    kind, dtypes = annotation.dtype.__name__, _torch_dtypes(annotation.dtypes)
    if not dtypes:
        raise SignatureError(f"{where}: torch has no dtype that is a {kind}")
    return TensorSpec(tuple(_read_dim(token, where) for token in annotation.dim_str.split()), dtypes, kind)


def _read_dim(token: str, where: str) -> Dim:
    if token.startswith("*") and token[1:].isidentifier() and not token.startswith("*_"):
        return Dim(token)
    if token.startswith("*") or token == "...":
        raise SignatureError(f"{where}: `{token}` has no name, so an error cannot speak of its axes: write *batch")
    if token.startswith(("#", "?")):
        raise SignatureError(f"{where}: `{token}` is not supported: write the plain name, or 1 for a broadcast axis")
    if token.startswith("_"):
        raise SignatureError(f"{where}: `{token}` is an axis without a name; name it, so that an error can speak of it")
    try:
        dim = Dim.parse(token.split("=", 1)[-1])  # "rows=3" documents a fixed size
    except SignatureError as error:
        raise SignatureError(f"{where}: {error}") from None
    if dim.constant is not None and dim.constant < 0:
        raise SignatureError(f"{where}: `{token}` is no size; an axis has 0 or more entries")
    return dim


def _torch_dtypes(names: Any) -> tuple[torch.dtype, ...]:
    """jaxtyping's dtype names that torch has; `Shaped` admits any dtype and lists none."""
    every = dict.fromkeys(value for value in vars(torch).values() if isinstance(value, torch.dtype))
    return tuple(dtype for dtype in every if not isinstance(names, list | tuple) or dtype_name(dtype) in names)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


def class_of(dtype: torch.dtype) -> str:
    """jaxtyping's class for one dtype: Float32, BFloat16, UInt8, Float8e4m3fn."""
    return dtype_name(dtype).capitalize().replace("Uint", "UInt").replace("Bf", "BF").replace("_", "")


def annotated_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that bears the annotations: inside wrappers and partials, and behind a callable object."""
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    if not callable(inner):
        raise SignatureError(f"{inner!r} is not a function with annotated arguments")
    return inner if inspect.isroutine(inner) or isinstance(inner, type) else type(inner).__call__


def resolve_annotations(owner: type | Callable[..., Any]) -> dict[str, Any]:
    """Annotations as objects, strings resolved; SignatureError names one that does not resolve."""
    owner = annotated_part(owner)
    name = getattr(owner, "__qualname__", str(owner))
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except NameError as error:
        raise SignatureError(
            f"`{name}`: an annotation is a string that does not resolve ({error}); define or import the name at the "
            "top of the module, or drop `from __future__ import annotations`"
        ) from None
    except (SyntaxError, TypeError, AttributeError) as error:
        raise SignatureError(f"`{name}`: an annotation does not resolve: {error}") from None


def spell(annotation: Any) -> str:
    """An annotation as its author wrote it, as nearly as can be told."""
    return annotation.__name__ if isinstance(annotation, type) and not get_origin(annotation) else str(annotation)
