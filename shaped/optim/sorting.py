"""Sorting parameters into updates, and making the state that they do not have yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shaped_kernels.dispatch import choose_path
from shaped_kernels.flat import arena, worth_an_arena
from shaped_kernels.lists import TensorLists, scale_count
from shaped_kernels.rule import Rule

from .options import Options
from .shards import local, sharded
from .updates import Group, Groups, GroupUpdate, RuleOf, RuleOwner, parameters_of

_State = dict[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Sorting:
    """What parameters are sorted by.

    Attributes:
        groups: The groups of all parameters.
        state: Their state, to which counts that are tied go.
        options: What is fused, and how parameters and state are stored.
        rule_of: The rule of a group.
        owner: Whose updates they become.
    """

    groups: Groups
    state: _State
    options: Options
    rule_of: RuleOf
    owner: RuleOwner


@torch.inference_mode(False)  # state made under inference mode could not be updated outside it
@torch.no_grad()
def sort(by: Sorting, wanted: list[Tensor]) -> list[GroupUpdate]:
    """Sort parameters into calls of the update rule.

    Args:
        by: Groups, state, options and rules.
        wanted: Some of the parameters, in any order.

    Raises:
        ValueError: One is not in a group, comes twice, or cannot be updated.
    """
    place = {id(p): i for i, p in enumerate(wanted)}
    mine = {id(p) for p in parameters_of(by.groups)}
    strangers = [i for i, p in enumerate(wanted) if id(p) not in mine]
    if strangers or len(place) != len(wanted):
        what = f"not this optimizer's: {strangers}" if strangers else "given twice"
        raise ValueError(f"params: expected parameters of this optimizer, each once; some are {what}")
    updates = []
    for group in by.groups:
        rule = by.rule_of(group)
        buckets: dict[tuple[Any, ...], list[Tensor]] = {}
        for p in group["params"]:
            if id(p) in place:
                buckets.setdefault(_bucket(by, rule, p), []).append(p)
        for (*_, count), members in buckets.items():
            updates.append(_gather(by, group, rule, members, count, [place[id(p)] for p in members]))
    return updates


def state_names(rule: Rule) -> tuple[str, ...]:
    """What the state of a parameter needs under a rule: its count, its slots, and the scales of codes."""
    return (*(("step",) if rule.counts else ()), *rule.slots, *scale_names(rule))


def scale_names(rule: Rule) -> tuple[str, ...]:
    """Name the scales of 8-bit state."""
    return tuple(f"{name}_scale" for name in rule.slots) if rule.eight_bit else ()


def _bucket(by: Sorting, rule: Rule, p: Tensor) -> tuple[Any, ...]:
    """What must agree for parameters to move in one call: the device, rounding, steps taken (None: no state)."""
    entry: Mapping[str, Any] = by.state.get(p) or {}
    needed = state_names(rule)
    absent = [name for name in needed if entry.get(name) is None]
    # With options on rounding or moments, parameters of one dtype move together.
    plain = by.options.store == "nearest" and by.options.moments is None
    special = None if plain else p.dtype
    if len(absent) == len(needed) > 0:
        return p.device, special, None
    if absent:
        raise ValueError(f"the state of a parameter of shape {tuple(p.shape)} lacks {', '.join(absent)}")
    return p.device, special, float(entry["step"]) if rule.counts else 0.0


def _gather(
    by: Sorting, group: Group, rule: Rule, members: list[Tensor], count: float | None, indices: list[int]
) -> GroupUpdate:
    fresh = count is None
    names, scaled = rule.slots, scale_names(rule)
    on_device = rule.has_kernels and choose_path(members[0].device) == "triton"
    place = members[0].device if on_device else torch.device("cpu")
    if fresh:
        # moments are never narrower than p
        wide = None if members[0].dtype == torch.float64 else by.options.moments
        kinds = rule.codes if scaled else (wide,) * len(names)
        slots = tuple(_zeros(members, kind) for kind in kinds)
        scales = tuple([torch.zeros(scale_count(local(p).numel()), device=p.device) for p in members] for _ in scaled)
    else:
        slots = tuple([by.state[p][name] for p in members] for name in names)
        scales = tuple([by.state[p][name] for p in members] for name in scaled)
    split = by.options.store == "split" and members[0].dtype == torch.bfloat16
    beside = {
        **({"ema": _present(by.state, "ema", members)} if by.options.ema_decay is not None else {}),
        **({"low": _present(by.state, "low", members)} if split else {}),
    }
    lists = TensorLists(
        _local(members),
        {name: _local(slot) for name, slot in zip(names, slots, strict=True)},
        ema=_local(beside["ema"]) if "ema" in beside else None,
        low=_local(beside["low"]) if split else None,
        scales=dict(zip(scaled, scales, strict=True)) if scaled else None,
        kernels=rule.has_kernels,
    )
    step = None
    if rule.counts:
        step = torch.zeros((), device=place) if fresh else _tied_step(by.state, members, place)
    named = {**dict(zip(names, slots, strict=True)), **dict(zip(scaled, scales, strict=True)), **beside}
    counted = torch.tensor(0.0 if fresh else 1.0, device=place) if step is None else step
    unsaved = fresh or any(
        (by.state.get(p) or {}).get(name) is not tensors[i]
        for name, tensors in named.items()
        for i, p in enumerate(members)
    )
    return GroupUpdate(group, members, slots, step, fresh, indices, lists, named, counted, unsaved, by.owner)


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [local(t) for t in tensors]


def _zeros(members: list[Tensor], dtype: Any) -> list[Tensor]:
    """State of the given dtype (None: the parameter's), in one block where that pays."""
    if worth_an_arena(members):
        return arena(members, dtype)
    return [torch.zeros_like(p, dtype=dtype, requires_grad=False) for p in members]


def _present(state: _State, name: str, members: list[Tensor]) -> list[Tensor]:
    """Averages or low halves: those in the state; otherwise copies of the parameters, or zeros, which are exact.

    An average of a narrow parameter is float32, each for itself: what a step adds to it is below its last place.
    """
    kept = [(state.get(p) or {}).get(name) for p in members]
    whole = name == "low" or not any(t is not None and t.dtype.itemsize < 4 for t in kept)
    if whole and all(t is not None for t in kept):
        return [t for t in kept if t is not None]
    if name == "low":
        return _zeros(members, torch.int16)
    narrow = [p.dtype.itemsize < 4 for p in members]
    if any(narrow) and not all(narrow):
        made = [torch.zeros_like(p, dtype=torch.float32 if n else None, requires_grad=False)
                for p, n in zip(members, narrow, strict=True)]  # fmt: skip
    else:
        made = _zeros(members, torch.float32 if narrow[0] else None)
    for e, p, t in zip(made, members, kept, strict=True):
        e.copy_(p.detach() if t is None else t)
    return made


def _tied_step(state: _State, members: list[Tensor], place: torch.device) -> Tensor:
    """One step tensor, shared by these parameters and by no other, where the update wants it."""
    first = state[members[0]]["step"]
    ids = {id(p) for p in members}
    usable = isinstance(first, Tensor) and first.dtype == torch.float32 and first.shape == () and not sharded(first)
    shared = any(entry.get("step") is first for p, entry in state.items() if id(p) not in ids)
    own = not usable or shared or first.device != place
    step: Tensor = torch.tensor(float(first), dtype=torch.float32, device=place) if own else first
    for p in members:
        state[p]["step"] = step
    return step
