"""What a call is given: what is of another kind, or out of range, is refused by name before anything has changed.

`@checked` holds the arguments of a public function, or of a class's constructor, to its annotations. beartype decides;
what it is asked and how the answer reads is said here. It is imported at the first such call, and asked once a call:
steps, losses and what else runs once a batch are not checked in this way.
"""

import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, update_wrapper
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

from torch import Tensor

from shaped.errors import ShapeError, listing

F = TypeVar("F", bound=Callable[..., Any])
OWN = "checked by the function"  # in an Annotated: what is wrong takes more words than its kind


def whole(name: str, value: Any, least: int | None = None, error: type[Exception] = ValueError) -> int:
    """A whole number, of at least `least`; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name} is {value!r}; it is a whole number{bound}")
    return value


def number(name: str, value: Any) -> float:
    """A finite number of at least 0, as a float; a tensor of one element is read."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; it is a finite number of at least 0")
    return float(value)


def pair(name: str, value: Any) -> tuple[float, float]:
    """Two such numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; it is a pair of numbers in [0, 1)")
    return number(f"{name}[0]", value[0]), number(f"{name}[1]", value[1])


def real(name: str, value: Any) -> float:
    """A number, NaN and infinity among them, as a float; a tensor or array of one element is read."""
    if not isinstance(value, str | bytes):
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):
            return float(value)
    raise ValueError(f"{name} is {_shown(value)}; it is a number")


def keyed(name: str, value: Any, *keys: str, error: type[Exception] = ValueError) -> Mapping[str, Any]:
    """A mapping with some keys, as a state is."""
    if not isinstance(value, Mapping):
        raise error(f"{name} is {_shown(value)}; it is a mapping")
    if missing := [key for key in keys if key not in value]:
        raise error(f"{name} lacks {listing(missing)}")
    return value


def only_tensors(function: str, rank: int | None = None, /, **values: Any) -> None:
    """Raise ShapeError where one is no tensor, of some rank: for what runs in a step, where `checked` is no good."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ShapeError(f"{function}: {name} is {_shown(value)}, not a tensor")
        if rank is not None and value.dim() != rank:
            raise ShapeError(f"{function}: {name} is {list(value.shape)}, a tensor of rank {value.dim()}, not {rank}")


def flat(value: Any) -> Sequence[Any]:
    """A pair as it is, a number as a sequence of one."""
    return value if isinstance(value, (tuple, list)) else (value,)


def checked(thing: F) -> F:
    """A function, or a class by its constructor, whose arguments are held to their annotations at each call.

    Of a tensor's annotation only that it is a tensor: sizes and dtypes are the function's own to compare. A whole
    number is a number, True is none, a text is no sequence, and containers are looked at whole.

    Raises (what is returned):
        ValueError: Arguments are of another kind; each is named.
    """
    if isinstance(thing, type):
        thing.__init__ = checked(thing.__init__)  # type: ignore[misc]
        return thing

    def call(*args: Any, **named: Any) -> Any:
        places, starred, kinds = _declared(thing)
        faults = [kinds[name].fault(name, value) for name, value in zip(places, args, strict=False)]
        for i, value in enumerate(args[len(places) :]):
            faults.append(kinds["*"].fault(f"{starred}[{i}]", value))
        for name, value in named.items():
            faults.append(kinds.get(name, kinds["**"]).fault(name, value))
        if any(faults):
            raise ValueError("\n".join(filter(None, faults)))
        return thing(*args, **named)

    return update_wrapper(call, thing)  # type: ignore[return-value]


@cache
def _declared(function: Callable[..., Any]) -> "tuple[list[str], str, dict[str, _Kind]]":
    """What may be given by position, the name of what comes after, and each one's kind; `*`, `**` for the rest."""
    parameters = list(inspect.signature(function).parameters.values())
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = vars(sys.modules["shaped"])  # what only type checkers import, since it stands on a floor above
    hints = get_type_hints(function, localns=names, include_extras=True)
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    asked = {stars.get(p.kind, p.name): hints.get(p.name, Any) for p in parameters}
    starred = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    if get_origin(asked.get("**")) is Unpack:  # the keyword arguments by name
        asked |= get_type_hints(get_args(asked.pop("**"))[0], include_extras=True)
    return places, starred, {name: _Kind(_asked(hint)) for name, hint in {"*": Any, "**": Any, **asked}.items()}


def _asked(hint: Any) -> Any:
    """An annotation as beartype is asked it: only the class of a tensor, and the bound of a type variable."""
    origin, parts = get_origin(hint), get_args(hint)
    if hasattr(hint, "array_type"):  # jaxtyping's
        return hint.array_type
    if origin is Annotated:
        return Any if OWN in hint.__metadata__ else hint
    if isinstance(hint, TypeVar):
        return _asked(hint.__bound__ or Any)
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return Callable[..., Any]  # ours have a call and nothing else
    if origin in (Union, UnionType):
        return Union[tuple(_asked(part) for part in parts)]  # noqa: UP007
    if origin in (None, Literal, Callable, Annotated):
        return hint
    return origin[tuple(_asked(part) for part in parts)]


@cache
def _asking() -> Callable[[Any, Any], bool]:
    """beartype's question; importing it takes a tenth of what importing torch does, so the first call does it."""
    from beartype.door import is_bearable

    return is_bearable


def _question(hint: Any) -> Any:
    """An annotation with what a number and a path are to us."""
    from beartype.vale import IsInstance

    ours = {
        int: Annotated[int, ~IsInstance[bool]],
        float: Annotated[Real, ~IsInstance[bool]],  # numpy's too
        Path: os.PathLike,
    }
    origin = get_origin(hint)
    if origin in (None, Literal, Callable, Annotated):
        return ours.get(hint, hint)
    parts = tuple(_question(part) for part in get_args(hint))
    return Union[parts] if origin is Union else origin[parts]  # noqa: UP007


class _Kind:
    """An annotation, taken apart once: its alternatives, and what the items of a container are."""

    def __init__(self, hint: Any) -> None:
        self.hint, self.origin, parts = hint, get_origin(hint), get_args(hint)
        self.choices = [_Kind(part) for part in parts] if self.origin is Union else []
        fixed = self.origin is tuple and Ellipsis not in parts  # beartype looks at each of these
        self.holds = isinstance(self.origin, type) and issubclass(self.origin, Iterable) and not fixed
        self.parts = [_Kind(part) for part in parts if part is not Ellipsis] if self.holds else []
        # Of a container beartype would draw one item, from Python's own generator: the user's numbers would be others.
        self.question = self.origin if self.holds else _question(hint)
        self.simple = not self.holds and not any(choice.holds for choice in self.choices)

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind, with all items of a container."""
        if self.simple:
            return self.hint is Any or _asking()(value, self.question)
        if self.choices:
            return any(choice.fits(value) for choice in self.choices)
        if isinstance(value, str | bytes) or not _asking()(value, self.question):
            return False
        return all(kind.fits(item) for _, item, kind in self.items(value))

    def items(self, value: Any) -> "Iterator[tuple[str, Any, _Kind]]":
        """What is in a container: where, what and its kind. Where the kind is a class, one item of each class."""
        first, last = self.parts[0], self.parts[-1]
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield "a key of {}", key, first
                yield f"{{}}[{key!r}]", item, last
        elif isinstance(value, Collection) and not isinstance(value, range) and first.hint is not Any:
            alike = isinstance(first.hint, type)
            some = {type(item) if alike else i: (i, item) for i, item in enumerate(value)}
            for i, item in some.values():
                yield f"{{}}[{i}]", item, first

    def fault(self, name: str, value: Any) -> str:
        """What is wrong with an argument: with the first item that is, where the container is of the right kind."""
        if self.fits(value):
            return ""
        for one in self.choices or [self]:
            if one.holds and not isinstance(value, str | bytes) and _asking()(value, one.origin):
                for where, item, kind in one.items(value):
                    if fault := kind.fault(where.format(name), item):
                        return fault
        return f"{name} is {_shown(value)}; it is {_said(self.hint)}"


def _shown(value: Any) -> str:
    """A value in a message: as it is written, where that is short."""
    if isinstance(value, bool | int | float | str | NoneType) and len(repr(value)) <= 60:
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else _a(type(value).__name__)


_WORDS = {
    int: "whole number", float: "number", str: "text", Path: "path", Tensor: "tensor", Callable: "function",
    Mapping: "mapping", dict: "mapping", type: "class", Sequence: "sequence", Iterable: "sequence",
    Collection: "collection", list: "list",
}  # fmt: skip


def _said(hint: Any) -> str:
    """An annotation in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union or origin is Literal:
        words = [_said(part) if origin is Union else repr(part) for part in parts]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if hint in (None, NoneType, bool):
        return "True or False" if hint is bool else "None"
    word = _WORDS.get(origin or hint, getattr(origin or hint, "__name__", str(hint)))
    of = f" of {_WORDS[parts[0]]}s" if word in ("sequence", "list", "tuple") and parts[0] in _WORDS else ""
    return _a(word) + of


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"
