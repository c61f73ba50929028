"""How a ParamList class is laid out: its declared fields, and with list lengths, its flat entries.

The class says what is declared; a `Layout` adds how long each nested list is, and from then on everything is flat: one
`Entry` for each tensor, in declaration order, with its dimension names read in the outermost class's terms.
"""

import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args, get_origin

from shaped.errors import SignatureError
from shaped.init import Initializer
from shaped.shapes import Dim, Entry, TensorSpec, is_tensor_annotation, read_tensor, resolve_hints, split_annotated

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
    origin: tuple[str, int] | None


@dataclass(frozen=True)
class Layout:
    """A ParamList class with the length of each of its lists: enough to flatten, build and speak of its entries."""

    cls: Any  # the ParamList class
    children: tuple["Layout | tuple[Layout, ...] | None", ...]  # parallel to cls fields; None for a tensor

    @property
    def name(self) -> str:
        return self.cls.__name__

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every tensor with its path, dimension names read in the outermost class's terms."""
        return tuple(self._entries("", {}))

    def _entries(self, prefix: str, renames: Mapping[str, Dim]) -> Iterator[Entry]:
        for field, child in zip(self.cls._fields, self.children, strict=True):
            path = prefix + field.name
            if field.spec is not None:
                yield Entry(path, field.spec.rename(renames), field.origin)
                continue
            inner = {**renames, **{name: dim.substitute(renames) for name, dim in field.renames.items()}}
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
                made.__dict__[field.name] = next(leaves)
            elif isinstance(child, tuple):
                made.__dict__[field.name] = tuple(one._take(leaves) for one in child)
            else:
                made.__dict__[field.name] = child._take(leaves)
        made.__dict__["_layout"] = self
        made.__dict__["_tensors"] = tuple(made._leaves())
        return made


def read_fields(cls: type, base: type) -> tuple[Field, ...]:
    """The fields that a class body declares, in order; `base` is ParamList itself.

    Raises:
        SignatureError: An annotation does not resolve or is not understood, or a name is one that ParamList uses.
    """
    own = [
        name
        for name, annotation in inspect.get_annotations(cls).items()
        if not name.startswith("_") and get_origin(annotation) is not ClassVar and "ClassVar" not in str(annotation)[:16]
    ]
    if not own:
        return ()
    hints = resolve_hints(cls)
    reserved = [name for name in own if hasattr(base, name)]
    if reserved:
        raise SignatureError(f"{cls.__name__}.{reserved[0]}: ParamList has an attribute of that name; choose another")
    lines = _declaration_lines(cls)
    return tuple(_read_field(cls, name, hints[name], lines.get(name), base) for name in own)


def _read_field(cls: type, name: str, annotation: Any, origin: tuple[str, int] | None, base: type) -> Field:
    where = f"{cls.__name__}.{name}"
    default = cls.__dict__.get(name)
    bare, renames = split_annotated(annotation)
    if is_tensor_annotation(bare):
        if default is not None and not isinstance(default, Initializer):
            raise SignatureError(f"{where}: its value must be an initialiser such as init.zeros(), not {default!r}")
        return Field(name, read_tensor(bare, where).rename(renames), None, False, {}, default, origin)
    is_list = get_origin(bare) is list
    if is_list:
        bare, inner = split_annotated(get_args(bare)[0])
        renames = {**inner, **renames}
    if not (isinstance(bare, type) and issubclass(bare, base)):
        shown = getattr(bare, "__name__", str(bare))
        raise SignatureError(
            f'{where}: `{shown}` is no tensor and no ParamList; write Float[Tensor, "rows columns"], a ParamList class, '
            "or list[...] of one"
        )
    if default is not None and not (is_list and isinstance(default, int) and not isinstance(default, bool)):
        wanted = "the list's length" if is_list else "nothing: the nested class has its own initialisers"
        raise SignatureError(f"{where}: its value must be {wanted}, not {default!r}")
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
