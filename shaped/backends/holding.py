"""What a module holds: where its tensors and layers stand, and everything else that a forward pass may write into.

Parameters are put into their places for the length of a call, under every name that they have. What a trace leaves
behind in a module, in the containers and objects that it keeps, in its hooks, is undone.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from shaped.errors import Goal, ShapeError, Unprovable, listing
from shaped.params import ParamList
from shaped.proof.keeping import contents, put_dict, put_items

_OLD = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")  # whose hooks put a tensor in an attribute
_MANY = 20_000  # things in a module that are looked at, the nearest first; a data set may hang on it
_PLAIN = (str, bytes, int, float, complex, Tensor)
_CLOSED = (*_PLAIN, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, logging.Logger, logging.Handler)


@dataclass(frozen=True)
class Places:
    """Where a module keeps its tensors and layers: names, the mappings and keys, and what was there.

    Attributes:
        which: For each place the position among the parameters of what is there; None for a layer. A tensor that has
            two names has two places, a layer that has two names has its tensors' places once.
    """

    names: list[str]
    owners: list[dict[str, Any]]
    fields: list[str]
    held: list[Any]
    which: list[int | None]

    @classmethod
    def of(cls, module: nn.Module, params: ParamList) -> "Places":
        """The places of a module's parameters, buffers and layers."""
        position = {id(tensor): i for i, tensor in enumerate(params.tensors)}
        names: list[str] = []
        owners: list[dict[str, Any]] = []
        fields: list[str] = []
        held: list[Any] = []
        for path, part in module.named_modules():
            for owner in (part._parameters, part._buffers, part._modules):
                names += [f"{path}.{field}" if path else field for field in owner]
                owners += [owner] * len(owner)
                fields += owner
                held += owner.values()  # None too: a bias that is there later is no part of the proof
        return cls(names, owners, fields, held, [position.get(id(thing)) for thing in held])

    @classmethod
    def none(cls) -> "Places":
        """Those of a ParamList, which nothing can be put into."""
        return cls([], [], [], [], [])

    def check(self) -> None:
        """Raise ShapeError where something else is there now."""
        if not all(map(is_, map(dict.get, self.owners, self.fields), self.held)):
            there = zip(self.names, self.owners, self.fields, self.held, strict=True)
            changed = [name for name, owner, field, thing in there if owner.get(field) is not thing]
            raise ShapeError(
                f"replaced in the module: {listing(changed)}. Put it back (merged adapters: unmerge), or make a new "
                "trainer for what is there now"
            )

    @contextmanager
    def filled(self, tensors: Sequence[Tensor]) -> Iterator[list[str]]:
        """Put other tensors into the parameters' places for the length of a `with` block.

        Yields:
            A list that has, when the block is over, the names of the places where the program has put something else.
        """
        slots = [
            (owner, field, tensors[which], name)
            for name, owner, field, which in zip(self.names, self.owners, self.fields, self.which, strict=True)
            if which is not None
        ]
        before = [owner[field] for owner, field, _, _ in slots]
        replaced: list[str] = []
        try:
            for (owner, field, tensor, _), old in zip(slots, before, strict=True):
                if isinstance(old, nn.Parameter) and not isinstance(tensor, nn.Parameter):
                    tensor._is_param = True  # what nn.Parameter's isinstance asks for; get_parameter needs it
                owner[field] = tensor
            yield replaced
            replaced += [name for owner, field, tensor, name in slots if owner.get(field) is not tensor]
        finally:
            for (owner, field, _, _), tensor in zip(slots, before, strict=True):
                owner[field] = tensor


@dataclass(frozen=True)
class _Kept:
    """A container that can be written into, what was in it, and what to call it."""

    thing: Any
    content: Any
    name: str  # "Net.history"; of an object's attributes "Net."

    def new_tensors(self) -> list[str]:
        """Where there is a tensor now that was not there before."""
        if isinstance(self.thing, dict):
            new = [key for key, value in contents(self.thing).items() if isinstance(value, Tensor)
                   and self.content.get(key) is not value]  # fmt: skip
            return [f"{self.name}{key}" if self.name.endswith(".") else self.name for key in new]
        known = set(map(id, self.content))
        return [self.name] if any(isinstance(v, Tensor) and id(v) not in known for v in self.thing) else []

    def changed(self) -> bool:
        """Whether there is anything else in it now."""
        if len(self.thing) != len(self.content):
            return True
        if isinstance(self.thing, dict):
            now = zip(contents(self.thing).items(), self.content.items(), strict=True)
            return not all(a is c and b is d for (a, b), (c, d) in now)
        if isinstance(self.thing, set):
            return bool(self.thing != self.content)
        return not all(map(is_, self.thing, self.content))

    def put_back(self) -> None:
        """Make it what it was."""
        (put_dict if isinstance(self.thing, dict) else put_items)(self.thing, self.content)


def _containers(module: nn.Module) -> Iterator[_Kept]:
    """Every mapping, list and set that can be reached from a module through attributes and containers."""
    seen: dict[int, Any] = {}
    waiting: deque[tuple[Any, str]] = deque([(module, "")])
    while waiting and len(seen) < _MANY:
        thing, name = waiting.popleft()
        if id(thing) in seen or thing is None or isinstance(thing, _CLOSED):
            continue
        seen[id(thing)] = thing  # kept, so that its id is not used again
        if isinstance(thing, dict | list | set | deque | tuple | frozenset):
            if isinstance(thing, dict):
                yield _Kept(thing, contents(thing), name)
            elif isinstance(thing, list | set | deque):
                yield _Kept(thing, type(thing)(thing) if type(thing) in (set, deque) else list(thing), name)
            waiting.extend((v, name) for v in (contents(thing).values() if isinstance(thing, dict) else thing))
        attributes = getattr(thing, "__dict__", None)
        if type(attributes) is dict:
            owner = f"{type(thing).__name__}."
            yield _Kept(attributes, dict(attributes), owner)
            waiting.extend((value, f"{owner}{key}") for key, value in attributes.items())


@contextmanager
def kept_as_they_are(module: nn.Module) -> Iterator[None]:
    """Undo what a trace writes into a module; Unprovable where that is a tensor, which no step would write.

    A mask that is kept for the next time, a layer that is made when the first batch comes.
    """
    before = list(_containers(module))
    tables = [(type(m).__name__, t) for m in module.modules() for t in (m._parameters, m._buffers, m._modules)]
    known = [{key for key, value in table.items() if value is not None} for _, table in tables]
    made: list[str] = []
    stored: list[str] = []
    try:
        yield
        made = [f"{owner}.{key}" for (owner, table), names in zip(tables, known, strict=True)
                for key, value in table.items() if value is not None and key not in names]  # fmt: skip
        stored = [name for kept in before if kept.changed() for name in kept.new_tensors()]
    finally:  # a trace that fails leaves symbolic tensors behind as well
        for kept in before:
            if kept.changed():
                kept.put_back()
    if made:
        raise Unprovable(
            f"the program makes {listing(made)} at its first pass, which a proof undoes.",
            None,
            Goal(hint="run the module once on a batch before you make a trainer"),
        )
    if stored:
        raise Unprovable(
            f"the program stores a tensor in {listing(stored)}, which is no part of a step.",
            None,
            Goal(hint=_instead(module)),
        )


def _instead(module: nn.Module) -> str:
    """What to do where a tensor is stored; for torch's old norms of weights there are new forms, which store none."""
    hooks = [type(hook) for m in module.modules() for hook in m._forward_pre_hooks.values()]
    old = sorted({kind.__module__ for kind in hooks if kind.__module__ in _OLD})
    if any(above.__module__ == "torch.nn.utils.prune" for kind in hooks for above in kind.__mro__):
        return "prune.remove(layer, name) leaves the masked parameter; torch.nn.utils.parametrize masks it in each step"
    if old:
        return "take " + " and ".join(f"torch.nn.utils.parametrizations.{name.rpartition('.')[2]}" for name in old)
    return "register it as a buffer, or compute it anew"
