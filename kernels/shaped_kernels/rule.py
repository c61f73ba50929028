"""An update rule as one value: what it is called, its numbers and switches, its state, and the forms it is computed in.

A `Rule` is frozen and hashable. Two that are equal take the same step from the same numbers, so a rule is the key
under which compiled code is kept, and a switch that is flipped is another rule. Whoever steps, compiles, sorts, loads
or saves asks the rule; nobody else knows what its numbers are called.

    hypers    numbers that a schedule may move: read, checked and spelled here; the learning rate comes first
    fields    switches, read from a group by their own names
    slots     the state tensors of one parameter
    plain     the step in plain torch: pure, traceable, on every device
    fused     the same by an operator over lists, in place, where there is one
    kernels   the same in Triton, where it is written
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from .scalars import Scalar, Store, number

Numbers = tuple[float, ...]
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Hyper:
    """A number of a rule, or several under one name, that a schedule may move.

    Attributes:
        name: What groups and messages call it.
        default: Its value where none is given; a tuple for several numbers.
        least, below: It is finite, at least the one and below the other.

    Raises:
        ValueError: The name is no text, or one of the others no number.
    """

    name: str
    default: float | tuple[float, ...]
    least: float = 0.0
    below: float = math.inf

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a text, got {self.name!r}")
        defaults = dict(enumerate(self.default)) if isinstance(self.default, tuple) else {"": self.default}
        for at, value in defaults.items():
            number(f"default[{at}]" if isinstance(self.default, tuple) else "default", value)
        number("least", self.least)
        number("below", self.below)

    @cached_property
    def spelled(self) -> tuple[str, ...]:
        """What messages call each of its numbers: `lr`; `betas[0]`, `betas[1]`."""
        if isinstance(self.default, tuple):
            return tuple(f"{self.name}[{i}]" for i in range(len(self.default)))
        return (self.name,)

    def read(self, value: Any) -> Numbers:
        """Its numbers as floats, not yet checked against their range. Tensors of one element are read.

        Raises:
            ValueError: It is no number, or not so many.
        """
        if not isinstance(self.default, tuple):
            return (number(self.name, value),)
        count = len(self.default)
        if type(value) is tuple and len(value) == count and all(type(one) is float for one in value):
            return value
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
            many = "a pair of numbers" if count == 2 else f"{count} numbers"
            raise ValueError(f"{self.name} must be {many}, got {value!r}")
        return tuple(number(name, one) for name, one in zip(self.spelled, value, strict=True))

    def check(self, values: Sequence[float]) -> None:
        """Refuse numbers outside the range.

        Raises:
            ValueError: Naming the number, its range and its value.
        """
        for name, value in zip(self.spelled, values, strict=True):
            if not (self.least <= value < self.below and math.isfinite(value)):
                raise ValueError(f"{name} must be {self._range}, got {value}")

    @property
    def _range(self) -> str:
        if math.isfinite(self.below):
            return f"in [{self.least:g}, {self.below:g})"
        return f"a finite number >= {self.least:g}" if math.isfinite(self.least) else "finite"


class Kernels(NamedTuple):
    """A rule in Triton: functions for the kernels that serve all rules.

    Attributes:
        row: Writes its numbers of this step into the row, for `row_kernel` in rows_triton.py.
        chunk: Moves one chunk, for `table_kernel` in table_triton.py.
        switches: What both are compiled for.
        entries: How many numbers of its own it keeps in the row.
        agrees: Counts the elements of one chunk whose update agrees with the gradient, for `agree_kernel` in
            cautious_triton.py; None where the update does not ask for their share.
        ahead: Writes where one chunk's state leads into a tensor beside it, for `ahead_kernel` in muon_triton.py; None
            where each element moves by itself.
        between: With it: puts in place of these, which are shaped as the parameters, where they go. Its second argument
            is the rule's own part of the row. It runs on the device, for nothing where the step is skipped.
    """

    row: Any
    chunk: Any
    switches: tuple[bool, ...]
    entries: int
    agrees: Any = None
    ahead: Any = None
    between: Callable[[Sequence[Tensor], Tensor], None] | None = None


@dataclass(frozen=True)
class Rule(ABC):
    """An update rule and its variant. A subclass is a frozen dataclass whose fields are its switches.

    A subclass says `name`, `hypers`, `every_slot` and `plain`; the rest where it has it. One that says `plain` anew has
    no `fused`, no `kernels` and is not `elementwise`, unless it says those anew too: they were another rule's.

    Attributes:
        store: How a parameter is rounded when it is stored: "nearest", "stochastic" or "split" (see lowmemory.py).
        eight_bit: Whether the state is codes of 8 bits under scales.
    """

    name: ClassVar[str]
    hypers: ClassVar[tuple[Hyper, ...]]
    # The names of its state tensors, over all variants.
    every_slot: ClassVar[tuple[str, ...]] = ()
    # Whether the number of steps taken is part of the state, as `step`.
    counts: ClassVar[bool] = True
    # Whether the gradient is taken elsewhere than at the parameter: at `point`.
    leads: ClassVar[bool] = False
    # The integers that 8-bit codes of each slot are; empty where it has no such form.
    codes: ClassVar[tuple[torch.dtype, ...]] = ()

    store: Store = field(default="nearest", kw_only=True)
    eight_bit: bool = field(default=False, kw_only=True)

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "plain" in vars(cls) or "plain_list" in vars(cls):
            for form in ("fused", "has_fused", "kernels", "has_kernels", "elementwise"):
                if form not in vars(cls):
                    setattr(cls, form, vars(Rule)[form])

    @classmethod
    def of(cls, group: Mapping[str, Any], store: Store = "nearest", eight_bit: bool = False) -> Self:
        """The variant that a group of hyper-parameters asks for; a switch that it does not have is at its default.

        Raises:
            ValueError: A switch is not hashable, so nothing could tell when it changes.
        """
        given = {name: group[name] for name in switches(cls) if name in group}
        made = cls(store=store, eight_bit=eight_bit, **given)
        for name, value in given.items():
            if value is not True and value is not False and (isinstance(value, Tensor) or type(value).__hash__ is None):
                raise ValueError(
                    f"{name} is {value!r}; a switch of {cls.name} is a plain value, such as True or a name"
                )
        return made

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the state tensors that this variant reads and writes, in order."""
        return self.every_slot

    @property
    def elementwise(self) -> bool:
        """Whether each element moves by itself, so that many parameters may be walked as one flat tensor."""
        return False

    def read(self, group: Mapping[str, Any]) -> Numbers:
        """The numbers of a group as floats, in the order of `hypers`; they are not yet checked.

        Raises:
            ValueError: One is no number.
        """
        values: list[float] = []
        for hyper in self.hypers:
            value = group[hyper.name]
            if type(value) is float and type(hyper.default) is float:  # the hot path
                values.append(value)
            else:
                values.extend(hyper.read(value))
        return tuple(values)

    def check(self, numbers: Sequence[float]) -> None:
        """Refuse numbers that are out of range, and switches that do not go together.

        Raises:
            ValueError: Naming what is wrong and its value.
        """
        at = 0
        for hyper in self.hypers:
            count = len(hyper.spelled)
            hyper.check(numbers[at : at + count])
            at += count
        if self.eight_bit and not self.codes:
            raise ValueError(
                f"8-bit moments are Adam's, AdamW's and Lion's; {self.name}'s state may be torch.float32 or the "
                "parameter's"
            )

    def numbers(self, group: Mapping[str, Any]) -> Numbers:
        """Read a group's numbers and check them.

        Raises:
            ValueError: One is no number, or out of range.
        """
        numbers = self.read(group)
        self.check(numbers)
        return numbers

    def point(self, p: Tensor, slots: State, numbers: Sequence[Scalar]) -> Tensor:
        """Where the gradient of a parameter is taken, traceable as `plain` is; for a rule that `leads`."""
        return p

    @abstractmethod
    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """Compute a step of one parameter in plain torch, changing nothing.

        It is traced: no branch depends on a tensor.

        Args:
            p, g: A parameter and its gradient, of one shape and dtype.
            slots: Its state, in the order of `slots`.
            numbers: In the order of `hypers`: floats, or 0-dim float64 tensors.
            step: The number of this step, from 1: a float, or a 0-dim float64 tensor.

        Returns:
            The new parameter and the new state, in the shapes they came in.
        """

    def plain_list(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        numbers: Sequence[Scalar],
        step: Scalar,
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The same for all parameters of a call; for a rule to say anew that works on several at once.

        Args:
            slots: One list for each kind of state, parallel to `params`.

        Returns:
            The new parameters and the new state, laid out alike.
        """
        new = [
            self.plain(p, g, tuple(slot[i] for slot in slots), numbers, step)
            for i, (p, g) in enumerate(zip(params, grads, strict=True))
        ]
        return [p for p, _ in new], [[state[kind] for _, state in new] for kind in range(len(slots))]

    def fused(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        slots: Sequence[list[Tensor]],
        numbers: Sequence[float],
        step: Tensor,
        factor: float | None,
    ) -> None:
        """Take step number `step` in place by an operator; gradients are multiplied by `factor`, perhaps in place."""
        raise NotImplementedError

    def kernels(self) -> Kernels:
        """The rule in Triton."""
        raise NotImplementedError

    @property
    def has_fused(self) -> bool:
        """Whether there is an operator over lists."""
        return type(self).fused is not Rule.fused

    @property
    def has_kernels(self) -> bool:
        """Whether it is written in Triton; otherwise a GPU runs `plain_list`."""
        return type(self).kernels is not Rule.kernels


@cache
def switches(cls: type[Rule]) -> dict[str, Any]:
    """The switches of a rule that groups name, with their defaults; fields with the metadata `group=False` are none."""
    own = [f for f in fields(cls) if f.name not in ("store", "eight_bit") and f.metadata.get("group", True)]
    return {f.name: f.default for f in own}


def refuse_misshapen(rule: Rule, kind: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Refuse a step that does not keep shapes, before anything is written; what is written has the dtype it had.

    Raises:
        ValueError: Naming the rule, and what came out.
    """
    if len(before) != len(after):
        raise ValueError(f"{rule.name} gave {len(after)} tensors of {kind} for {len(before)}")
    for old, new in zip(before, after, strict=True):
        if new.shape != old.shape:
            raise ValueError(
                f"{rule.name} turned {kind} of shape {tuple(old.shape)} into {tuple(new.shape)}: a rule keeps shapes"
            )
