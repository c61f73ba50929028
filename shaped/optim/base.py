"""What SGD, Adam and AdamW share: everything of torch.optim.Optimizer but the update rule.

`updates()` sorts parameters into `Update`s: those that share hyper-parameters, device and step
count move in one call of a rule. The sorting, and the check of parameters and state, is done once
and kept while nothing changes; a step then costs no Python per parameter beyond a few C loops.

State is torch's: `optimizer.state[p]` holds `step`, `exp_avg`, ... under torch's names. One thing
is ours: parameters that move together share one `step` tensor, so that one increment serves all.
`state_dict()` gives each its own copy, and loading ties equal counts together again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from shaped_kernels.lists import TensorLists

from .loading import checked_state

Group = dict[str, Any]
Scalars = tuple[float, ...]
_values: Callable[[Any], Iterable[Any]] = methodcaller("values")
_requires_grad: Callable[[Tensor], bool] = attrgetter("requires_grad")
# More sets of parameters than this taking turns, and the oldest plan is made again.
_MAX_PLANS = 8


@dataclass(eq=False)
class Update:
    """Parameters that share hyper-parameters and step count: one call of an update rule.

    Attributes:
        group: torch's param_group, live: a scheduler changes `lr` there.
        params: The parameters, all on one device.
        slots: Their state, one list for each kind: Adam (exp_avg, exp_avg_sq[, max_exp_avg_sq]),
            SGD with momentum (momentum_buffer,), without ().
        step: Steps taken so far, 0-dim float32 on the CPU, shared by these parameters; None for
            SGD. Whoever updates the parameters by other means than `update` adds 1 to it.
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
    _admitted: Scalars = field(default=(), repr=False)

    def commit(self) -> None:
        """Put the slots and the step in `optimizer.state`, after a successful update.

        Does nothing when they are there already. Never counts: `step` is advanced by whoever updates.
        """
        self._optimizer._opt_called = True
        if self.fresh:
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


class _Plan:
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
        self._everyone = [*_parameters(optimizer)]
        self._trainable = list(map(_requires_grad, self._everyone)) if self._params is None else []
        self._owners = [*optimizer.state]
        self._state = [*_state_tensors(optimizer)]

    def share(self, update: Update, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        return grads if self._in_order else [grads[i] for i in update.indices]

    def holds(self, optimizer: "FusedOptimizer") -> bool:
        structure = optimizer._slot_names
        return (
            len(optimizer.param_groups) == len(self._groups)
            and all(
                g is h and structure(g) == s for g, (h, s) in zip(optimizer.param_groups, self._groups, strict=True)
            )
            and _same(_parameters(optimizer), self._everyone)
            and (self._params is not None or list(map(_requires_grad, self._everyone)) == self._trainable)
            and _same(optimizer.state, self._owners)
            and _same(_state_tensors(optimizer), self._state)
            # Module.to() puts other data under the same parameters. A new dtype or device shows in the gradients;
            # a new layout would not, and before the first step there may be no gradients yet.
            and all(u._lists.as_checked() if u.fresh else u._lists.laid_out_as_checked() for u in self.updates)
        )


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _state_tensors(optimizer: Optimizer) -> Iterator[Any]:
    return chain.from_iterable(map(_values, optimizer.state.values()))


def _same(now: Iterable[Any], then: list[Any]) -> bool:
    present = list(now)
    return len(present) == len(then) and all(map(is_, present, then))


class FusedOptimizer(Optimizer, ABC):
    """torch.optim.Optimizer over in-place update rules, with a way in that needs no `.grad`.

    A subclass names its state, reads its scalars, and applies its rule; it adds no state of its
    own. `step()` is torch's; `update(grads)` is the same without `.grad`, hooks and profiler;
    `reference` is the rule as a pure function, for a tracer.

    Args:
        params: Parameters, named parameters or groups, as torch.optim takes them.
        defaults: The hyper-parameters of groups that do not set them.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.
    """

    # GradScaler hands us its scale and its verdict on non-finite gradients instead of asking first.
    _step_supports_amp_scaling = True
    # torch's schedulers warn where they are stepped before the optimizer; `step` and `commit` set it.
    _opt_called = False
    # Keys of a group that torch's own classes fill in when an old checkpoint lacks them.
    _optional_keys: ClassVar[Mapping[str, Any]] = {}
    # Every name that an entry of `state` may have, whatever the group says.
    _state_names: ClassVar[tuple[str, ...]]

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._plans: dict[tuple[int, ...] | None, _Plan] = {}
        self._check_group(defaults)
        super().__init__(params, defaults)

    @property
    def _counts(self) -> bool:
        return "step" in self._state_names

    # What a rule must say.

    @abstractmethod
    def _slot_names(self, group: Group) -> tuple[str, ...]:
        """Name the state tensors that this group's rule reads and writes, in order."""

    @abstractmethod
    def _scalars(self, group: Group, fresh: bool) -> Scalars:
        """Read the group's numbers as floats, in `Update.scalars`' order."""

    @abstractmethod
    def _check_group(self, group: Group) -> None:
        """Refuse hyper-parameters that are out of range, with ValueError."""

    @abstractmethod
    def _apply(self, update: Update, lists: TensorLists, grads: list[Tensor], scalars: Scalars) -> None:
        """Take one step in place; `lists`, `grads` and `scalars` are known to be good."""

    @abstractmethod
    def reference(
        self,
        update: Update,
        p: Tensor,
        g: Tensor,
        slots: tuple[Tensor, ...],
        scalars: Sequence[Tensor | float],
        step: Tensor | float | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute one step of one parameter as a pure function, for a tracer.

        Args:
            update: Whose group says which variant of the rule it is (maximize, nesterov, ...).
            p, g: A parameter and its gradient.
            slots: Its state, in the order of `Update.slots`.
            scalars: As `Update.scalars` orders them: floats, or 0-dim float64 tensors.
            step: The number of this step, from 1; None for SGD.

        Returns:
            The new parameter and the new slots; nothing is changed.
        """

    # The way in without `.grad`.

    def updates(self, params: Sequence[Tensor] | None = None) -> list[Update]:
        """Sort parameters into calls of the update rule.

        Args:
            params: Some of this optimizer's parameters, in any order; all that require a gradient
                if None.

        Returns:
            Updates that cover each of `params` once. The same objects come back until something
            changes: another set of parameters, a new group, loaded or replaced state.

        Raises:
            ValueError: One of `params` is not this optimizer's, comes twice, or cannot be updated.
        """
        return self._plan(params).updates

    def update(self, grads: Sequence[Tensor], params: Sequence[Tensor] | None = None) -> None:
        """Take one step in place from given gradients; no hooks run, and no `.grad` is read.

        Args:
            grads: One dense gradient for each of `params`, of its shape, dtype and device.
            params: As `updates` takes them.

        Raises:
            ValueError: A gradient does not fit, or a hyper-parameter has left its range. Every
                fault is named, and nothing has changed.
        """
        ready = self._ready(grads, params)
        with torch.no_grad():
            for u, admitted, scalars in ready:
                if u.step is not None:
                    u.step.add_(1)
                try:
                    self._apply(u, u._lists, admitted, scalars)
                except BaseException:  # a kernel that does not launch: nothing moved, so nothing was counted
                    if u.step is not None:
                        u.step.sub_(1)
                    raise
                # torch's fused operators do not count versions; autograd then misses a stale saved tensor.
                torch.autograd.graph.increment_version(u.params)
                u.commit()

    def _ready(
        self, grads: Sequence[Tensor], params: Sequence[Tensor] | None
    ) -> list[tuple[Update, list[Tensor], Scalars]]:
        """Everything that can fail, before anything that mutates."""
        plan = self._plan(params)
        if len(grads) != plan.count:
            raise ValueError(f"expected {plan.count} gradients, one for each parameter, got {len(grads)}")
        try:
            return [(u, u._lists.admit(plan.share(u, grads)), u.scalars()) for u in plan.updates]
        except ValueError:
            if all(u._lists.as_checked() for u in plan.updates):
                raise
            self._plans.clear()  # the parameters were given another dtype or device
            return self._ready(grads, params)

    # torch.optim.Optimizer.

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step from the `.grad` of every parameter that has one.

        Honours `grad_scale` and `found_inf`, the attributes GradScaler sets: gradients are divided
        by the first in place, as torch's fused classes do; if the second is not zero, nothing
        happens at all.

        Args:
            closure: Computes the gradients first, and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            ValueError: A gradient is sparse or does not fit; nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return loss
        moving = [(p, g) for p in _parameters(self) if (g := p.grad) is not None]
        if moving:
            params, grads = map(list, zip(*moving, strict=True))
            scale: Tensor | None = getattr(self, "grad_scale", None)
            if scale is not None:
                self._ready(grads, params)
                torch._foreach_div_(grads, scale.to(grads[0].device))
            self.update(grads, params)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, as torch does, checking its hyper-parameters too.

        Args:
            param_group: `params`, and the hyper-parameters that differ from the defaults.

        Raises:
            ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.
        """
        if isinstance(param_group, dict):
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        faults = [fault for i, p in enumerate(self.param_groups[-1]["params"]) if (fault := _unsupported(i, p))]
        if faults:
            self.param_groups.pop()
            raise ValueError("these parameters cannot be optimized here.\n  " + "\n  ".join(faults))

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict: `state` by parameter number, and `param_groups`.

        Moments are the live tensors, as in torch. Each `step` is a copy, so that torch's classes,
        which count each on its own, may load it.
        """
        packed = super().state_dict()
        packed["state"] = {
            key: {**entry, "step": entry["step"].clone()} if "step" in entry else entry
            for key, entry in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this class or of torch's, all or nothing.

        State is copied, into its parameter's device and memory layout. Its dtype is kept when it
        is the parameter's, or float32 for a bfloat16 or float16 parameter; a narrower one is
        widened to the parameter's. torch casts all of it to the parameter's, which loses bits.

        Args:
            state_dict: What `state_dict()` returned, here or in torch's class of the same name.

        Raises:
            ValueError: It differs in group sizes, or an entry is missing, unknown or misshapen.
                Every difference is listed, and nothing has changed.
        """
        loaded: dict[str, Any] = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            loaded = hook(self, loaded) or loaded
        groups, state = checked_state(self, loaded)
        self.__setstate__({"state": state, "param_groups": groups})
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = {}
        for group in self.param_groups:
            for key, value in self._optional_keys.items():
                group.setdefault(key, value)

    # How parameters are sorted.

    def _plan(self, params: Sequence[Tensor] | None) -> _Plan:
        key = None if params is None else tuple(map(id, params))
        plan = self._plans.get(key)
        if plan is None or not plan.holds(self):
            if plan is None and len(self._plans) >= _MAX_PLANS:
                del self._plans[next(iter(self._plans))]
            wanted = [p for p in _parameters(self) if p.requires_grad] if params is None else list(params)
            updates = self._sort(wanted)
            plan = self._plans[key] = _Plan(self, None if params is None else wanted, updates)
        return plan

    @torch.inference_mode(False)  # state made under inference mode could not be updated outside it
    def _sort(self, wanted: list[Tensor]) -> list[Update]:
        place = {id(p): i for i, p in enumerate(wanted)}
        mine = {id(p) for p in _parameters(self)}
        strangers = [i for i, p in enumerate(wanted) if id(p) not in mine]
        if strangers or len(place) != len(wanted):
            what = f"not this optimizer's: {strangers}" if strangers else "given twice"
            raise ValueError(f"expected parameters of this optimizer, each once; some are {what}")
        updates = []
        for group in self.param_groups:
            names = self._slot_names(group)
            buckets: dict[tuple[Any, ...], list[Tensor]] = {}
            for p in group["params"]:
                if id(p) in place:
                    buckets.setdefault(self._bucket(p, names), []).append(p)
            for (_, count), members in buckets.items():
                updates.append(self._gather(group, names, members, count, place))
        return updates

    def _bucket(self, p: Tensor, names: tuple[str, ...]) -> tuple[torch.device, float | None]:
        """What must agree for parameters to move in one call: the device, and steps taken (None: no state)."""
        entry = self.state.get(p) or {}
        needed = (*(("step",) if self._counts else ()), *names)
        absent = [name for name in needed if entry.get(name) is None]
        if len(absent) == len(needed) > 0:
            return p.device, None
        if absent:
            raise ValueError(f"the state of a parameter of shape {tuple(p.shape)} lacks {', '.join(absent)}")
        return p.device, float(entry["step"]) if self._counts else 0.0

    def _gather(
        self, group: Group, names: tuple[str, ...], members: list[Tensor], count: float | None, place: dict[int, int]
    ) -> Update:
        fresh = count is None
        if fresh:
            slots = tuple([torch.zeros_like(p, requires_grad=False) for p in members] for _ in names)
        else:
            slots = tuple([self.state[p][name] for p in members] for name in names)
        lists = TensorLists(members, dict(zip(names, slots, strict=True)))
        step = None
        if self._counts:
            step = torch.zeros((), dtype=torch.float32) if fresh else self._tied_step(members)
        return Update(group, members, slots, step, fresh, [place[id(p)] for p in members], self, lists)

    def _tied_step(self, members: list[Tensor]) -> Tensor:
        """One step tensor, shared by these parameters and by no other."""
        first = self.state[members[0]]["step"]
        ids = {id(p) for p in members}
        usable = isinstance(first, Tensor) and first.dtype == torch.float32 and first.shape == ()
        shared = any(entry.get("step") is first for p, entry in self.state.items() if id(p) not in ids)
        own = not usable or shared or first.device.type != "cpu"
        step: Tensor = torch.tensor(float(first), dtype=torch.float32) if own else first
        for p in members:
            self.state[p]["step"] = step
        return step

    def _adopt(self, update: Update) -> None:
        """Move a fresh update's slots and step into `state`, without undoing the plans it belongs to."""
        holding = [plan for plan in self._plans.values() if update in plan.updates and plan.holds(self)]
        names = self._slot_names(update.group)
        for i, p in enumerate(update.params):
            entry = {} if update.step is None else {"step": update.step}
            entry |= {name: slot[i] for name, slot in zip(names, update.slots, strict=True)}
            self.state[p] = {**self.state.get(p, {}), **entry}
        update.fresh = False
        for plan in holding:
            plan.witness(self)


def _unsupported(i: int, p: Tensor) -> str | None:
    if p.is_complex():
        return f"params[{i}]: complex parameters are not supported, got {p.dtype}: optimize torch.view_as_real of it"
    if p.layout is not torch.strided:
        return f"params[{i}]: sparse parameters are not supported, got {p.layout}"
    return None
