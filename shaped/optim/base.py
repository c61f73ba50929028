"""One optimizer over any `Rule`: everything of torch.optim.Optimizer but the update rule.

A class names its rule; `rule_of(group)` is the variant that a group asks for. `updates()` sorts parameters into
`Update`s (updates.py): those that share hyper-parameters, device and step count move in one call of a rule. A step
then costs no Python per parameter beyond a few C loops.

State is torch's: `optimizer.state[p]` holds `step`, `exp_avg`, ... under torch's names. One thing
is ours: parameters that move together share one `step` tensor, so that one increment serves all.
`state_dict()` gives each its own copy, and loading ties equal counts together again.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import repeat
from operator import attrgetter, is_not
from typing import Any, ClassVar, cast, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from shaped.arguments import keyed
from shaped.errors import StateError
from shaped_kernels.calls import Extras, RuleCall
from shaped_kernels.flat import block_of
from shaped_kernels.fusion import take
from shaped_kernels.rule import Rule, switches
from shaped_kernels.scalars import Scalar

from .averaging import swapped
from .bare import bare
from .born import BornInterface
from .byreference import by_reference, says_own_reference
from .groups import check_flags, listed, named_like, read_group, refuse_no_sequence, unsupported
from .loading import LoadTarget, checked_state, own_step
from .noticed import NoticedState, by_groups, put
from .options import Options, split_options
from .shards import global_norm
from .sorting import Sorting, sort
from .updates import CheckedRule, CheckedRules, Group, GroupUpdate, UpdatePlan, parameters_of

_grad: Callable[[Tensor], Tensor | None] = attrgetter("grad")
_MAX_PLANS = 8  # sets of parameters that take turns; with one more the oldest plan is made again


class FusedOptimizer(BornInterface, Optimizer, ABC):
    """torch.optim.Optimizer over in-place update rules, with a way in that needs no `.grad`.

    A subclass names its `rule`; it adds no state of its own. `step()` is torch's; `update(grads)` is the same without
    `.grad`, hooks and profiler.

    Args:
        params: Parameters, named parameters or groups, as torch.optim takes them.
        given: Numbers and switches of the rule for groups that do not set them, and what `Options` has. A number that
            is not given is at the rule's default; a switch that is not given is in no group.

    Attributes:
        rule: The update rule.
        options: What is fused around the rule, and how it stores.
        grad_norm: The norm of all gradients at the last step, unscaled and before clipping: 0-dim,
            on the device; None unless `max_norm` or `skip_nonfinite` asked for it.

    Raises:
        ValueError: A hyper-parameter is out of range, or a parameter is complex or sparse.
        TypeError: An argument is none of the rule's and none of `Options`.
    """

    # GradScaler hands us its scale and its verdict on non-finite gradients instead of asking first.
    _step_supports_amp_scaling = True
    # torch's schedulers warn where they are stepped before the optimizer; `step` and `commit` set it.
    _opt_called = False
    # Keys of a group that torch's own class has besides the rule's, with what they are where a state dict lacks them.
    _torchs_keys: ClassVar[Mapping[str, Any]] = {}

    rule: ClassVar[type[Rule]]
    by_proof: ClassVar[bool] = False  # whether it is made from a proof, and not from parameters: Muon
    options: Options
    grad_norm: Tensor | None = None

    def __init__(self, params: Any, **given: Any) -> None:
        self._forget_plans()
        kind = self._default_rule(given)
        numbers = {hyper.name: hyper.default for hyper in kind.hypers}
        self.options, own = split_options(given, [*numbers, *switches(kind), *self._torchs_keys])
        defaults = {**{name: value for name, value in numbers.items() if name not in own}, **own}
        self._check_group(defaults)
        super().__init__(listed(params), defaults)
        self.state = NoticedState()

    def _default_rule(self, given: Mapping[str, Any]) -> type[Rule]:
        """The rule whose numbers the defaults are."""
        if not hasattr(self, "rule"):
            raise ValueError(f"{type(self).__name__} names no rule: use SGD, AdamW, ..., or a subclass that does")
        return self.rule

    @by_groups
    def rule_of(self, group: Group) -> Rule:
        """The variant of the rule that a group asks for.

        Raises:
            ValueError: A switch is no plain value.
        """
        return self.rule.of(group, self.options.store, self.options.moments == "8bit")

    @by_groups
    def rule_for(self, update: GroupUpdate) -> Rule:
        """The rule that an update is stepped by: its group's, or this class's own `reference`."""
        rule = self.rule_of(update.group)
        if not says_own_reference(type(self)):
            return rule
        return by_reference(rule, update.group, vars(self), lambda *given: self.reference(update, *given))

    def _check_group(self, group: Group) -> None:
        """Refuse hyper-parameters that are out of range, with ValueError."""
        check_flags(group)
        self.rule_of(group).numbers(group)

    @property
    def _optional_keys(self) -> dict[str, Any]:
        """Keys that a group of a state dict may lack: torch's own and switches, with what they are then."""
        absent = {name: self.defaults[name] for name in switches(self.rule) if name in self.defaults}
        return {**absent, "differentiable": False, **self._torchs_keys}  # torch puts that one into the defaults

    def reference(
        self,
        update: GroupUpdate,
        p: Tensor,
        g: Tensor,
        slots: tuple[Tensor, ...],
        scalars: Sequence[Scalar],
        step: Scalar,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute one step of one parameter as a pure function: the rule's `plain`.

        A subclass that says it anew steps by it, one parameter at a time.

        Args:
            update: Whose group says which variant of the rule it is (maximize, nesterov, ...).
            p, g: A parameter and its gradient.
            slots: Its state, in the order of `Update.slots`.
            scalars: In the order of the rule's `hypers`: floats, or 0-dim float64 tensors.
            step: The number of this step, from 1. For a rule that does not count, 1 or any later number.

        Returns:
            The new parameter and the new slots; nothing is changed.
        """
        return self.rule_of(update.group).plain(p, g, slots, scalars, step)

    # The way in without `.grad`.

    def updates(self, params: Sequence[Tensor] | None = None) -> list[GroupUpdate]:
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

    def read(self, params: Sequence[Tensor] | None = None, laid_out: bool = False) -> CheckedRules:
        """Read and check the hyper-parameters of the next step, for `update` to take (the same while none changes).

        Args:
            laid_out: Whether shapes, dtypes and strides of `params` are known to be those of the last call.

        Raises:
            ValueError: One is out of range, or one of `params` cannot be updated; nothing has changed.
        """
        return self._plan(params, laid_out).checked()

    def update(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor] | None = None,
        found_inf: Tensor | None = None,
        readings: CheckedRules | None = None,
        max_norm: float | None = None,
        norm: Tensor | None = None,
    ) -> None:
        """Take one step in place from given gradients; no hooks run, and no `.grad` is read.

        Args:
            grads: One dense gradient for each of `params`, alike in kind; unchanged, unless `zero_grads` was asked for.
            params: As `updates` takes them.
            found_inf: One element: the step changes nothing if it is not zero. On a GPU the host does not read it.
            readings: What `read` returned for the same parameters, where this is the step that it was read for.
            max_norm: The caller's limit, beside that of the options: gradients are clipped once, to the smaller.
            norm: The norm of all gradients, where these are this rank's parts of them.

        Raises:
            ValueError: A gradient does not fit, or a number has left its range; each is named, and nothing has changed.
        """
        if readings is not None and not isinstance(cast(object, readings), CheckedRules):
            raise ValueError(f"readings is of type {type(readings).__name__}; it is what `read` returns")
        around = self.options.around(max_norm, found_inf=found_inf, keep=True, norm=norm)
        self._take(grads, params, around, readings)

    @_disable_dynamo
    def _take_uncompiled(self, *arguments: Any) -> None:
        self._take(*arguments)

    def _take(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor] | None,
        extras: Extras,
        readings: CheckedRules | None = None,
    ) -> None:
        if torch.compiler.is_dynamo_compiling():  # it breaks its graph here, as at every torch optimizer's step
            self._take_uncompiled(grads, params, extras, readings)
            return
        plan, calls = self._ready(grads, params, readings, extras.looks_at_all)
        if extras.measures and any(u.sharded for u in plan.updates):
            extras = replace(extras, norm=global_norm(grads))
        self.grad_norm, skipped = take(calls, extras)
        for u in plan.updates:
            # torch's fused operators do not count versions; autograd then misses a stale saved tensor.
            torch.autograd.graph.increment_version(u.params)
            if skipped is not True:
                u.adopt()

    def _ready(
        self, grads: Sequence[Tensor], params: Sequence[Tensor] | None, readings: CheckedRules | None, gather: bool
    ) -> tuple[UpdatePlan, list[RuleCall]]:
        """Everything that can fail, before anything that mutates."""
        plan = self._plan(params)
        refuse_no_sequence("grads", grads)
        if len(grads) != plan.count:
            raise ValueError(f"grads: expected {plan.count} gradients, one for each parameter, got {len(grads)}")
        read = (readings if readings is not None and readings.plan is plan else plan.checked()).readings
        try:
            with torch.no_grad():
                given = zip(plan.updates, read, strict=True)
                return plan, [self._call(u, plan.share(u, grads), reading, gather) for u, reading in given]
        except ValueError:
            if all(u.lists.as_checked() for u in plan.updates):
                raise
            self._plans.clear()  # the parameters were given another dtype or device
            return self._ready(grads, params, None, gather)

    def _call(self, update: GroupUpdate, grads: Sequence[Tensor], reading: CheckedRule, gather: bool) -> RuleCall:
        lr = update.group["lr"] if update.lr_on_device else None
        return RuleCall(reading.rule, update.lists, grads, reading.numbers, update.counted, lr, gather)

    def ahead(
        self, params: Sequence[Tensor] | None = None, readings: CheckedRules | None = None
    ) -> AbstractContextManager[None]:
        """Put parameters where their rule takes the gradient, for the length of a `with` block; for most, that is here.

        Args:
            params: As `updates` takes them.
            readings: What `read` returned for them, where this is the step that it was read for.
        """
        readings = readings or self.read(params)  # refuses what is not ours
        if not readings.leads:
            return nullcontext()
        points = [pair for u in readings.plan.updates for pair in u.points()]
        return swapped([p for p, _ in points], [point for _, point in points])

    def upload(self) -> None:
        """Write lr and all other hyper-parameters to the device, where captured steps read them.

        `step` does this itself; a captured step that is replayed cannot see that a scheduler changed a
        number on the host. On the CPU there is nothing to do.
        """
        extras = self.options.around()
        for plan in self._plans.values():
            for u in plan.updates:
                if u.lists.path == "triton" and len(u.lists):
                    from shaped_kernels.launch_triton import upload

                    upload(self._call(u, u.lists.params, u.admitted(), extras.looks_at_all), extras)

    # torch.optim.Optimizer.

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step from the `.grad` of every parameter that has one.

        Honours `grad_scale` and `found_inf`, the attributes GradScaler sets: the step divides the
        gradients by the first (`.grad` itself may stay scaled); if the second is not zero, nothing
        changes. On a GPU neither is read by the host.

        Args:
            closure: Computes the gradients first, and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            ValueError: A gradient is sparse or does not fit; nothing has changed.
        """
        loss = None
        if closure is not None and not callable(closure):
            raise ValueError(f"closure is of type {type(closure).__name__}; it is a function, or None")
        if closure is not None:
            with self.ahead(), torch.enable_grad():
                loss = closure()
        params = list(parameters_of(self.param_groups))
        grads: list[Any] = list(map(_grad, params))
        if not all(map(is_not, grads, repeat(None))):
            moving = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
            params, grads = [p for p, _ in moving], [g for _, g in moving]
        if params:
            amp = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
            self._take(grads, params, self.options.around(**amp))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as torch does; those that lie in one block (`flatten_parameters`) in one operation.

        Args:
            set_to_none: Drop them, so that the next backward pass makes new ones. Otherwise fill with zeros. ValueError
                where it is neither True nor False.
        """
        if not isinstance(set_to_none, bool):
            raise ValueError(f"set_to_none is {set_to_none!r}; it is True or False")
        if set_to_none:
            for p in parameters_of(self.param_groups):
                p.grad = None
            return
        grads = [g for g in map(_grad, parameters_of(self.param_groups)) if g is not None]
        if any(g.requires_grad for g in grads) or (block := block_of(grads)) is None:
            bare(super().zero_grad)(set_to_none=False)
        else:
            block.zero_()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, as torch does, checking its hyper-parameters too.

        Args:
            param_group: `params`, and the hyper-parameters that differ from the defaults.

        Raises:
            ValueError: It is no group, a hyper-parameter is out of range, or a parameter is complex or sparse.
        """
        param_group = read_group(param_group)
        self._check_group({**self.defaults, **param_group})
        bare(super().add_param_group)(named_like(self.param_groups, param_group))
        if faults := unsupported(self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ValueError("these parameters cannot be optimized here.\n  " + "\n  ".join(faults))

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict: `state` by parameter number, and `param_groups`.

        Moments are the live tensors, as in torch. Each `step` is a copy, so that torch's classes,
        which count each on its own, may load it.
        """
        packed = bare(super().state_dict)()
        groups = {key: group for group in packed["param_groups"] for key in group["params"]}
        packed["state"] = {
            key: {**entry, **({"step": own_step(entry["step"], groups[key])} if "step" in entry else {})}
            for key, entry in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this class or of torch's, all or nothing.

        Where it and this optimizer have the names of their parameters (made of a ParamList, or of
        `named_parameters()`), each group is loaded by name. Otherwise it is loaded by position, as
        torch does, with a warning where only one of the two has names.

        State is copied, into its parameter's device and memory layout. Its dtype is kept when it
        is the parameter's, or float32 for a bfloat16 or float16 parameter; a narrower one is
        widened to the parameter's. torch casts all of it to the parameter's, which loses bits.

        Args:
            state_dict: What `state_dict()` returned, here or in torch's class of the same name.

        Raises:
            StateError: It differs in groups or names, or an entry is missing, unknown or misshapen.
                Every difference is listed, and nothing has changed.
        """
        loaded: dict[str, Any] = dict(keyed("state_dict", state_dict, error=StateError))
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            loaded = hook(self, loaded) or loaded
        groups, state = checked_state(self._target(), loaded)
        self.__setstate__({"state": NoticedState(state), "param_groups": groups})
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)

    def _target(self) -> LoadTarget:
        name, optional = type(self).__name__, self._optional_keys
        return LoadTarget(name, self.param_groups, self.defaults, optional, self._check_group, self.rule_of)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_plans()
        for group in self.param_groups:
            for key, value in self._torchs_keys.items():
                group.setdefault(key, value)

    # How parameters are sorted.

    def _forget_plans(self) -> None:
        self._plans: dict[tuple[int, ...] | None, UpdatePlan] = {}
        self._asked: tuple[Sequence[Tensor] | None, tuple[int, ...] | None] = (None, None)

    def _plan(self, params: Sequence[Tensor] | None, laid_out: bool = False) -> UpdatePlan:
        asked, key = self._asked
        if params is not asked:
            if params is not None:
                refuse_no_sequence("params", params)
            key = None if params is None else tuple(map(id, params))
            if params is None or isinstance(params, tuple):  # which cannot change, as a list can
                self._asked = params, key
        plan = self._plans.get(key)
        if plan is None or not plan.holds(self, laid_out):
            if plan is None and len(self._plans) >= _MAX_PLANS:
                del self._plans[next(iter(self._plans))]
            everyone = parameters_of(self.param_groups)
            wanted = [p for p in everyone if p.requires_grad] if params is None else list(params)
            by = Sorting(self.param_groups, self.state, self.options, self.rule_of, self)
            plan = UpdatePlan(None if params is None else wanted, sort(by, wanted))
            self._plans[key] = plan.witness(self)
        return plan

    def adopt(self, update: GroupUpdate) -> None:
        """Put what an update made into `state`, without undoing the plans it belongs to."""
        self._opt_called = True
        if not update.unsaved:
            return
        holding = [plan for plan in self._plans.values() if update in plan.updates and plan.holds(self)]
        for i, p in enumerate(update.params):
            entry: dict[str, Any] = {} if update.step is None else {"step": update.step}
            entry |= {name: tensors[i] for name, tensors in update.named.items()}
            put(self.state, p, {**self.state.get(p, {}), **entry})
        update.fresh, update.unsaved = False, False
        for plan in holding:
            plan.witness(self)
