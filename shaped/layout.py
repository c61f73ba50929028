"""How a ParamList class is laid out: its declared fields, and with list lengths, its flat entries.

The class says what is declared; a `Layout` adds how long each nested list is, and from then on everything is flat: one
`Entry` for each tensor, in declaration order, with its dimension names read in the outermost class's terms.
"""

import copyreg
import inspect
import itertools
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, get_args, get_origin

from shaped.errors import SignatureError, listing, nearest
from shaped.init import Initializer
from shaped.shapes import (
    Dim,
    Entry,
    Origin,
    TensorSpec,
    compose,
    is_tensor_annotation,
    read_tensor,
    resolve_annotations,
    spell,
    split_annotated,
)

DEFAULT_LENGTH = 2  # of `blocks: list[Block]` where nobody says; a proof states the length that it used


@dataclass(frozen=True)
class Field:
    """One declared field: a tensor, a nested list of parameters, or a Python list of such."""

    name: str
    spec: TensorSpec | None  # set for a tensor
    nested: Any  # the nested ParamList class, alone or in a list; None for a tensor
    is_list: bool
    renames: Mapping[str, Dim]
    default: Any  # an Initializer, a list's length, or None
    origin: Origin
    key: str = ""  # where an instance keeps it, if not under its name: a module may call a tensor `values`

    @property
    def place(self) -> str:
        """The key in an instance's `__dict__`."""
        return self.key or self.name


@dataclass(frozen=True)
class Layout:
    """A ParamList class with the length of each of its lists: enough to flatten, build and speak of its entries."""

    cls: Any  # the ParamList class
    children: tuple["Layout | tuple[Layout, ...] | None", ...]  # parallel to cls fields; None for a tensor

    @property
    def name(self) -> str:
        """The class's."""
        return str(self.cls.__name__)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor with its path, dimension names read in the outermost class's terms."""
        return tuple(self._entries("", {}))

    def _entries(self, prefix: str, renames: Mapping[str, Dim]) -> Iterator[Entry]:
        for field, child in zip(self.cls._fields, self.children, strict=True):
            path = prefix + field.name
            if field.spec is not None:
                yield Entry(path, field.spec.rename(renames), field.origin)
                continue
            inner = compose(field.renames, renames)
            if isinstance(child, tuple):
                for i, one in enumerate(child):
                    yield from one._entries(f"{path}.{i}.", inner)
            elif child is not None:
                yield from child._entries(f"{path}.", inner)

    @property
    def initializers(self) -> tuple[Any, ...]:
        """The declared initialiser of each tensor (None where there is none), in the order of `entries`."""
        found: list[Any] = []
        for field, child in zip(self.cls._fields, self.children, strict=True):
            parts = child if isinstance(child, tuple) else (child,)
            found.extend([field.default] if field.spec else itertools.chain(*(p.initializers for p in parts if p)))
        return tuple(found)

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each list, by path."""
        return dict(self._lengths(""))

    def _lengths(self, prefix: str) -> Iterator[tuple[str, int]]:
        for field, child in zip(self.cls._fields, self.children, strict=True):
            if isinstance(child, tuple):
                yield prefix + field.name, len(child)
                yield from itertools.chain(*(one._lengths(f"{prefix}{field.name}.{i}.") for i, one in enumerate(child)))
            elif child is not None:
                yield from child._lengths(f"{prefix}{field.name}.")

    def build(self, tensors: Sequence[Any]) -> Any:
        """An instance over these leaves, unchecked: for traces, whose sizes are symbols, and for pytrees."""
        return self._take(iter(tensors))

    def _take(self, leaves: Iterator[Any]) -> Any:
        made = object.__new__(self.cls)
        for field, child in zip(self.cls._fields, self.children, strict=True):
            if child is None:
                made.__dict__[field.place] = next(leaves)
            elif isinstance(child, tuple):
                made.__dict__[field.place] = tuple(one._take(leaves) for one in child)
            else:
                made.__dict__[field.place] = child._take(leaves)
        made.__dict__["_layout"] = self
        made.__dict__["_tensors"] = tuple(made._leaves())
        return made


class _Made(type):
    """The type of classes that no line of a program declares: anonymous ones, and those of modules."""


def make_class(name: str, annotations: Mapping[str, Any], base: type) -> Any:
    """A ParamList class that is in no module; pickled as what it was made of. `base` is ParamList itself."""
    return _Made(name, (base,), {"__annotations__": dict(annotations), "__module__": base.__module__})


def _make_again(name: str, base: type, fields: tuple[Field, ...]) -> Any:
    made = make_class(name, {}, base)
    made._fields = fields
    return made


def _reduced(cls: Any) -> tuple[Any, ...]:
    return _make_again, (cls.__name__, cls.__base__, cls._fields)


copyreg.pickle(_Made, _reduced)


def dimension_names(fields: Sequence[Field]) -> tuple[str, ...]:
    """Every dimension name of these fields, nested ones in the outermost terms, in order of appearance."""
    found: list[str] = []
    for field in fields:
        inner = field.spec.dims if field.spec else [Dim(n).substitute(field.renames) for n in _names_in(field.nested)]
        found.extend(name for dim in inner for name in dim.names)
    return tuple(dict.fromkeys(found))


def _names_in(nested: Any) -> tuple[str, ...]:
    return dimension_names(nested._fields)


def read_fields(cls: type, base: type) -> tuple[Field, ...]:
    """The fields that a class body declares, in order; `base` is ParamList itself.

    Raises:
        SignatureError: An annotation does not resolve or is not understood, or a name is one that ParamList uses.
    """
    annotations = resolve_annotations(cls)
    own = [
        name
        for name in inspect.get_annotations(cls)
        if ClassVar not in (annotations[name], get_origin(annotations[name]))
    ]
    check_names(cls.__name__, own, base)
    lines = _declaration_lines(cls)
    return tuple(_read_field(cls, name, annotations[name], lines.get(name), base) for name in own)


def check_names(owner: str, names: Sequence[str], base: type) -> None:
    """Raise SignatureError where a field's name would hide something of ParamList's."""
    hidden = [name for name in names if hasattr(base, name) or name.startswith("_")]
    if hidden:
        raise SignatureError(
            f"{owner}: no entry may be named {listing(hidden)}: ParamList keeps its own attributes, and names with an "
            "underscore in front, for itself"
        )


def _read_field(cls: type, name: str, annotation: Any, origin: Origin, base: type) -> Field:
    where = f"{cls.__name__}.{name}"
    default = cls.__dict__.get(name)
    bare, renames = split_annotated(annotation)
    if is_tensor_annotation(bare):
        if default is not None and not isinstance(default, Initializer):
            raise SignatureError(f"{where}: its value must be an initialiser such as init.zeros(), not {default!r}")
        spec = read_tensor(bare, where).rename(renames)
        if spec.axes is not None:
            raise SignatureError(f"{where}: a parameter has a fixed number of axes: name each instead of *{spec.axes}")
        return Field(name, spec, None, False, {}, default, origin)
    is_list = get_origin(bare) is list
    if is_list:
        bare, inner = split_annotated(get_args(bare)[0])
        renames = compose(inner, renames)
    if not (isinstance(bare, type) and issubclass(bare, base)):
        raise SignatureError(
            f'{where}: `{spell(bare)}` is no tensor and no ParamList; write Float[Tensor, "rows columns"], '
            "a ParamList class, or list[...] of one"
        )
    if default is not None and not (is_list and isinstance(default, int) and not isinstance(default, bool)):
        wanted = "the list's length" if is_list else "nothing: the nested class has its own initialisers"
        raise SignatureError(f"{where}: its value must be {wanted}, not {default!r}")
    known = _names_in(bare)
    for unknown in set(renames) - set(known):
        raise SignatureError(
            f"{where}: {bare.__name__} has the dimensions {listing(known)}, not `{unknown}`{nearest(unknown, known)}"
        )
    return Field(name, None, bare, is_list, renames, default, origin)


def _declaration_lines(cls: type) -> dict[str, tuple[str, int]]:
    """File and line of each annotated field, from the source; empty where there is none (a notebook, exec)."""
    import ast
    import textwrap

    try:
        source, start = inspect.getsourcelines(cls)
        file = inspect.getsourcefile(cls) or sys.modules[cls.__module__].__file__ or "?"
        body = ast.parse(textwrap.dedent("".join(source))).body[0]
    except (OSError, TypeError, SyntaxError, KeyError, IndexError, AttributeError):
        return {}
    return {
        node.target.id: (file, start + node.lineno - 1)
        for node in ast.iter_child_nodes(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def list_names(cls: Any) -> set[str]:
    """The names of the list fields of a class and of those nested in it."""
    own = {field.name for field in cls._fields if field.is_list}
    return own.union(*(list_names(field.nested) for field in cls._fields if field.nested is not None))


def whole_sizes(cls: Any, sizes: Mapping[str, Any]) -> dict[str, int]:
    """The sizes as ints; everything that is wrong with them is reported at once."""
    names, lists = dimension_names(cls._fields), list_names(cls)
    missing = [name for name in names if name not in sizes]
    wrong = [f"{listing(missing)} missing"] if missing else []
    wrong += [f"`{name}` is the name of an argument of init" for name in missing if name in _ARGUMENTS]
    wrong += [f"`{n}` is not one of them{nearest(n, [*names, *lists])}" for n in sizes if n not in {*names, *lists}]
    whole = {name: _whole(size) for name, size in sizes.items()}
    wrong += [
        f"{name} = {sizes[name]!r} is not a {'positive ' * (name in names)}whole number"
        for name, size in whole.items()
        if size is None or size < (name in names)
    ]
    if wrong:
        raise SignatureError(f"{cls.__name__} has the dimensions {listing(names)}: {'; '.join(wrong)}")
    return {name: size for name, size in whole.items() if size is not None}


_ARGUMENTS = ("seed", "device", "dtype", "frozen")


def _whole(size: Any) -> int | None:
    try:
        return None if isinstance(size, bool) else operator.index(size)
    except TypeError:
        return None


def frozen_entries(owner: str, entries: Sequence[Entry], frozen: Sequence[str]) -> list[bool]:
    """Which entries stand at or under one of the paths."""
    for path in frozen:
        if not any(_under(entry.path, path) for entry in entries):
            known = [entry.path for entry in entries]
            raise SignatureError(f"{owner}: nothing to freeze at `{path}`{nearest(str(path), known)}")
    return [any(_under(entry.path, path) for path in frozen) for entry in entries]


def _under(path: str, prefix: Any) -> bool:
    return f"{path}.".startswith(f"{prefix}.")
