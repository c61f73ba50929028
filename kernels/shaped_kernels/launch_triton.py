"""The host's part of a step on the triton path: tables, then at most five kinds of launches.

    squares_kernel   once for each dtype, if clipping or skipping asked for it
    row_kernel       one program: advances the step, decides, writes the row
    agree_kernel     once for each dtype, if the rule is cautious
    ahead_kernel     once for each dtype, if the rule works on whole tensors; behind it, what it does with them
    table_kernel     once for each dtype: all tensors of the lists

Nothing here waits for the device. Tensors that are no dense block are updated as dense copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .calls import NOTHING, Extras, RuleCall, shared
from .cautious_triton import agree_kernel
from .lists import WIDE, TensorLists
from .muon_triton import ahead_kernel
from .rows_triton import NORM, OWN, SKIP, row_kernel
from .rule import Kernels
from .table_triton import NEAREST, SPLIT, STOCHASTIC, squares_kernel, table_kernel
from .tables import BLOCK, AddressTable

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
}
_STORES = {"nearest": NEAREST, "stochastic": STOCHASTIC, "split": SPLIT}


def options(backend: str) -> dict[str, Any]:
    """What every launch is compiled with.

    8 elements a lane, so that bfloat16 too fills 128 bits: 4 warps of 32 lanes on NVIDIA, 2 of 64 on AMD. FMA fusion
    is stated because Triton's default changes between 3.9 and 3.10.

    Args:
        backend: "cuda" or "hip".
    """
    return {"num_warps": 2 if backend == "hip" else 4, "enable_fp_fusion": True}


_SHARED_HYPERS = 2  # max_norm and the EMA's decay stand before the rule's own

OPTIONS = options("hip" if torch.version.hip else "cuda")


@dataclass
class _Group:
    """Tensors of some lists that have, role by role, one dtype."""

    members: list[int]
    table: AddressTable
    wide: torch.dtype
    roles: list[list[Tensor]] = field(default_factory=list)
    partials: Tensor | None = None


class _Tables:
    """What is kept with lists between steps: groups with their tables, hyper-parameters and rows on the device."""

    def __init__(self, lists: TensorLists, hypers: int, entries: int, block: int) -> None:
        buckets: dict[tuple[torch.dtype, ...], list[int]] = {}
        for i, p in enumerate(lists.params):
            beside = [] if lists.ema is None else [lists.ema[i].dtype]
            buckets.setdefault((p.dtype, *(slot[i].dtype for slot in lists.slots), *beside), []).append(i)
        sizes = [p.numel() for p in lists.params]
        self.groups = [
            _Group(members, AddressTable([sizes[i] for i in members], lists.device, block), WIDE[kinds[0]])
            for kinds, members in buckets.items()
        ]
        self.rows = {
            wide: torch.zeros(OWN.value + entries, dtype=wide, device=lists.device)
            for wide in {group.wide for group in self.groups}
        }
        self.counts: Tensor | None = None
        self._each: list[Tensor] = []
        self._written: list[float] = []
        self.hypers = torch.zeros(_SHARED_HYPERS + hypers, dtype=torch.float64, device=lists.device)

    def agreeing(self, lists: TensorLists) -> list[Tensor]:
        """For each tensor how many of its elements agree, and how many it has: 16 bytes, so that all stay aligned."""
        if self.counts is None:
            sizes = [[0, p.numel()] for p in lists.params]
            self.counts = torch.tensor(sizes, dtype=torch.int64).to(lists.device)
            self._each = list(self.counts)
        return self._each

    def write(self, hypers: list[float]) -> None:
        """Upload hyper-parameters that differ from those uploaded last, into the memory that captured launches read.

        Raises:
            RuntimeError: A capture is under way: its replays would upload these numbers again and again.
        """
        if hypers == self._written:
            return
        if self.hypers.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "hyper-parameters are new or have changed during a capture: take a step before it, alike"
            )
        host = torch.tensor(hypers, dtype=torch.float64, pin_memory=self.hypers.is_cuda)
        self.hypers[: len(hypers)].copy_(host, non_blocking=True)
        self._written = hypers


def upload(call: RuleCall, extras: Extras, block: int = BLOCK) -> None:
    """Write a call's hyper-parameters to the device, for launches that were captured before they changed.

    Args:
        call: Lists on the triton path.
        extras: Those of its steps.
        block: As in `launch`.
    """
    plan = _plan(call, block)
    plan.write([extras.max_norm or 0.0, _decay(extras), *call.scalars])
    if call.lr is not None:  # the first number of every rule; no wait for its value
        plan.hypers[_SHARED_HYPERS].copy_(call.lr.detach().reshape(()), non_blocking=True)


def _decay(extras: Extras) -> float:
    return 1.0 if extras.ema_decay is None else extras.ema_decay


def launch(
    calls: Sequence[RuleCall], extras: Extras = NOTHING, beyond: Sequence[Tensor] = (), block: int = BLOCK
) -> tuple[Tensor | None, Tensor]:
    """Take one step of every call.

    Args:
        calls: Lists on the triton path, on any devices.
        extras: What is fused around the step.
        beyond: Squared norms of gradients that are not in `calls`, one element each.
        block: Elements a program walks at a time; tests make it small.

    Returns:
        The norm of all gradients, or None if nothing asked for it; whether the step was skipped.
        Both are 0-dim and on the first call's device.
    """
    again: list[Tensor] = []
    if extras.zero_grads and shared([g for call in calls for g in call.grads]):
        # One program may not zero what another has yet to read.
        again, extras = [g for call in calls for g in call.grads], replace(extras, zero_grads=False)
    plans = [_plan(call, block) for call in calls]
    copies = [_point(call, plan, extras) for call, plan in zip(calls, plans, strict=True)]
    partials: list[Tensor] = []
    if extras.norm is not None:
        beyond = [extras.norm.double().square()]
    elif extras.measures:
        for call, plan in zip(calls, plans, strict=True):
            with torch.cuda.device_of(call.lists.params[0]):  # type: ignore[no-untyped-call]
                partials += [_squares(group) for group in plan.groups if len(group.table.chunks)]
    partials += [torch.stack([s.double(), (~s.isfinite()).double()])[:, None] for s in beyond]
    for call, plan, pairs in zip(calls, plans, copies, strict=True):
        with torch.cuda.device_of(call.lists.params[0]):  # type: ignore[no-untyped-call]
            _run(call, plan, extras, partials)
        for original, copy in pairs:
            original.copy_(copy)
    for plan in plans:
        for group in plan.groups:
            group.roles = []  # gradients, and what a rule wrote beside them, live no longer than their step
    if again:
        torch._foreach_zero_(again)
    row = next(iter(plans[0].rows.values()))
    return (row[NORM.value].clone() if extras.measures else None), row[SKIP.value] != 0


def _plan(call: RuleCall, block: int) -> _Tables:
    key = ("tables", block)
    if key not in call.lists.kept:
        call.lists.kept[key] = _Tables(call.lists, len(call.scalars), call.rule.kernels().entries, block)
    plan: _Tables = call.lists.kept[key]
    return plan


def _point(call: RuleCall, plan: _Tables, extras: Extras) -> list[tuple[Tensor, Tensor]]:
    """Point every table at this step's tensors; pairs of a tensor without flat memory and the copy to update."""
    lists, pairs = call.lists, []
    averages = None if extras.ema_decay is None else lists.ema
    beside = [tensors for tensors in (averages, lists.low) if tensors is not None]
    roles = [lists.params, list(call.grads), *lists.slots, *(lists.scales or ()), *beside]
    if lists.slow:
        roles = [list(role) for role in roles]
        for i in lists.slow:
            for at, role in enumerate(roles):
                original = role[i].detach()  # scales are copied for nothing: a rare case kept simple
                role[i] = original.clone(memory_format=torch.contiguous_format)
                pairs += [] if at == 1 else [(original, role[i])]
    if call.rule.kernels().agrees is not None:
        roles = [*roles, plan.agreeing(lists)]
    if call.rule.kernels().ahead is not None:
        roles = [*roles, [torch.empty_like(p.detach(), dtype=WIDE[p.dtype]) for p in roles[0]]]
    for group in plan.groups:
        whole = len(group.members) == len(lists.params)
        group.roles = roles if whole else [[role[i] for i in group.members] for role in roles]
        group.table.point(group.roles)
    return pairs


def _squares(group: _Group) -> Tensor:
    table = group.table
    partials = torch.empty(2, table.programs, dtype=group.wide, device=table.chunks.device)
    squares_kernel[(table.programs,)](
        table.addresses, table.addresses.shape[1], table.chunks, len(table.chunks), partials,
        G=TYPES[group.roles[1][0].dtype], BLOCK=table.block, **OPTIONS,
    )  # fmt: skip
    return partials


def _run(call: RuleCall, plan: _Tables, extras: Extras, partials: list[Tensor]) -> None:
    lists = call.lists
    kernels = call.rule.kernels()
    upload(call, extras, plan.groups[0].table.block)
    around = {
        "CLIP": extras.max_norm is not None,
        "GUARD": extras.skip_nonfinite,
        "SCALE": extras.grad_scale is not None,
        "FOUND": extras.found_inf is not None,
    }
    for at, (wide, row) in enumerate(plan.rows.items()):
        sums = _together(partials, wide, lists.device) if partials else row
        scale, found = (
            plan.hypers if one is None else one.to(lists.device) for one in (extras.grad_scale, extras.found_inf)
        )
        row_kernel[(1,)](
            plan.hypers, call.step, sums, sums.shape[-1], scale, found, row,
            ROW=kernels.row, SWITCHES=kernels.switches, **around, ADVANCE=at == len(plan.rows) - 1, **OPTIONS,
        )  # fmt: skip
    try:
        if kernels.agrees is not None and plan.counts is not None:
            plan.counts[:, 0].zero_()
        for group in plan.groups:
            if len(group.table.chunks):
                _update(kernels, group, plan.rows[group.wide], call, extras)
    except BaseException:  # a kernel that does not compile: nothing moved, so nothing was counted
        call.step.sub_(1 - next(iter(plan.rows.values()))[SKIP.value].to(call.step.dtype))
        raise


def _update(kernels: Kernels, group: _Group, row: Tensor, call: RuleCall, extras: Extras) -> None:
    table, lists, slots = group.table, call.lists, call.lists.slots
    first = group.members[0]
    store = call.rule.store if lists.params[first].dtype == torch.bfloat16 else "nearest"
    kinds = {
        "P": tl.uint16 if lists.low is not None else TYPES[lists.params[first].dtype],
        "G": TYPES[group.roles[1][0].dtype],
        "M": TYPES[slots[0][first].dtype if slots else lists.params[first].dtype],
        "E": TYPES[lists.params[first].dtype if lists.ema is None else lists.ema[first].dtype],
    }
    scaled = extras.max_norm is not None or extras.grad_scale is not None
    if kernels.agrees is not None:
        last = len(group.roles) - 1
        agree_kernel[(table.programs,)](
            table.addresses, table.addresses.shape[1], table.chunks, len(table.chunks), row,
            COUNT=kernels.agrees, SWITCHES=kernels.switches, P=kinds["P"], G=kinds["G"], M=kinds["M"], SCALED=scaled,
            STORE=_STORES[store].value, LOW=last - 1, ROLE=last, BLOCK=table.block, **OPTIONS,
        )  # fmt: skip
    if kernels.ahead is not None and kernels.between is not None:
        last = len(group.roles) - 1
        ahead_kernel[(table.programs,)](
            table.addresses, table.addresses.shape[1], table.chunks, len(table.chunks), row,
            AHEAD=kernels.ahead, SWITCHES=kernels.switches, G=kinds["G"], M=kinds["M"], SCALED=scaled,
            ROLE=last, BLOCK=table.block, **OPTIONS,
        )  # fmt: skip
        kernels.between(group.roles[last], row[OWN.value :])
    table_kernel[(table.programs,)](
        table.addresses, table.addresses.shape[1], table.chunks, len(table.chunks), row,
        CHUNK=kernels.chunk, SWITCHES=kernels.switches, **kinds,
        SCALED=scaled,
        GUARDED=extras.skip_nonfinite or extras.found_inf is not None,
        EMA=lists.ema is not None and extras.ema_decay is not None, ZERO=extras.zero_grads,
        STORE=_STORES[store].value, BLOCK=table.block, **OPTIONS,
    )  # fmt: skip


def _together(partials: list[Tensor], wide: torch.dtype, device: torch.device) -> Tensor:
    if len(partials) == 1 and partials[0].dtype == wide and partials[0].device == device:
        return partials[0]
    return torch.cat([partial.to(device, torch.float64) for partial in partials], 1)
