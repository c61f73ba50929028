"""Sorting parameters into updates, and making the state that they do not have yet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shaped_kernels.dispatch import choose_path
from shaped_kernels.flat import arena, worth_an_arena
from shaped_kernels.lists import TensorLists, scale_count

from .shards import local, sharded
from .updates import Group, Update, parameters_of

if TYPE_CHECKING:
    from .base import FusedOptimizer


@torch.inference_mode(False)  # state made under inference mode could not be updated outside it
@torch.no_grad()
def sort(optimizer: "FusedOptimizer", wanted: list[Tensor]) -> list[Update]:
    """Sort parameters into calls of the update rule.

    Args:
        optimizer: Whose they are.
        wanted: Some of its parameters, in any order.

    Raises:
        ValueError: One is not the optimizer's, comes twice, or cannot be updated.
    """
    place = {id(p): i for i, p in enumerate(wanted)}
    mine = {id(p) for p in parameters_of(optimizer)}
    strangers = [i for i, p in enumerate(wanted) if id(p) not in mine]
    if strangers or len(place) != len(wanted):
        what = f"not this optimizer's: {strangers}" if strangers else "given twice"
        raise ValueError(f"expected parameters of this optimizer, each once; some are {what}")
    updates = []
    for group in optimizer.param_groups:
        buckets: dict[tuple[Any, ...], list[Tensor]] = {}
        for p in group["params"]:
            if id(p) in place:
                buckets.setdefault(_bucket(optimizer, group, p), []).append(p)
        for (*_, count), members in buckets.items():
            updates.append(_gather(optimizer, group, members, count, [place[id(p)] for p in members]))
    return updates


def _bucket(optimizer: "FusedOptimizer", group: Group, p: Tensor) -> tuple[Any, ...]:
    """What must agree for parameters to move in one call: the device, rounding, steps taken (None: no state)."""
    entry = optimizer.state.get(p) or {}
    names = optimizer._slot_names(group)
    needed = (*(("step",) if optimizer._counts else ()), *names, *optimizer._scale_names(names))
    absent = [name for name in needed if entry.get(name) is None]
    # With options on rounding or moments, parameters of one dtype move together.
    plain = optimizer.options.store == "nearest" and optimizer.options.moments is None
    special = None if plain else p.dtype
    if len(absent) == len(needed) > 0:
        return p.device, special, None
    if absent:
        raise ValueError(f"the state of a parameter of shape {tuple(p.shape)} lacks {', '.join(absent)}")
    return p.device, special, float(entry["step"]) if optimizer._counts else 0.0


def _gather(
    optimizer: "FusedOptimizer", group: Group, members: list[Tensor], count: float | None, indices: list[int]
) -> Update:
    fresh = count is None
    options = optimizer.options
    names = optimizer._slot_names(group)
    scale_names = optimizer._scale_names(names)
    on_device = choose_path(members[0].device) == "triton"
    place = members[0].device if on_device else torch.device("cpu")
    if fresh:
        wide = None if members[0].dtype == torch.float64 else options.moments  # moments are never narrower than p
        kinds = (torch.int8, torch.uint8) if scale_names else (wide,) * len(names)
        slots = tuple(_zeros(members, kind) for kind in kinds)
        scales = tuple(
            [torch.zeros(scale_count(local(p).numel()), device=p.device) for p in members] for _ in scale_names
        )
    else:
        slots = tuple([optimizer.state[p][name] for p in members] for name in names)
        scales = tuple([optimizer.state[p][name] for p in members] for name in scale_names)
    split = options.store == "split" and members[0].dtype == torch.bfloat16
    beside = {
        **({"ema": _present(optimizer, "ema", members)} if options.ema_decay is not None else {}),
        **({"low": _present(optimizer, "low", members)} if split else {}),
    }
    lists = TensorLists(
        _local(members),
        {name: _local(slot) for name, slot in zip(names, slots, strict=True)},
        ema=_local(beside["ema"]) if "ema" in beside else None,
        low=_local(beside["low"]) if split else None,
        scales=dict(zip(scale_names, scales, strict=True)) if scale_names else None,
    )
    step = None
    if optimizer._counts:
        step = torch.zeros((), device=place) if fresh else _tied_step(optimizer, members, place)
    named = {**dict(zip(names, slots, strict=True)), **dict(zip(scale_names, scales, strict=True)), **beside}
    counted = torch.tensor(0.0 if fresh else 1.0, device=place) if step is None else step
    return Update(group, members, slots, step, fresh, indices, optimizer, lists, named, counted)


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [local(t) for t in tensors]


def _zeros(members: list[Tensor], dtype: Any) -> list[Tensor]:
    """State of the given dtype (None: the parameter's), in one block where that pays."""
    if worth_an_arena(members):
        return arena(members, dtype)
    return [torch.zeros_like(p, dtype=dtype, requires_grad=False) for p in members]


def _present(optimizer: "FusedOptimizer", name: str, members: list[Tensor]) -> list[Tensor]:
    """Averages or low halves: those in the state; otherwise copies of the parameters, or zeros, which are exact.

    An average of a narrow parameter is float32, each for itself: what a step adds to it is below its last place.
    """
    kept = [(optimizer.state.get(p) or {}).get(name) for p in members]
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


def _tied_step(optimizer: "FusedOptimizer", members: list[Tensor], place: torch.device) -> Tensor:
    """One step tensor, shared by these parameters and by no other, where the update wants it."""
    first = optimizer.state[members[0]]["step"]
    ids = {id(p) for p in members}
    usable = isinstance(first, Tensor) and first.dtype == torch.float32 and first.shape == () and not sharded(first)
    shared = any(entry.get("step") is first for p, entry in optimizer.state.items() if id(p) not in ids)
    own = not usable or shared or first.device != place
    step: Tensor = torch.tensor(float(first), dtype=torch.float32, device=place) if own else first
    for p in members:
        optimizer.state[p]["step"] = step
    return step
