"""What tells of itself that it was changed, so that a step need not look through it: the state, and the groups.

    NoticedState     torch's state, which counts what is written into it and into its entries
    GroupsSeen       the values of all groups, which are compared by identity

A comparison of both costs the same for one parameter and for a thousand.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor

from .byreference import says_own_reference

_Method = TypeVar("_Method", bound=Callable[..., Any])
# Values that cannot be others while they are the same objects.
_FIXED = (float, int, bool, str, type(None), torch.dtype)
# Keys of a group that no rule follows from, and that hold lists.
_LISTS = ("params", "param_names")
_WRITES = ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update")


class Writes:
    """How often a state and its entries were written into."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _counted(kind: type) -> type:
    """Let every method of a dict that writes count."""

    def counting(name: str) -> Callable[..., Any]:
        plain = getattr(dict, name)

        @wraps(plain)
        def write(self: Any, *given: Any, **named: Any) -> Any:
            try:
                return plain(self, *given, **named)
            finally:  # after the write, so that nobody has seen this count without it
                self.writes.count += 1

        return write

    for name in _WRITES:
        setattr(kind, name, counting(name))
    return kind


@_counted
class NoticedEntry(dict[str, Any]):
    """The state of one parameter. A copy of it is a plain dict, and so is what is pickled, of torch's safe kind."""

    __slots__ = ("writes",)

    def __init__(self, writes: Writes, entry: Mapping[str, Any]) -> None:
        self.writes = writes
        dict.__init__(self, entry)

    def copy(self) -> dict[str, Any]:
        """A plain dict of the same tensors."""
        return dict(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(dict(self), memo)

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


@_counted
class NoticedState(defaultdict[Tensor, Any]):
    """The state of all parameters. A copy of it, pickled or not, is torch's: a plain defaultdict.

    An entry that somebody else put in is looked through at each step, as is a state of another class.
    """

    def __init__(self, entries: Mapping[Tensor, Any] | None = None) -> None:
        self.writes = Writes()
        super().__init__(dict)
        for p, entry in (entries or {}).items():
            self[p] = NoticedEntry(self.writes, entry)

    @property
    def told(self) -> bool:
        """Whether each entry tells of its changes here."""
        return all(type(entry) is NoticedEntry and entry.writes is self.writes for entry in self.values())

    def __reduce__(self) -> Any:
        return defaultdict, (dict,), None, None, iter(self.items())

    def copy(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """A plain defaultdict of the same entries."""
        return defaultdict(dict, self)

    __copy__ = copy  # type: ignore[assignment]


def put(state: Any, p: Tensor, entry: dict[str, Any]) -> None:
    """Put an entry into a state, one that tells of its changes where the state does."""
    state[p] = NoticedEntry(state.writes, entry) if type(state) is NoticedState else entry


class GroupsSeen:
    """The groups of an optimizer, and all else that its rules follow from, as they are now.

    Args:
        owner: The optimizer.
    """

    def __init__(self, owner: Any) -> None:
        self._of = [(group, tuple(group), [*group.values()]) for group in owner.param_groups]
        self._rule, self._options, self._how = owner.rule, owner.options, owner.rule_of
        # SGD's rule follows from whether there is momentum; ours from no learning rate, and another's may.
        self._free = "lr" if owner.rule.of.__module__.startswith("shaped_kernels.") else None

    @classmethod
    def of(cls, owner: Any) -> "GroupsSeen | None":
        """None where they may be others without being replaced: a learning rate in a tensor, a rule of one's own."""
        groups = owner.param_groups
        kind: type = type(owner)
        if says_own_reference(kind) or not all(type(group) is dict for group in groups):
            return None
        values = (value for group in groups for key, value in group.items() if key not in _LISTS)
        how = owner.rule_of, owner.rule_for
        return cls(owner) if all(getattr(f, "by_groups", False) for f in how) and all(map(_is_fixed, values)) else None

    def hold(self, owner: Any) -> bool:
        """Whether all of it is as it was."""
        for group, keys, values in self._of:
            if tuple(group) != keys or not all(map(is_, group.values(), values)):
                return False
        return self._belong_to(owner)

    def follow(self, owner: Any) -> bool:
        """Whether nothing but learning rates is other than it was; they are noted as they are."""
        for group, keys, values in self._of:
            if tuple(group) != keys:
                return False
            for i, (key, now) in enumerate(group.items()):
                if now is not values[i]:
                    if key != self._free or type(now) is not float:
                        return False
                    values[i] = now
        return self._belong_to(owner)

    def _belong_to(self, owner: Any) -> bool:
        """Whether the optimizer asks for rules as it did."""
        return owner.options is self._options and owner.rule is self._rule and bool(owner.rule_of == self._how)


def _is_fixed(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_fixed, value))
    return type(value) in _FIXED


def by_groups(method: _Method) -> _Method:
    """Say of a `rule_of` or `rule_for` that what it returns follows from the group, the options and the class alone."""
    vars(method)["by_groups"] = True
    return method
