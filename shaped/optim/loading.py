"""Reading an optimizer's state dict: every difference is found before anything is assigned.

What `checked_state` returns is a copy that fits the optimizer, ready to be its `param_groups` and
`state`; nothing in it is shared with the dict it came from.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shaped.errors import StateError, listing
from shaped_kernels.flat import arena, worth_an_arena
from shaped_kernels.lists import WIDE, describe, dtype_name, scale_count
from shaped_kernels.rule import Rule

from .shards import local, sharded
from .sorting import state_names
from .updates import Group, Groups, RuleOf

State = defaultdict[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class _Fitting:
    """A state value that fits, not copied yet: where the copy lies is known when all of a group's have been seen.

    Attributes:
        value: What was loaded; of the shape of `like`.
        like: Whose strides the copy gets where it is dense, so that kernels may walk both alike.
        device, dtype: Those of the copy.
    """

    value: Tensor
    like: Tensor
    device: torch.device
    dtype: torch.dtype

    def copy(self) -> Tensor:
        made = torch.empty_like(self.like, dtype=self.dtype, device=self.device, requires_grad=False)
        return made.copy_(self.value)


@dataclass(frozen=True)
class LoadTarget:
    """What a state dict is held against.

    Attributes:
        name: What messages call the optimizer.
        groups: Its groups.
        defaults: The hyper-parameters that a group must have.
        optional: Those that may be absent, with what they are then.
        check: Refuses hyper-parameters with ValueError.
        rule_of: The rule of a group.
    """

    name: str
    groups: Groups
    defaults: Mapping[str, Any]
    optional: Mapping[str, Any]
    check: Callable[[Group], None]
    rule_of: RuleOf


def checked_state(optimizer: LoadTarget, loaded: Mapping[str, Any]) -> tuple[list[dict[str, Any]], State]:
    """Compare a state dict with an optimizer, and copy it into the optimizer's terms.

    Args:
        optimizer: Whose parameters, group sizes and state names count; unchanged.
        loaded: A state dict in torch's layout.

    Returns:
        New `param_groups`, and the state of every parameter that has one; parameters with equal
        step counts share one step tensor.

    Raises:
        StateError: Listing every difference.
    """
    faults: list[str] = []
    _refuse(optimizer, _built_wrong(loaded))
    loaded = _by_name(optimizer, loaded)
    groups = _groups(optimizer, loaded, faults)
    _refuse(optimizer, faults)  # without matching groups no entry can be told whose it is
    state = _entries(optimizer, loaded, groups, faults)
    _refuse(optimizer, faults)
    _tie_steps(groups, state)
    _copy(groups, state)
    return groups, state


def _built_wrong(loaded: Mapping[str, Any]) -> list[str]:
    """What of a state dict is not what it should be a mapping, a list or a key; what is missing is told elsewhere."""
    groups, state = loaded.get("param_groups", ()), loaded.get("state", {})
    if not isinstance(groups, list | tuple):
        return [f"param_groups: expected a list, got a {type(groups).__name__}"]
    faults = [f"param_groups[{i}]: expected a dict, got a {type(g).__name__}" for i, g in enumerate(groups)
              if not isinstance(g, Mapping)]  # fmt: skip
    for i, group in enumerate(groups if not faults else ()):
        for key, kinds in (("params", int | str), ("param_names", str)):
            held = group.get(key, ())
            if not isinstance(held, list | tuple) or not all(isinstance(one, kinds) for one in held):
                faults.append(f"param_groups[{i}].{key}: expected a list of {'keys' if key == 'params' else 'names'}")
        if odd := [str(key) for key in ("fused", "foreach", "differentiable") if isinstance(group.get(key), Tensor)]:
            faults.append(f"param_groups[{i}]: expected no tensors for {listing(odd)}")
    if not isinstance(state, Mapping):
        return [*faults, f"state: expected a dict, got a {type(state).__name__}"]
    return faults + [f"state[{key}]: expected a dict, got a {type(entry).__name__}" for key, entry in state.items()
                     if not isinstance(entry, Mapping)]  # fmt: skip


def in_order(groups: Sequence[Any], theirs: Sequence[Any], mine: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Saved groups with their parameters in our order, which names tell.

    Args:
        groups: Saved `param_groups`; unchanged.
        theirs: The names of the parameters of each, in the order in which they were saved.
        mine: The names of the parameters of each of our groups.

    Raises:
        ValueError: The groups are not of the same parameters; each difference is listed.
    """
    if any(not isinstance(names, list | tuple) for names in theirs) or len(theirs) != len(groups):
        raise ValueError("the names of its parameters are not one list for each group")
    if len(theirs) != len(mine):
        raise ValueError(f"param_groups: expected {len(mine)} groups, got {len(theirs)}")
    counts = [(len(g.get("params", ())), len(names)) for g, names in zip(groups, theirs, strict=True)]
    faults = [f"param_groups[{i}]: {n} parameters, and {m} names" for i, (n, m) in enumerate(counts) if n != m]
    faults += [_group_fault(i, a, b) for i, (a, b) in enumerate(zip(theirs, mine, strict=True)) if {*a} != {*b}]
    if faults:
        raise ValueError("its groups are not of the same parameters.\n  " + "\n  ".join(faults))
    return [_reordered(group, a, b) for group, a, b in zip(groups, theirs, mine, strict=True)]


def _group_fault(i: int, theirs: Sequence[str], mine: Sequence[str]) -> str:
    there, here = ([name for name in a if name not in b] for a, b in ((theirs, mine), (mine, theirs)))
    said = [f"{listing([str(n) for n in names])} {where} only" for names, where in ((there, "there"), (here, "here"))
            if names]  # fmt: skip
    return f"param_groups[{i}]: {', '.join(said)}"


def _reordered(group: Mapping[str, Any], theirs: Sequence[str], mine: Sequence[str]) -> dict[str, Any]:
    keys = dict(zip(theirs, group["params"], strict=True))
    names = {"param_names": list(mine)} if "param_names" in group else {}
    return {**group, "params": [keys[name] for name in mine], **names}


def _by_name(optimizer: LoadTarget, loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict with its parameters in our order, where both have names; otherwise the order is as it is."""
    saved, mine = loaded.get("param_groups", ()), optimizer.groups
    named, own = (bool(groups) and all("param_names" in g for g in groups) for groups in (saved, mine))
    if named and own:
        try:
            groups = in_order(saved, [g["param_names"] for g in saved], [g["param_names"] for g in mine])
        except ValueError as error:
            _refuse(optimizer, [str(error)])
        else:
            return {**loaded, "param_groups": groups}
    elif named != own:
        which = "this optimizer" if named else "the state dict"
        warnings.warn(f"the state is taken by position: {which} has no names of parameters", stacklevel=5)
    return loaded


def _refuse(optimizer: LoadTarget, faults: list[str]) -> None:
    if faults:
        raise StateError(
            f"the state dict does not fit this {optimizer.name}; nothing was changed.\n  " + "\n  ".join(faults)
        )


def _groups(optimizer: LoadTarget, loaded: Mapping[str, Any], faults: list[str]) -> list[dict[str, Any]]:
    """Copies of the loaded groups that hold our parameters, with every fault noted."""
    faults += [f"{key}: missing" for key in ("state", "param_groups") if key not in loaded]
    if faults:
        return []
    saved, mine = loaded["param_groups"], optimizer.groups
    if len(saved) != len(mine):
        faults.append(f"param_groups: expected {len(mine)} groups, got {len(saved)}")
    groups = []
    for i, (theirs, ours) in enumerate(zip(saved, mine, strict=False)):
        here = f"param_groups[{i}]"
        if len(theirs.get("params", ())) != len(ours["params"]):
            faults.append(f"{here}: expected {len(ours['params'])} parameters, got {len(theirs.get('params', ()))}")
        faults += [
            f"{here}: lacks {key}" for key in optimizer.defaults if key not in theirs and key not in optimizer.optional
        ]
        absent = {key: value for key, value in optimizer.optional.items() if key in ours}
        group = {**absent, **deepcopy({k: v for k, v in theirs.items() if k != "params"})}
        if isinstance(group.get("betas"), list):  # json and yaml know no tuples
            group["betas"] = tuple(group["betas"])
        group.pop("param_names", None)  # those of the dict have done their work
        if "param_names" in ours:
            group["param_names"] = ours["param_names"]
        groups.append({"params": ours["params"], **group})
        faults += _number_faults(optimizer, here, {**optimizer.defaults, **group})
    return groups


def _number_faults(optimizer: LoadTarget, here: str, group: dict[str, Any]) -> list[str]:
    try:
        optimizer.check(group)
    except ValueError as error:
        return [f"{here}: {error}"]
    return []


def _entries(
    optimizer: LoadTarget, loaded: Mapping[str, Any], groups: list[dict[str, Any]], faults: list[str]
) -> State:
    owner = {
        key: (p, group)
        for theirs, group in zip(loaded["param_groups"], groups, strict=True)
        for key, p in zip(theirs["params"], group["params"], strict=True)
    }
    state: State = defaultdict(dict)
    for key, entry in loaded["state"].items():
        if key not in owner:
            faults.append(f"state[{key}]: belongs to no parameter of the state dict's own groups")
            continue
        p, group = owner[key]
        rule = optimizer.rule_of(group)
        known = _known(rule)
        # torch writes momentum_buffer=None for a parameter that has not moved yet.
        present = {name: value for name, value in entry.items() if value is not None}
        faults += [f"state[{key}]: unknown entry {name}" for name in present if name not in known]
        needed = state_names(rule) if present else ()
        faults += [f"state[{key}]: lacks {name}" for name in needed if name not in present]
        kept = {n: _fitted(f"state[{key}].{n}", n, v, p, faults) for n, v in present.items() if n in known}
        if kept:
            state[p] = kept
    return state


def _known(rule: Rule) -> tuple[str, ...]:
    """Every name that the state of a parameter may have, in whatever variant."""
    scales = [f"{name}_scale" for name, _ in zip(rule.every_slot, rule.codes, strict=False)]
    return (*(("step",) if rule.counts else ()), *rule.every_slot, *scales, "ema", "low")


def _fitted(here: str, name: str, value: Any, p: Tensor, faults: list[str]) -> Any:
    """One state value as `p` needs it, to be copied; a fault is noted, and the value comes back as it is."""
    if name == "step":
        return _fitted_step(here, value, faults)
    if not isinstance(value, Tensor) or sharded(value) != sharded(p):
        faults.append(f"{here}: expected a {'DTensor' if sharded(p) else 'tensor'}, got {type(value).__name__}")
        return value
    if name.endswith("_scale"):
        return _exact(here, value, torch.float32, (scale_count(local(p).numel()),), p, faults)
    if name == "low" or value.dtype in (torch.int8, torch.uint8):
        kind = {"low": torch.int16, "exp_avg": torch.int8}.get(name, torch.uint8)
        return _exact(here, value, kind, tuple(p.shape), p, faults)
    kept = tuple(WIDE) if name == "ema" else (p.dtype, WIDE.get(p.dtype))
    dtype = value.dtype if value.dtype in kept else p.dtype
    widened = value.layout is torch.strided and torch.promote_types(value.dtype, dtype) == dtype
    if value.shape != p.shape or not widened:
        faults.append(f"{here}: expected {dtype_name(p.dtype)} {tuple(p.shape)}, got {describe(value)}")
        return value
    return _Fitting(value.detach(), p, p.device, dtype)


def _exact(
    here: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...], p: Tensor, faults: list[str]
) -> Tensor | _Fitting:
    """A value whose dtype and shape leave no choice, to be copied."""
    if value.dtype != dtype or tuple(value.shape) != shape:
        faults.append(f"{here}: expected {dtype_name(dtype)} {shape}, got {describe(value)}")
        return value
    like = p if shape == tuple(p.shape) else value
    return _Fitting(value.detach(), like, p.device, dtype)


def _fitted_step(here: str, value: Any, faults: list[str]) -> Any:
    if isinstance(value, Tensor) and value.numel() != 1:
        faults.append(f"{here}: expected one number, got {describe(value)}")
        return value
    count = float(value) if isinstance(value, int | float | Tensor) else float("nan")
    if not (count >= 0 and count.is_integer()):
        faults.append(f"{here}: expected a whole number of steps >= 0, got {value!r}")
        return value
    return torch.tensor(count, dtype=torch.float32)


def _tie_steps(groups: list[dict[str, Any]], state: State) -> None:
    for group in groups:
        shared: dict[tuple[torch.device, float], Tensor] = {}
        for p in group["params"]:
            if "step" in state.get(p, {}):
                step = state[p]["step"]
                state[p]["step"] = shared.setdefault((p.device, float(step)), step)


def _copy(groups: list[dict[str, Any]], state: State) -> None:
    """Copy what fits: of parameters that move together into one block, as it is when it is new (see sorting.py)."""
    for group in groups:
        together: dict[tuple[Any, ...], list[Tensor]] = {}
        for p in group["params"]:
            entry = state.get(p, {})
            kinds = tuple((name, t.dtype) for name, t in entry.items() if name != "step" and t.value.shape == p.shape)
            together.setdefault((p.device, p.dtype, id(entry.get("step")), kinds), []).append(p)
        for (*_, kinds), members in together.items():
            for name, dtype in kinds if worth_an_arena(members) else ():
                for p, t in zip(members, arena(members, dtype), strict=True):
                    state[p][name] = t.copy_(state[p][name].value)
    for entry in state.values():
        entry |= {name: t.copy() for name, t in entry.items() if isinstance(t, _Fitting)}


def own_step(step: Tensor, group: Group) -> Tensor:
    """A parameter's own count for a state dict: on the CPU, where torch's classes want it unless told otherwise."""
    return step.clone() if group.get("fused") or group.get("capturable") else step.detach().clone().cpu()
