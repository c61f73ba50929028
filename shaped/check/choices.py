"""Values for what an annotation asks for: each way to make one of tensors, of sizes, and of plain values.

An integer is a size of its own, as the length of a tensor that nobody reads; so a program is proved for all integers
that it lets be symbolic. What cannot be invented is an `Unknown`.
"""

import enum
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from shaped.check.unknown import Keyed, Unknown
from shaped.check.written import ONES, Fresh, axes_of, read_written
from shaped.errors import SignatureError
from shaped.shapes import Container, Dim, TensorSpec, is_tensor_annotation, spell

MOST = 16  # combinations that are proved
_FLOATS = (0.5, 2.0)
_LENGTHS = (1, 2)  # of lists
_RANKS = (2, 1, 3, 0)  # of tensors without a shape
_KEYS = ("a", "b")
_SPOKEN = (bool, int, float, str, enum.Enum, type(None))  # defaults that a statement can say
_SIZE = TensorSpec((), (torch.bool,), "Bool")
_SEQUENCES = {list: list, tuple: tuple, set: None}
T = TypeVar("T")


@dataclass(frozen=True)
class ValueChoice:
    """One way to come by a value, and what a statement says of it where there are others."""

    value: Container
    said: tuple[str, ...] = ()
    tried: bool = False  # nothing says that it is so: a shape for a Tensor that has none
    given: bool = False  # made once, by a factory without free dimensions
    sizes: tuple[tuple[str, int], ...] = ()  # dimensions that it has then: boot(width := 12)
    defaults: tuple[str, ...] = ()  # of constructors, that were taken: n_heads = 4


def constant(path: str, value: Any, said: str = "") -> ValueChoice:
    """A value that is known."""
    return ValueChoice(Container(path, type(value).__name__, make=partial(_given, value)), (said,) if said else ())


def _by_default(path: str, value: Any, constructor: str) -> ValueChoice:
    """What stands in a signature: in a function's own it is seen, in a constructor's it is to be said."""
    said = constructor and isinstance(value, _SPOKEN)
    return replace(constant(path, value), defaults=(f"{path.removeprefix('self.')} = {value!r}",) if said else ())


def whole(path: str, dim: str) -> ValueChoice:
    """An integer that is a dimension."""
    leaf = Container(dim, "tensor", TensorSpec((Dim(dim),), _SIZE.dtypes, _SIZE.kind))
    return ValueChoice(Container(path, dim, None, (leaf,), ("0",), _length))


def unknown(path: str, why: str) -> ValueChoice:
    """A value that nothing tells."""
    return ValueChoice(Container(path, "unknown", make=partial(_unknown, path, why)))


def is_unknown(choice: ValueChoice) -> bool:
    """Whether nothing tells the value."""
    return choice.value.kind == "unknown"


def is_whole(choice: ValueChoice) -> bool:
    """Whether it is an integer that is a dimension."""
    return choice.value.make is _length


def together(
    path: str, kind: str, keys: Sequence[str], parts: Sequence[ValueChoice], make: Callable[[Sequence[Any]], Any]
) -> ValueChoice:
    """A value made of others."""
    said = tuple(text for part in parts for text in part.said)
    value = Container(path, kind, None, tuple(part.value for part in parts), tuple(keys), make)
    sizes = tuple(size for part in parts for size in part.sizes)
    tried, given = any(part.tried for part in parts), any(part.given for part in parts)
    return ValueChoice(value, said, tried, given, sizes, tuple(text for part in parts for text in part.defaults))


def alike(choice: ValueChoice, path: str) -> ValueChoice:
    """A value of which all tensors with any number of axes have the same ones, where that is another."""
    names = list(dict.fromkeys(name for entry in choice.value.entries for name in axes_of(entry.spec)))
    if len(names) < 2:
        return choice
    axes = {f"{name}{end}": [Dim(f"*{names[0]}{end}")] for name in names for end in ("", ONES)}
    said = f"{', '.join(f'*{name}' for name in names[1:])} of {path} as *{names[0]}"
    return replace(choice, value=choice.value.map(lambda spec: spec.with_axes(axes)), said=(*choice.said, said))


def combined(options: Sequence[Sequence[T]], most: int = MOST) -> tuple[list[tuple[T, ...]], int]:
    """One of each, in all combinations, and how many were left out.

    Where there are too many: the first of each, then each other one beside the first of the others, then some.
    """
    count = 1
    for some in options:
        count *= len(some)
    first = tuple(some[0] for some in options)
    if count <= most:
        return list(itertools.product(*options)), 0
    found = [first]
    for i, some in enumerate(options):
        found += [(*first[:i], other, *first[i + 1 :]) for other in some[1:]]
    return found[:most], count - len(found[:most])


def _given(value: Any, parts: Sequence[Any]) -> Any:
    return value


def _length(parts: Sequence[Tensor]) -> Any:
    return parts[0].shape[0]


def _unknown(path: str, why: str, parts: Sequence[Any]) -> Unknown:
    return Unknown(path, why)


def _keyed(keys: Sequence[Any], parts: Sequence[Any]) -> Keyed:
    return Keyed(zip(keys, parts, strict=True))


@dataclass
class Inventor:
    """Makes values for one signature.

    Attributes:
        dims: Names of the axes in the annotations: an integer of such a name is that size, whatever its default.
        instances: What makes an instance of a class; None where classes are unknown.
        given: What the user says of an argument by its name and its function's; nothing where that is nothing.
        owner: The function's name.
        ints: The integers that were invented.
        left_out: Alternatives that cannot be invented, and combinations.
        plain: Make each instance of as little as may be: of defaults, also None for a tensor, and of tensors of
            the same axes. What each argument may be does not tell which of them go together.
    """

    dims: frozenset[str] = frozenset()
    instances: Callable[["Inventor", type, str], list[ValueChoice]] | None = None
    given: Callable[[str, str, str, list[str]], list[ValueChoice]] | None = None
    owner: str = ""
    ints: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fresh: Fresh = field(default_factory=Fresh)
    making: list[type] = field(default_factory=list)  # classes under way
    plain: bool = False

    def arguments(
        self, parameters: Iterable[inspect.Parameter], hints: Mapping[str, Any], prefix: str = ""
    ) -> dict[str, list[ValueChoice]]:
        """The choices for each parameter of a call; those for any number of arguments are left empty."""
        stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {p.name: self.argument(p, hints, prefix) for p in parameters if p.kind not in stars}

    def argument(self, parameter: inspect.Parameter, hints: Mapping[str, Any], prefix: str = "") -> list[ValueChoice]:
        """The choices for one parameter."""
        path, default = prefix + parameter.name, parameter.default
        hint = hints.get(parameter.name)
        given = default is not parameter.empty
        owner = self.making[-1].__qualname__ if prefix and self.making else self.owner
        said = self.given(parameter.name, owner, path, self.ints) if self.given is not None else []
        if said:
            return said
        if parameter.name not in hints:
            return [_by_default(path, default, prefix) if given else unknown(path, "it has no annotation")]
        bare, optional = without_none(hint)
        if bare is int and parameter.name in self.dims:
            return [self._integer(path, parameter.name)]
        shaped = has_shape(hint) or (optional and self._holds_shapes(bare))
        if given and not (default is None and shaped and not (self.plain and prefix)):
            if default is None and shaped:
                return [constant(path, default, f"{path} absent")]
            return [_by_default(path, default, prefix)]
        if given and optional is False:  # x: Float[Tensor, "n"] = None
            hint = Union[hint, None]  # noqa: UP007  # of any two objects
        return self.of(hint, path)

    def of(self, hint: Any, path: str) -> list[ValueChoice]:
        """The choices for an annotation."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is typing.Annotated:
            return self.of(arguments[0], path)
        if isinstance(hint, typing.NewType):
            return self.of(hint.__supertype__, path)
        if is_tensor_annotation(hint):
            return self._tensor(hint, path)
        if origin in (Union, types.UnionType):
            return self._union(arguments, path)
        if origin is Literal:
            return [constant(path, value, f"{path} = {value!r}") for value in arguments]
        if origin is not None:
            return self._generic(hint, origin, arguments, path)
        return self._plain(hint, path)

    def _tensor(self, hint: Any, path: str) -> list[ValueChoice]:
        if not (isinstance(hint.array_type, type) and issubclass(hint.array_type, Tensor)):
            return [unknown(path, f"it is a {spell(hint.array_type)}")]
        try:
            readings = read_written(hint, f"`{path}`", self.fresh)
        except SignatureError as error:
            return [unknown(path, f"its annotation cannot be read: {error}")]
        return [ValueChoice(Container(path, "tensor", r.spec), tuple(f"{path}: {s}" for s in r.said)) for r in readings]

    def instance(self, kind: type, path: str) -> list[ValueChoice]:
        """The choices for an instance of a class."""
        made = self.instances(self, kind, path) if self.instances is not None else []
        return [alike(choice, path) for choice in made] if self.plain else made

    @staticmethod
    def _holds_shapes(kind: Any) -> bool:
        """Whether it is a class whose annotations have shapes, such as a dataclass of tensors."""
        return isinstance(kind, type) and any(map(has_shape, getattr(kind, "__annotations__", {}).values()))

    def _union(self, alternatives: Sequence[Any], path: str) -> list[ValueChoice]:
        found, tensors = [], sum(map(has_shape, alternatives))
        for alternative in alternatives:
            several = len([a for a in alternatives if a is not type(None)]) > 1
            for choice in self.of(alternative, path):
                if alternative is type(None):
                    found.append(constant(path, None, f"{path} absent"))
                elif is_unknown(choice):
                    self.left_out.append(f"{path} as {spell(alternative)}")
                else:
                    shape = f" {choice.value.name}" if tensors > 1 and choice.value.spec else ""
                    said = f"{path} as {spell(alternative)}" if several and not shape else f"{path}{shape} present"
                    found.append(replace(choice, said=choice.said or (said,)))
        found.sort(key=lambda choice: choice.said == (f"{path} absent",))
        return found or [unknown(path, "none of its alternatives can be invented")]

    def _generic(self, hint: Any, origin: Any, arguments: Sequence[Any], path: str) -> list[ValueChoice]:
        if origin is Hashable:
            return [replace(constant(path, path, f"{path} = {path!r}"), tried=True)]  # each of its own
        if origin is tuple and Ellipsis not in arguments:
            return self._several(path, tuple, [self.of(a, f"{path}[{i}]") for i, a in enumerate(arguments)])
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
            keys: Sequence[Any] = (0, 1) if arguments[0] is int else _KEYS
            options = [self.of(arguments[1], f"{path}[{key!r}]") for key in keys]
            chosen, _ = combined(options)
            return [together(path, "dict", list(map(str, keys)), parts, partial(_keyed, keys)) for parts in chosen]
        if origin in (list, tuple) or (isinstance(origin, type) and issubclass(list, origin)):
            found = []
            for length in _LENGTHS:
                options = [self.of(arguments[0], f"{path}[{i}]") for i in range(length)]
                for choice in self._several(path, tuple if origin is tuple else list, options)[:1]:
                    found.append(replace(choice, said=(f"len({path}) = {length}", *choice.said)))
            return found
        if isinstance(origin, type) and self.instances is not None and origin.__module__ not in ("typing", "builtins"):
            return self.instance(origin, path)
        return [unknown(path, f"nothing makes its {spell(hint)}")]

    def _several(self, path: str, kind: Any, options: Sequence[Sequence[ValueChoice]]) -> list[ValueChoice]:
        chosen, left = combined(options)
        if left:
            self.left_out.append(f"{left} combinations of {path}")
        keys = [str(i) for i in range(len(options))]
        return [together(path, kind.__name__, keys, parts, kind) for parts in chosen]

    def _plain(self, hint: Any, path: str) -> list[ValueChoice]:
        if hint is int:
            return [self._integer(path, path)]
        if hint is bool:
            return [constant(path, value, f"{path} = {value}") for value in (True, False)]
        if hint is float:
            return [constant(path, value, f"{path} = {value}") for value in _FLOATS]
        if hint is None or hint is type(None):
            return [constant(path, None)]
        if hint is torch.device:
            return [constant(path, torch.device("cpu"))]
        if hint is torch.dtype:
            return [constant(path, torch.float32, f"{path} = float32")]
        if inspect.ismethod(layout := getattr(hint, "layout", None)):  # a ParamList class
            structure = layout()
            leaves = [ValueChoice(Container(entry.path, "tensor", entry.spec)) for entry in structure.entries]
            return [together(path, structure.name, [e.path for e in structure.entries], leaves, structure.build)]
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return [constant(path, member, f"{path} = {member}") for member in hint]
        if hint is Tensor:
            return [self._shaped(path, rank) for rank in _RANKS]
        if isinstance(hint, type) and self.instances is not None and hint.__module__ not in ("builtins", "typing"):
            return self.instance(hint, path)
        return [unknown(path, f"nothing makes its {spell(hint)}")]

    def _shaped(self, path: str, rank: int) -> ValueChoice:
        """A tensor with a number of axes of its own."""
        stem = _identifier(path)
        dims = tuple(Dim(f"{stem}_{i}") for i in range(1, rank + 1))
        spec = TensorSpec(dims, (torch.float32, torch.int64), "Num")
        said = f"{path} has {rank} ax{'i' if rank == 1 else 'e'}s"
        return ValueChoice(Container(path, "tensor", spec), (said,), tried=True)

    def _integer(self, path: str, name: str) -> ValueChoice:
        name = _identifier(name)
        if name not in self.ints:
            self.ints.append(name)
        return whole(path, name)


def _identifier(path: str) -> str:
    """The last part of a path as a name."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in path.rpartition(".")[2]).strip("_")


def without_none(hint: Any) -> tuple[Any, bool]:
    """What is optional, and whether it is."""
    if get_origin(hint) in (Union, types.UnionType):
        others = [alternative for alternative in get_args(hint) if alternative is not type(None)]
        if len(others) < len(get_args(hint)):
            return (others[0] if len(others) == 1 else Union[tuple(others)]), True  # noqa: UP007
    return hint, False


def has_shape(hint: Any) -> bool:
    """Whether an annotation has a tensor's shape in it."""
    return is_tensor_annotation(hint) or any(map(has_shape, get_args(hint)))
