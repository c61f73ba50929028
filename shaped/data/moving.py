"""What data keeps besides generators and moves while it is gone over: counts of epochs, places, shuffled orders.

A sampler that counts its epochs to seed itself, or shuffles a list in place, gives other rows where it begins anew. So
what has moved since the data was first seen is saved, and put back: numbers, arrays, tensors and lists of numbers that
the user's own objects have as attributes, and the order of a list of batches. What stays as it was made is not saved:
a script may be started again with another batch size.
"""

import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from shaped.data.kept import checksum, is_stateful, walk

_NUMBERS = (bool, int, float)
_ENDS, _LARGEST = 1000, 2**26  # elements at either end that are looked at, and bytes that are saved
_THEIRS = ("torch.", "torchdata.", "numpy.", "shaped.", "builtins.", "functools.", "random.")


class Moving:
    """The moving parts of some data.

    Attributes:
        first: The data; of a list, a list in the order that it had.
    """

    def __init__(self, data: Any) -> None:
        self.first = list(data) if type(data) is list else data
        self._data = None if is_stateful(data) else data
        self._first = {path: _print(value) for path, value in _parts(self._data)}
        self._moved: set[str] = set()
        self._told = False

    def states(self) -> dict[str, Any]:
        """What has moved, by where it is, as plain data."""
        found = {}
        for path, value in _parts(self._data):
            if path not in self._first or self._first[path] != _print(value):
                self._moved.add(path)
            if path in self._moved and self._fits(path, value):
                found[path] = _state(value)
        return found

    def _fits(self, path: str, value: Any) -> bool:
        size = 8 * len(value) if isinstance(value, list) else getattr(value, "nbytes", 8)
        if size > _LARGEST and not self._told:
            self._told = True
            warnings.warn(
                f"{path} changes while the data is gone over, and its {size} bytes are too many to be saved: a resumed "
                "run may see other rows",
                stacklevel=3,
            )
        return bool(size <= _LARGEST)

    def put_back(self, states: Mapping[str, Any]) -> None:
        """Let what states name be as it was; what they do not name stays."""
        mine = {path: state for path, state in states.items() if {*state} <= {*_LOADERS}}
        owners = {path: thing for path, thing in walk(self._data) if not _is_theirs(thing)} if mine else {}
        for path, state in mine.items():
            owner, _, name = path.rpartition(".")
            if owner in owners:
                self._moved.add(path)
                _load(owners[owner], name, state)
        if "data" in mine and isinstance(self._data, list):
            self._moved.add("data")
            _reorder(self._data, mine["data"]["order"])


def _parts(data: Any) -> Iterator[tuple[str, Any]]:
    """Each thing that may move, with where it is."""
    if isinstance(data, list) and data and not _of_numbers(data):
        yield "data", data
    for path, thing in walk(data) if data is not None else ():
        if hasattr(thing, "__dict__") and not _is_theirs(thing):
            yield from ((f"{path}.{name}", value) for name, value in list(vars(thing).items()) if _moves(value))


def _is_theirs(thing: Any) -> bool:
    return isinstance(thing, type) or f"{type(thing).__module__}.".startswith(_THEIRS)


def _moves(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _of_numbers(value)
    if type(value) is Tensor:
        return value.layout is torch.strided and not value.is_meta and not value.is_quantized
    return type(value) in _NUMBERS or (_is_array(value) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8)


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _of_numbers(items: list[Any]) -> bool:
    return type(items[0]) in _NUMBERS and type(items[-1]) in _NUMBERS


def _print(value: Any) -> Any:
    """What is another where a value has changed; of a long one its two ends are looked at."""
    if isinstance(value, list):
        ends = value if len(value) <= 2 * _ENDS else value[:_ENDS] + value[-_ENDS:]
        return len(value), (repr(ends) if _of_numbers(value) else [*map(id, ends)])
    if isinstance(value, Tensor):
        flat = value.detach().reshape(-1)
        return tuple(value.shape), checksum([flat[:_ENDS], flat[-_ENDS:]])
    if _is_array(value):
        return value.shape, zlib.crc32(value.flat[-_ENDS:].tobytes(), zlib.crc32(value.flat[:_ENDS].tobytes()))
    return value


def _state(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"list": list(value)} if _of_numbers(value) else {"order": list(map(_sum, value))}
    if isinstance(value, Tensor):
        return {"tensor": value.detach().clone()}
    return {"array": torch.from_numpy(value.copy())} if _is_array(value) else {"number": value}


def _sum(item: Any) -> int:
    """A checksum of a batch."""
    return checksum([leaf for leaf in pytree.tree_leaves(item) if isinstance(leaf, Tensor)])


_LOADERS: Mapping[str, Any] = {
    "list": list,
    "tensor": torch.clone,
    "array": lambda tensor: tensor.numpy().copy(),
    "number": lambda number: number,
    "order": None,
}


def _load(owner: Any, name: str, state: Mapping[str, Any]) -> None:
    """Put a value back: where there is one of its form, into that, which others may hold too."""
    (kind, value), *_ = state.items()
    here: Any = vars(owner).get(name) if hasattr(owner, "__dict__") else None
    if kind == "list" and isinstance(here, list):
        here[:] = value
    elif kind == "tensor" and isinstance(here, Tensor) and here.shape == value.shape:
        with torch.no_grad():
            here.copy_(value)
    elif kind == "array" and _is_array(here) and here.shape == tuple(value.shape) and here.flags.writeable:
        here[...] = value.numpy()
    elif kind != "order":
        setattr(owner, name, _LOADERS[kind](value))


def _reorder(items: list[Any], order: list[int]) -> None:
    """The same items in another order; where they are others, that is said elsewhere."""
    sums = list(map(_sum, items))
    if sorted(sums) != sorted(order):
        return
    places: dict[int, list[Any]] = {}
    for one, item in zip(sums, list(items), strict=True):
        places.setdefault(one, []).append(item)
    items[:] = [places[one].pop(0) for one in order]
