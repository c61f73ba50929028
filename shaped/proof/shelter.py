"""A run on real numbers that leaves the process as it was: its draws come from a generator of its own, and a write into
a tensor from outside is refused before it happens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from shaped.errors import Goal, Unprovable
from shaped.proof.source import place_of_caller

_SEEDED = torch.Tag.nondeterministic_seeded
_LARGEST = 2**28  # entries of one new tensor: a run that makes more counts as one that has no memory
_FORMS = {"default": "generator", "low": "low_generator"}  # overloads that take a generator, by those that do not


def refuse_write() -> Unprovable:
    """The program writes into a tensor that it is not given."""
    place = place_of_caller()
    return Unprovable(
        "the program writes into a tensor from outside, which is no part of a step.",
        place.source() if place else None,
        Goal(hint="compute a new tensor; what is kept from step to step may be a parameter that is frozen"),
    )


def written(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes into."""
    if not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (t for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, Tensor))


class Shelter(TorchDispatchMode):
    """Holds each operation of a run on real tensors to what is the run's own."""

    def __init__(self, tensors: Sequence[Tensor], seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._own: dict[int, Any] = {}  # storages by address; kept, so that no other comes to lie there
        for tensor in tensors:
            self._keep(tensor)

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch counts it among its own modes; for others it raises a flag that all threads see."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        changes, draws = _kind(func)
        if changes and any(_address(tensor) not in (None, *self._own) for tensor in written(func, args, kwargs)):
            raise refuse_write()
        try:
            result = self._drawn(func, args, dict(kwargs)) if draws else func(*args, **kwargs)
        except IndexError as error:  # of some operations torch does not say which index it was
            places = [t for t in _tensors(args) if t.dtype in (torch.int32, torch.int64) and t.numel()]
            for place in places:
                error.add_note(f"indices {int(place.min())} to {int(place.max())}")
            raise
        made = [tensor for tensor in _tensors((result,)) if _address(tensor) not in self._own]
        if made:
            if max(tensor.numel() for tensor in made) > _LARGEST:
                raise MemoryError("larger than what is tried")
            lifted = func is torch.ops.aten.lift_fresh.default
            given = set() if lifted else {_address(tensor) for tensor in _tensors((args, *kwargs.values()))}
            for tensor in made:
                if _address(tensor) not in given:
                    self._keep(tensor)
        return result

    def _keep(self, tensor: Tensor) -> None:
        address = _address(tensor)
        if address is not None:
            self._own[address] = tensor.untyped_storage()

    def _drawn(self, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The result of an operation that draws, from a generator that only this run has."""
        if kwargs.get("generator") is not None or any(isinstance(value, torch.Generator) for value in args):
            return func(*args, **kwargs)
        if not any(argument.name == "generator" for argument in func._schema.arguments):
            other = getattr(func.overloadpacket, _FORMS.get(func._overloadname, "none"), None)
            if other is None or not any(argument.name == "generator" for argument in other._schema.arguments):
                with _untouched():
                    return func(*args, **kwargs)
            func = other
        operands = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
        device = operands[0].device if operands else torch.device(kwargs.get("device") or "cpu")
        if device.type == "meta":  # which has no generators, and draws nothing
            return func(*args, **kwargs)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return func(*args, **{**kwargs, "generator": self._generators[device]})


@contextmanager
def _untouched() -> Iterator[None]:
    """For the one operation that takes no generator: torch's own, put back at once."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@cache
def _kind(func: OpOverload) -> tuple[bool, bool]:
    """Whether an operation writes into operands, and whether it draws: torch makes lists anew to say so."""
    return func._schema.is_mutable, _SEEDED in func.tags


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Those among an operation's operands or results, of which some are lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _address(tensor: Tensor) -> int | None:
    """Of what a tensor keeps its numbers in; None where it has no such thing (sparse tensors)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
