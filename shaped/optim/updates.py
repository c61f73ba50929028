"""Parameters sorted into calls of an update rule, and what must be unchanged for the sorting to hold.

Those that share hyper-parameters, device and step count move in one call. The sorting, and the
check of parameters and state, is done once and kept while nothing changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, Protocol

from torch import Tensor

from shaped_kernels.lists import TensorLists
from shaped_kernels.rule import Numbers, Rule

from .noticed import GroupsSeen, NoticedState, Writes
from .shards import local_gradient, sharded

Group = dict[str, Any]
Groups = Sequence[Group]
State = Mapping[Tensor, Mapping[str, Any]]
RuleOf = Callable[[Group], Rule]
_values: Callable[[Any], Iterable[Any]] = methodcaller("values")
_requires_grad: Callable[[Tensor], bool] = attrgetter("requires_grad")


class RuleOwner(Protocol):
    """Whose updates they are."""

    param_groups: Any
    state: Any

    def rule_of(self, group: Group) -> Rule:
        """The variant of the rule that a group asks for."""

    def rule_for(self, update: "GroupUpdate") -> Rule:
        """The rule that an update is stepped by now."""

    def adopt(self, update: "GroupUpdate") -> None:
        """Put an update's slots and step in the state."""


@dataclass(frozen=True)
class CheckedRule:
    """A rule and its numbers as they were read from a group, and checked.

    Attributes:
        rule: Which, in which variant.
        numbers: In the order of its `hypers`.
    """

    rule: Rule
    numbers: Numbers


@dataclass(eq=False)
class GroupUpdate:
    """Parameters that share hyper-parameters and step count: one call of an update rule.

    Attributes:
        group: torch's param_group, live: a scheduler changes `lr` there.
        params: The parameters, all on one device.
        slots: Their state, one list for each kind, as the rule names them.
        step: Steps taken so far, 0-dim float32, on the parameters' device where kernels advance it
            and on the CPU elsewhere, shared by these parameters; None for a rule that does not count. Whoever
            updates the parameters by other means than `update` adds 1 to it.
        fresh: No state yet: `slots` are zeros that are not in `optimizer.state` until `commit()`.
        indices: Where these parameters stand in the list that `updates` was asked about.
    """

    group: Group
    params: list[Tensor]
    slots: tuple[list[Tensor], ...]
    step: Tensor | None
    fresh: bool
    indices: list[int]
    lists: TensorLists = field(repr=False)
    # Everything that belongs in `optimizer.state` besides the step, by name.
    named: dict[str, list[Tensor]] = field(repr=False)
    # `step`, or for a rule that keeps none, a count that only this object knows: 0 before the first step.
    counted: Tensor = field(repr=False)
    # Whether some of `named` is not in the state yet.
    unsaved: bool = field(repr=False)
    owner: RuleOwner = field(repr=False)

    def __post_init__(self) -> None:
        self.sharded = any(map(sharded, self.params))
        self._admitted: CheckedRule | None = None

    @property
    def ema(self) -> list[Tensor] | None:
        """The moving averages of the parameters, where the optimizer keeps them."""
        return self.named.get("ema")

    @property
    def rule(self) -> Rule:
        """The rule as its group asks for it now."""
        return self.owner.rule_for(self)

    def commit(self) -> None:
        """Put the slots and the step in `optimizer.state`, after a successful update.

        Does nothing when they are there already. Never counts: `step` is advanced by whoever updates.
        """
        if self.fresh and self.step is None:
            self.counted.fill_(1.0)
        self.adopt()

    def adopt(self) -> None:
        """Put the slots and the step in `optimizer.state`, whoever counted."""
        self.owner.adopt(self)

    def read(self, ruled: bool = False) -> CheckedRule:
        """The rule and its numbers as they are in the group now; tensors are read.

        Args:
            ruled: Whether the rule is known to be that of the last call.

        Raises:
            ValueError: One of them is out of range.
        """
        rule = self._admitted.rule if ruled and self._admitted is not None else self.rule
        reading = CheckedRule(rule, rule.read(self.group))
        if reading != self._admitted:
            rule.check(reading.numbers)
            self._admitted = reading
        return reading

    @property
    def lr_on_device(self) -> bool:
        """Whether the learning rate is a tensor that kernels read where it is."""
        lr, lists = self.group["lr"], self.lists
        return isinstance(lr, Tensor) and lists.path == "triton" and lr.device == lists.device

    def admitted(self, ruled: bool = False) -> CheckedRule:
        """The same as `read`; a learning rate on the device is read at the first step only: reading waits."""
        return self._admitted if self._admitted is not None and self.lr_on_device else self.read(ruled)

    def points(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with where its gradient is taken, for a rule that leads."""
        rule, numbers = self.admitted().rule, self.admitted().numbers
        if not rule.leads:
            return []
        moved = zip(self.params, *self.slots, strict=True)
        return [(p, rule.point(p.detach(), tuple(state), numbers)) for p, *state in moved]

    def scalars(self) -> Numbers:
        """The numbers that a schedule may touch, in the order of the rule's `hypers`; as `read` gives them."""
        return self.read().numbers


class UpdatePlan:
    """The updates for one set of parameters, and all that must be unchanged for them to hold.

    The parameters of every group, what requires a gradient, and every state tensor are compared by identity in C
    loops. A state that counts what is written into it is looked through only when something was; rules and numbers
    are read only when a group has other values. That sees any way a user may replace one.
    """

    def __init__(self, params: list[Tensor] | None, updates: list[GroupUpdate]) -> None:
        self.updates = updates
        self.count = sum(len(update.params) for update in updates)
        self._in_order = len(updates) == 1 and updates[0].indices == list(range(self.count))
        self._params = params  # keeps ids, by which plans are found, from being recycled
        self._checked: CheckedRules | None = None

    def witness(self, owner: RuleOwner) -> "UpdatePlan":
        """Note what is there now, which must be there later too."""
        groups, state = owner.param_groups, owner.state
        self._groups, self._forms = [*groups], [_form(owner.rule_of(group)) for group in groups]
        self._everyone = [*parameters_of(groups)]
        self._trainable = list(map(_requires_grad, self._everyone)) if self._params is None else []
        self._owners = [*state]
        self._state = [*_state_tensors(state)]
        self._seen, self._checked, self._ruled = GroupsSeen.of(owner), None, False
        self._note_writes(state)
        return self

    def _note_writes(self, state: State) -> None:
        """Remember how often a state was written into, where it tells."""
        self._writes: Writes | None = None
        if type(state) is NoticedState and state.told:
            self._writes, self._written = state.writes, state.writes.count

    def checked(self) -> "CheckedRules":
        """The rules and numbers of all updates; the same object until one of them may be another.

        Raises:
            ValueError: A number is out of range.
        """
        if self._checked is not None:
            return self._checked
        made = CheckedRules(self, [update.admitted(self._ruled) for update in self.updates])
        if self._seen is not None:
            self._checked, self._ruled = made, True
        return made

    def share(self, update: GroupUpdate, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of one update, this rank's shards of them where there are several ranks."""
        mine = grads if self._in_order else [grads[i] for i in update.indices]
        if not update.sharded:
            return mine
        return [local_gradient(p, g) for p, g in zip(update.params, mine, strict=True)]

    def holds(self, owner: RuleOwner, laid_out: bool = False) -> bool:
        """Whether all that was noted is as it was; `laid_out` where shapes, dtypes and strides are known to be."""
        groups = owner.param_groups
        return (
            len(groups) == len(self._groups)
            and all(map(is_, groups, self._groups))
            and ((self._seen is not None and self._seen.hold(owner)) or self._seen_anew(owner))
            and _same(parameters_of(groups), self._everyone)
            and (self._params is not None or list(map(_requires_grad, self._everyone)) == self._trainable)
            and self._has_state(owner.state)
            # Module.to() puts other data under the same parameters. A new dtype or device shows in the gradients;
            # a new layout would not, and before the first step there may be no gradients yet.
            and (
                laid_out
                or all(u.lists.as_checked() if u.fresh else u.lists.laid_out_as_checked() for u in self.updates)
            )
        )

    def _seen_anew(self, owner: RuleOwner) -> bool:
        """Whether rules that may be others are of the forms that lists were made for."""
        self._checked = None
        if self._seen is not None and self._seen.follow(owner):
            return True
        self._ruled = False
        if [_form(owner.rule_of(group)) for group in self._groups] != self._forms:
            return False
        self._seen = GroupsSeen.of(owner)
        return True

    def _has_state(self, state: State) -> bool:
        """Whether the state has the tensors that it had."""
        writes = self._writes
        if writes is not None and writes.count == self._written and getattr(state, "writes", None) is writes:
            return True
        if not (
            _same(state, self._owners)
            and sum(map(len, state.values())) == len(self._state)
            and all(map(is_, _state_tensors(state), self._state))
        ):
            return False
        self._note_writes(state)
        return True


@dataclass(frozen=True)
class CheckedRules:
    """What each update of a set of parameters is stepped by: read and checked once, for the step that comes next."""

    plan: UpdatePlan
    readings: list[CheckedRule]

    @cached_property
    def leads(self) -> bool:
        """Whether a gradient is taken elsewhere than at its parameter."""
        return any(reading.rule.leads for reading in self.readings)


def _form(rule: Rule) -> tuple[tuple[str, ...], bool]:
    """What lists are made for."""
    return rule.slots, rule.has_kernels


def parameters_of(groups: Groups) -> Iterator[Tensor]:
    """The parameters of all groups, in order."""
    return chain.from_iterable(group["params"] for group in groups)


def _state_tensors(state: State) -> Iterator[Any]:
    return chain.from_iterable(map(_values, state.values()))


def _same(now: Iterable[Any], then: list[Any]) -> bool:
    present = list(now)
    return len(present) == len(then) and all(map(is_, present, then))
