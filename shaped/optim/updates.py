"""Parameters sorted into calls of an update rule, and what must be unchanged for the sorting to hold.

Those that share hyper-parameters, device and step count move in one call. The sorting, and the
check of parameters and state, is done once and kept while nothing changes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from shaped_kernels.lists import TensorLists

from .shards import local_gradient, sharded

if TYPE_CHECKING:
    from .base import FusedOptimizer

Group = dict[str, Any]
# Attributes that torch and we keep in an optimizer.
_OURS = {
    *("defaults", "state", "param_groups", "options", "grad_norm", "grad_scale", "found_inf"),
    *("_plans", "_asked", "_opt_called", "_step_count", "_zero_grad_profile_name", "_with_counter"),
    *("_warned_capturable_if_run_uncaptured", "_patched"),
}
_PLAIN = (bool, int, float, str, tuple, list, dict, type(None))
Scalars = tuple[float, ...]
_values: Callable[[Any], Iterable[Any]] = methodcaller("values")
_requires_grad: Callable[[Tensor], bool] = attrgetter("requires_grad")


@dataclass(eq=False)
class Update:
    """Parameters that share hyper-parameters and step count: one call of an update rule.

    Attributes:
        group: torch's param_group, live: a scheduler changes `lr` there.
        params: The parameters, all on one device.
        slots: Their state, one list for each kind: Adam (exp_avg, exp_avg_sq[, max_exp_avg_sq]),
            SGD with momentum (momentum_buffer,), without ().
        step: Steps taken so far, 0-dim float32, on the parameters' device where kernels advance it
            and on the CPU elsewhere, shared by these parameters; None for SGD. Whoever updates the
            parameters by other means than `update` adds 1 to it.
        fresh: No state yet: `slots` are zeros that are not in `optimizer.state` until `commit()`.
        indices: Where these parameters stand in the list that `updates` was asked about.
    """

    group: Group
    params: list[Tensor]
    slots: tuple[list[Tensor], ...]
    step: Tensor | None
    fresh: bool
    indices: list[int]
    _optimizer: "FusedOptimizer" = field(repr=False)
    _lists: TensorLists = field(repr=False)
    # Everything that belongs in `optimizer.state` besides the step, by name.
    _named: dict[str, list[Tensor]] = field(repr=False)
    # `step`, or for SGD a count of its own that only knows whether there was a step.
    _counted: Tensor = field(repr=False)
    _admitted: Scalars = field(default=(), repr=False)

    def __post_init__(self) -> None:
        state = self._optimizer.state
        self._unsaved = self.fresh or any(
            (state.get(p) or {}).get(name) is not tensors[i]
            for name, tensors in self._named.items()
            for i, p in enumerate(self.params)
        )
        self._sharded = any(map(sharded, self.params))

    @property
    def counted(self) -> Tensor:
        """`step`; for SGD, which has none, 1 once there was a step and 0 before."""
        return self._counted

    @property
    def ema(self) -> list[Tensor] | None:
        """The moving averages of the parameters, where the optimizer keeps them."""
        return self._named.get("ema")

    def own_attributes(self) -> list[tuple[str, Any]]:
        """What a subclass keeps in its optimizer besides ours: plain values that its `reference` may read."""
        if type(self._optimizer).__module__.startswith("shaped."):
            return []
        kept = vars(self._optimizer)
        mine = [name for name in kept if name not in _OURS and not name.startswith("_optimizer_")]
        return [(name, kept[name]) for name in mine if isinstance(kept[name], _PLAIN)]

    def commit(self) -> None:
        """Put the slots and the step in `optimizer.state`, after a successful update.

        Does nothing when they are there already. Never counts: `step` is advanced by whoever updates.
        """
        if self.fresh and self.step is None:
            self._counted.fill_(1.0)
        self.adopt()

    def adopt(self) -> None:
        """Put the slots and the step in `optimizer.state`, whoever counted."""
        self._optimizer._opt_called = True
        if self._unsaved:
            self._optimizer._adopt(self)

    def scalars(self) -> Scalars:
        """Read the numbers that a schedule may touch, in the order `reference` takes them.

        Returns:
            SGD (lr, momentum, damp, weight_decay), where damp is 1 on a fresh update and
            1 - dampening later; Adam (lr, beta1, beta2, eps, weight_decay). Tensors are read.

        Raises:
            ValueError: One of them is out of range.
        """
        scalars = self._optimizer._scalars(self.group, self.fresh)
        if scalars != self._admitted:
            self._optimizer._check_group(self.group)
            self._admitted = scalars
        return scalars


class Plan:
    """The updates for one set of parameters, and all that must be unchanged for them to hold.

    Compared by identity in C loops, at about 25 ns per tensor: the parameters of every group, what
    requires a gradient, and every state tensor. That sees any way a user may replace one.
    """

    def __init__(self, optimizer: "FusedOptimizer", params: list[Tensor] | None, updates: list[Update]) -> None:
        self.updates = updates
        self.count = sum(len(update.params) for update in updates)
        self._in_order = len(updates) == 1 and updates[0].indices == list(range(self.count))
        self._params = params  # keeps ids, by which plans are found, from being recycled
        self.witness(optimizer)

    def witness(self, optimizer: "FusedOptimizer") -> None:
        self._groups = [(group, optimizer._slot_names(group)) for group in optimizer.param_groups]
        self._everyone = [*parameters_of(optimizer)]
        self._trainable = list(map(_requires_grad, self._everyone)) if self._params is None else []
        self._owners = [*optimizer.state]
        self._state = [*_state_tensors(optimizer)]

    def share(self, update: Update, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients of one update, this rank's shards of them where there are several ranks."""
        mine = grads if self._in_order else [grads[i] for i in update.indices]
        if not update._sharded:
            return mine
        return [local_gradient(p, g) for p, g in zip(update.params, mine, strict=True)]

    def holds(self, optimizer: "FusedOptimizer") -> bool:
        structure = optimizer._slot_names
        return (
            len(optimizer.param_groups) == len(self._groups)
            and all(
                g is h and structure(g) == s for g, (h, s) in zip(optimizer.param_groups, self._groups, strict=True)
            )
            and _same(parameters_of(optimizer), self._everyone)
            and (self._params is not None or list(map(_requires_grad, self._everyone)) == self._trainable)
            and _same(optimizer.state, self._owners)
            and sum(map(len, optimizer.state.values())) == len(self._state)
            and all(map(is_, _state_tensors(optimizer), self._state))
            # Module.to() puts other data under the same parameters. A new dtype or device shows in the gradients;
            # a new layout would not, and before the first step there may be no gradients yet.
            and all(u._lists.as_checked() if u.fresh else u._lists.laid_out_as_checked() for u in self.updates)
        )


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _state_tensors(optimizer: Optimizer) -> Iterator[Any]:
    return chain.from_iterable(map(_values, optimizer.state.values()))


def _same(now: Iterable[Any], then: list[Any]) -> bool:
    present = list(now)
    return len(present) == len(then) and all(map(is_, present, then))
