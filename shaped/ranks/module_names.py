"""Names for the axes of a module's parameters: what its classes declare, and what a user says of paths.

    class Block(nn.Module):
        up: Annotated[nn.Linear, dims(in_features="dim", out_features="hidden")]
        scale: Float[Tensor, " dim"]

    names={"*.q_proj.weight": "heads*head dim"}

What nobody names keeps its size, as a number. The proof of a module's program does not know these names; a plan does.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from shaped.errors import SignatureError, listing, nearest
from shaped.params import ParamList
from shaped.shapes import (
    Dim,
    Entry,
    bind,
    compose,
    is_tensor_annotation,
    read_tensor,
    resolve_annotations,
    split_annotated,
    without_none,
)

# The axes of torch's layers, in the words of their constructors.
_LAYERS: dict[type[nn.Module], dict[str, tuple[str, ...]]] = {
    nn.Linear: {"weight": ("out_features", "in_features"), "bias": ("out_features",)},
    nn.Embedding: {"weight": ("num_embeddings", "embedding_dim")},
    nn.LayerNorm: {"weight": ("normalized_shape",), "bias": ("normalized_shape",)},
    nn.RMSNorm: {"weight": ("normalized_shape",)},
}
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class NamedEntries:
    """Parameters as a plan sees them.

    Attributes:
        entries: Each with names where it has some.
        sizes: Of the names that follow from the parameters.
    """

    entries: Sequence[Entry]
    sizes: Mapping[str, int]


def named_entries(params: ParamList, module: nn.Module | None, said: Mapping[str, str] | None) -> NamedEntries:
    """The parameters of a program with the names of their axes.

    Args:
        params: Its parameters; those of a ParamList have names.
        module: Whose they are, where they are a module's.
        said: Names by path, or by patterns of paths as the shell has them (`*.up.weight`); they come before what
            classes declare.

    Raises:
        SignatureError: Names for a ParamList; a pattern that fits nothing; other numbers of axes; two names for one
            axis. ShapeError: One name has two sizes.
    """
    if module is None:
        if said:
            raise SignatureError(f"names is for modules: the annotations of {type(params).__name__} have the names")
        return NamedEntries(params.entries, params.dims)
    places = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    declared = dict(_declared(module, "", {}, {}))
    for pattern, axes in (said or {}).items():
        paths = [path for path in places if fnmatchcase(path, pattern)]
        if not paths:
            raise SignatureError(f"names: `{pattern}` fits no parameter{nearest(pattern, list(places))}")
        declared |= {path: _written(path, axes, places[path]) for path in paths}
    by_id: dict[int, list[str]] = {}
    for path, tensor in places.items():
        by_id.setdefault(id(tensor), []).append(path)
    entries = []
    for entry, tensor in zip(params.entries, params.tensors, strict=True):
        specs = [(path, declared[path]) for path in by_id.get(id(tensor), ()) if path in declared]
        entries.append(_joined(entry, tensor, specs))
    tensors = list(params.tensors)
    return NamedEntries(entries, bind(_bound(entries, tensors), tensors, owner=type(module).__name__).sizes)


def _bound(entries: Sequence[Entry], tensors: Sequence[Tensor]) -> list[Entry]:
    """The entries with the size of an axis where its names do not follow from sizes, as of `heads*head`."""
    dims = [dim for entry in entries for dim in entry.spec.dims]
    known = {dim.text for dim in dims if dim.is_name}
    while more := {n for dim in dims if len(left := set(dim.names) - known) == 1 for n in left}:
        known |= more
    found = []
    for entry, tensor in zip(entries, tensors, strict=True):
        sizes = zip(entry.spec.dims, tensor.shape, strict=True)
        told = tuple(dim if known.issuperset(dim.names) else Dim(str(size)) for dim, size in sizes)
        found.append(replace(entry, spec=replace(entry.spec, dims=told)))
    return found


def _written(path: str, axes: str, tensor: Tensor) -> tuple[Dim, ...]:
    found = tuple(map(Dim.parse, axes.split()))
    if len(found) != tensor.dim():
        shape = list(tensor.shape)
        raise SignatureError(
            f"names: {path} is {shape}, and `{axes}` has {len(found)} axes: name each, or write its size"
        )
    return found


def _joined(entry: Entry, tensor: Tensor, specs: Sequence[tuple[str, tuple[Dim, ...]]]) -> Entry:
    """An entry with the names that its tensor has in all its places: a tied one has several."""
    dims: list[Dim] = list(entry.spec.dims)
    by: dict[int, str] = {}
    for path, found in specs:
        if len(found) != len(dims):
            raise SignatureError(f"{path} is declared with {len(found)} axes, and is {list(tensor.shape)}")
        for i, dim in enumerate(found):
            if not dim.names:
                continue
            if i in by and dims[i] != dim:
                raise SignatureError(
                    f"{by[i]} and {path} are one tensor, and axis {i} is {dims[i]} in one place and {dim} in the other"
                )
            dims[i], by[i] = dim, path
    return replace(entry, spec=replace(entry.spec, dims=tuple(dims)))


def _declared(
    part: nn.Module, prefix: str, renames: Mapping[str, Dim], own: Mapping[str, Dim]
) -> Iterator[tuple[str, tuple[Dim, ...]]]:
    """What classes declare of the parameters of a module, by path.

    Args:
        part: The module.
        prefix: Of its paths.
        renames: How the names that its class has are read.
        own: What is said of it alone: `in_features` and the like of a layer.
    """
    hints = _hints(type(part))
    for name in (*part._parameters, *part._buffers):
        annotation = without_none(split_annotated(hints.get(name))[0])[0]
        if is_tensor_annotation(annotation):
            spec = read_tensor(annotation, f"{type(part).__name__}.{name}").rename(renames)
            yield prefix + name, spec.dims
    for name, axes in _axes(part).items() if own else ():
        tensor = part._parameters.get(name)
        if tensor is not None and len(axes) == tensor.dim():
            found = (own.get(axis, Dim(str(size))) for axis, size in zip(axes, tensor.shape, strict=True))
            yield prefix + name, tuple(found)
    for name, child in part._modules.items():
        if child is None:
            continue
        said = split_annotated(hints.get(name))[1]
        if said:
            _hold_known(f"{type(part).__name__}.{name}", child, said)
        inner = compose(said, renames)
        passed = own if isinstance(part, _CONTAINERS) else {key: inner[key] for key in said}
        yield from _declared(child, f"{prefix}{name}.", inner, passed)


def _hold_known(where: str, part: nn.Module, said: Mapping[str, Dim]) -> None:
    """Hold what is said of a module to names that it has."""
    known = sorted(_known(part))
    for name in said:
        if name not in known:
            raise SignatureError(
                f"{where}: {type(part).__name__} has the dimensions {listing(known) or 'of no name'}, not `{name}`"
                f"{nearest(name, known)}"
            )


def _known(part: nn.Module) -> set[str]:
    """The names that can be said of a module: of its layer, of its class, and of what is below it."""
    found = {axis for axes in _axes(part).values() for axis in axes}
    hints = _hints(type(part))
    for name, annotation in hints.items():
        bare, renames = split_annotated(annotation)
        bare = without_none(bare)[0]
        dims = read_tensor(bare, f"{type(part).__name__}.{name}").dims if is_tensor_annotation(bare) else ()
        found |= {n for dim in (*dims, *renames.values()) for n in dim.names}
    for name, child in part._modules.items():
        if child is not None and name not in hints and (isinstance(part, _CONTAINERS) or not _axes(child)):
            found |= _known(child)
    return found


def _axes(part: nn.Module) -> dict[str, tuple[str, ...]]:
    """The axes of a layer of torch's."""
    return next((axes for kind, axes in _LAYERS.items() if isinstance(part, kind)), {})


def _hints(kind: type) -> dict[str, Any]:
    """The annotations of a module's class; those of torch's own, and of libraries that do not resolve, say nothing."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] not in ("torch", "builtins") and inspect.get_annotations(base):
            with suppress(SignatureError):
                found |= {name: hint for name, hint in resolve_annotations(base).items() if name not in found}
    return found
