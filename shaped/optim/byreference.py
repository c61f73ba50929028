"""A subclass's own rule, where it says `reference` and no `rule`: one parameter at a time, in plain torch.

`reference` may read any key of its group and any plain attribute of its optimizer. As a `Rule` these are its switches:
what they were is part of the value, so that a change of one is another rule.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from shaped_kernels.rule import Numbers, Rule, State, switches
from shaped_kernels.scalars import Scalar

Reference = Callable[[Tensor, Tensor, State, Sequence[Scalar], Scalar], tuple[Tensor, State]]
# Keys of a group that are no switches: which parameters, how torch would run it, what schedules leave.
_NO_SWITCH = {
    *("params", "param_names", "foreach", "fused", "capturable", "differentiable"),
    *("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"),
}
# Attributes that torch and we keep in an optimizer.
_OURS = {
    *("defaults", "state", "param_groups", "options", "grad_norm", "grad_scale", "found_inf"),
    *("_plans", "_asked", "_opt_called", "_step_count", "_zero_grad_profile_name", "_with_counter"),
    *("_warned_capturable_if_run_uncaptured", "_patched"),
}
_PLAIN = (bool, int, float, str, tuple, list, dict, type(None))


@cache
def says_own_reference(cls: type) -> bool:
    """Whether a class gives `reference` anew, below the class that gives its rule."""
    order = [vars(base).keys() for base in cls.__mro__]
    first = {
        name: next((i for i, names in enumerate(order) if name in names), len(order))
        for name in ("reference", "rule", "rule_of")
    }
    return first["reference"] < min(first["rule"], first["rule_of"])


@dataclass(frozen=True)
class ByReference(Rule):
    """A `reference` as a rule.

    Attributes:
        inner: The rule of its class, whose numbers and slots it has.
        seen: All else that it may read, as it is now.
        call: The reference, of one update.
    """

    name: ClassVar[str] = "a rule by `reference`"

    inner: Rule
    seen: Hashable
    call: Reference = field(compare=False, repr=False)

    @property
    def slots(self) -> tuple[str, ...]:
        """Those of the class's rule."""
        return self.inner.slots

    def read(self, group: Mapping[str, Any]) -> Numbers:
        """The numbers of the class's rule."""
        return self.inner.read(group)

    def check(self, numbers: Sequence[float]) -> None:
        """Refuse what the class's rule refuses."""
        self.inner.check(numbers)

    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """One step of one parameter, without changing it."""
        new, state = self.call(p, g, slots, numbers, step)
        return new, tuple(state)


def by_reference(inner: Rule, group: Mapping[str, Any], attributes: Mapping[str, Any], call: Reference) -> ByReference:
    """A class's own reference as a rule.

    Args:
        inner: The rule that its class would have.
        group: The group whose keys it may read.
        attributes: Those of the optimizer.
        call: The reference.
    """
    known = {*_NO_SWITCH, *switches(type(inner)), *(hyper.name for hyper in inner.hypers)}
    keys = tuple((key, frozen(value)) for key, value in sorted(group.items()) if key not in known)
    mine = tuple(
        (name, frozen(value))
        for name, value in attributes.items()
        if name not in _OURS and not name.startswith("_optimizer_") and isinstance(value, _PLAIN)
    )
    return ByReference(inner, (keys, mine), call, store=inner.store, eight_bit=inner.eight_bit)


def frozen(value: Any) -> Hashable:
    """A value as it is now, to compare with a later one: of a container its items, of a tensor its version."""
    if isinstance(value, bool | int | float | str | None):
        return type(value).__name__, repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return type(value).__name__, tuple((frozen(key), frozen(item)) for key, item in value.items())
    return (id(value), value._version) if isinstance(value, Tensor) else id(value)
