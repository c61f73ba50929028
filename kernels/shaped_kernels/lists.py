"""Parallel tensor lists: the contract of every update rule, checked in one place.

A `TensorLists` holds parameters and their state (momentum, moments). Construction checks

    one device; every tensor float64, float32, bfloat16 or float16;
    state[i] shaped as params[i], in its dtype or in the dtype the update is computed in;
    no element that is updated lies in memory where another one lies,

and from then on these are facts. Only gradients change from step to step: `admit` compares them
with the facts in a few C loops, so six tensors cost about two microseconds.

Tensors whose memory is one dense block, laid out alike in parameter and state, are `fast`: a
kernel may walk them as flat memory. (torch's fused CPU operators do so without checking, and
update the wrong elements otherwise.) The rest is `slow`: the plain reference updates it, or a
kernel does on a dense copy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter, eq
from typing import Any

import torch
from torch import Tensor

from .dispatch import choose_path
from .scalars import refuse_kinds

# Neighbours under one scale of 8-bit state: 1.6 % of the bytes of a code, and one row of a kernel's block.
GROUP = 256

# The dtype an update is computed in, for each dtype that a parameter may have.
WIDE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}

_facts: Callable[[Tensor], tuple[Any, ...]] = attrgetter("shape", "dtype", "device", "layout")
# The state of a rule without state still has this type: () is a tuple of no lists.
Slots = tuple[list[Tensor], ...]


class TensorLists:
    """Parameters and state tensors that obey the kernels' contract.

    Attributes:
        params: The parameters, in order.
        slots: One list for each kind of state, parallel to `params`.
        ema: Averages of the parameters, or None.
        low: The low halves of split parameters (see lowmemory.py), or None.
        scales: The scales of 8-bit state, one list for each slot, or None.
        kept: What those who walk these lists keep with them: tables in device memory, flat views.
        path: "triton" or "torch", as `dispatch` decided for their device.
        fast, slow: Indices of tensors a flat kernel may walk, and of the others.

    Args:
        params: Tensors to be updated in place, all on one device.
        slots: State lists by name; each is parallel to `params`.
        ema: Averages, shaped as the parameters, of any of the four dtypes.
        low: int16, shaped as the parameters, which are then bfloat16.
        scales: float32 of one axis for each slot; the slots are then int8 or uint8.
        kernels: Whether the rule that moves them is written in Triton; without, the path is "torch".

    Raises:
        ValueError: The lists break the contract; the message names every index and what is wrong.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        slots: Mapping[str, Sequence[Tensor]],
        ema: Sequence[Tensor] | None = None,
        low: Sequence[Tensor] | None = None,
        scales: Mapping[str, Sequence[Tensor]] | None = None,
        kernels: bool = True,
    ) -> None:
        refuse_kinds({"params": params, **slots})
        self.params = list(params)
        self.slots: Slots = tuple(list(slot) for slot in slots.values())
        self.ema = None if ema is None else list(ema)
        self.low = None if low is None else list(low)
        self.scales: Slots | None = None if scales is None else tuple(list(scale) for scale in scales.values())
        self.kept: dict[Any, Any] = {}
        beside = {name: tensors for name, tensors in (("ema", self.ema), ("low", self.low)) if tensors is not None}
        _refuse([*_length_faults(self.params, {**slots, **beside})])
        faults = [*_param_faults(self.params), *_slot_faults(self.params, slots, scales)]
        _refuse([*faults, *_beside_faults(self.params, beside)])
        _refuse([*_sharing_faults({"params": self.params, **slots, **beside, **(scales or {})})])
        self.path = choose_path(self.params[0].device) if self.params and kernels else "torch"
        walkable = [self._walkable(i) for i in range(len(self.params))]
        self.fast = [i for i, good in enumerate(walkable) if good]
        self.slow = [i for i, good in enumerate(walkable) if not good]
        self.fast_params = [self.params[i] for i in self.fast]
        self.fast_slots: Slots = tuple([slot[i] for i in self.fast] for slot in self.slots)
        self._facts = list(map(_facts, self.params))
        self._strides = list(map(Tensor.stride, self.params))
        self._contiguous = all(map(Tensor.is_contiguous, self.params))

    def __len__(self) -> int:
        return len(self.params)

    @property
    def device(self) -> torch.device:
        """The device of every tensor; the CPU's if there is none."""
        return self.params[0].device if self.params else torch.device("cpu")

    def _walkable(self, i: int) -> bool:
        p, state = self.params[i], [slot[i] for slot in self.slots]
        beside = [tensors[i] for tensors in (self.ema, self.low) if tensors is not None]
        if not is_dense(p) or any(s.stride() != p.stride() for s in [*state, *beside]):
            return False
        if self.path == "triton":
            return True
        # torch's fused operators exist on these devices and want one dtype throughout.
        if p.device.type not in ("cpu", "cuda") or self.low is not None or any(s.dtype != p.dtype for s in state):
            return False
        # SGD's operator leaves whole vectors of bfloat16 and float16 unchanged on the CPU, up to torch 2.13. Adam has
        # two kinds of state or more.
        return len(state) >= 2 or p.device.type != "cpu" or WIDE[p.dtype] == p.dtype

    def admit(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Check gradients against the parameters, and lay them out alike.

        Args:
            grads: One dense gradient for each parameter, of its shape, dtype and device.

        Returns:
            `grads`, where each gradient with other strides than its parameter is replaced by a copy.

        Raises:
            ValueError: Some gradients do not fit; the message names every index and what is wrong.
        """
        if type(grads) is not list:
            refuse_kinds({"grads": grads})
            grads = list(grads)
        try:
            # Compared one by one: a list of 1000 tuples would wake the garbage collector at every step.
            fit = len(grads) == len(self.params) and all(map(eq, map(_facts, grads), self._facts))
            alike = fit and all(map(eq, map(Tensor.stride, grads), self._strides))
        except (AttributeError, TypeError, RuntimeError):  # not a tensor, or one without strides
            fit = alike = False
        if not fit:
            _refuse([*_length_faults(self.params, {"grads": grads}), *_grad_faults(self.params, grads)])
            _refuse(["params: have changed shape, dtype or device since these lists were checked; make them anew"])
        if alike:
            return grads
        return [g if g.stride() == p.stride() else _laid_out_as(p, g) for p, g in zip(self.params, grads, strict=True)]

    def laid_out_as_checked(self) -> bool:
        """Say whether the parameters still have the strides they were checked with; `p.data = ...` may change them."""
        if self._contiguous:
            return all(map(Tensor.is_contiguous, self.params))
        return all(map(eq, map(Tensor.stride, self.params), self._strides))

    def as_checked(self) -> bool:
        """Say whether the parameters still have the shapes, dtypes, devices and strides they were checked with."""
        return self.laid_out_as_checked() and all(map(eq, map(_facts, self.params), self._facts))

    def fast_of(self, grads: list[Tensor]) -> list[Tensor]:
        """Pick the entries of `grads` that belong to `fast_params`."""
        return [grads[i] for i in self.fast] if self.slow else grads

    def slow_of(self, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Slots]:
        """The parameters, gradients and state that no flat kernel may walk."""
        params, slopes = [self.params[i] for i in self.slow], [grads[i] for i in self.slow]
        return params, slopes, tuple([slot[i] for i in self.slow] for slot in self.slots)


def scale_count(count: int) -> int:
    """How many scales the 8-bit state of so many elements has."""
    return -(-count // GROUP)


def is_dense(t: Tensor) -> bool:
    """Say whether a tensor's elements fill one block of memory, in any order of its dimensions.

    Args:
        t: A strided tensor.

    Returns:
        True if walking numel() addresses from the first visits every element once.
    """
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _laid_out_as(p: Tensor, g: Tensor) -> Tensor:
    return torch.empty_strided(p.shape, p.stride(), dtype=g.dtype, device=g.device).copy_(g.detach())


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ValueError("the tensor lists do not fit together; nothing was changed.\n  " + "\n  ".join(faults))


def _length_faults(params: list[Tensor], lists: Mapping[str, Sequence[Tensor]]) -> list[str]:
    return [
        f"{name}: expected {len(params)} tensors, one for each of params, got {len(tensors)}"
        for name, tensors in lists.items()
        if len(tensors) != len(params)
    ]


def _param_faults(params: Sequence[Any]) -> list[str]:
    faults = []
    for i, p in enumerate(params):
        if not isinstance(p, Tensor):
            faults.append(f"params[{i}]: expected a tensor, got {type(p).__name__}")
        elif p.layout is not torch.strided:
            faults.append(f"params[{i}]: sparse parameters are not supported, got {p.layout}")
        elif p.dtype not in WIDE:
            faults.append(f"params[{i}]: expected float64, float32, bfloat16 or float16, got {dtype_name(p.dtype)}")
        elif p.device != params[0].device:
            faults.append(f"params[{i}]: is on {p.device}, but params[0] on {params[0].device}: call once per device")
        elif p.device.type == "meta":
            faults.append(f"params[{i}]: is on meta, where there is nothing to update")
        elif any(s == 0 and n > 1 for s, n in zip(p.stride(), p.shape, strict=True)):
            faults.append(f"params[{i}]: is expanded (stride 0), so one update would reach several elements")
    return faults


def _slot_faults(
    params: Sequence[Any], slots: Mapping[str, Sequence[Any]], scales: Mapping[str, Sequence[Any]] | None
) -> list[str]:
    faults = []
    for name, scale in (scales or {}).items():
        for i, (p, s) in enumerate(zip(params, scale, strict=True)):
            exact = (torch.float32, (scale_count(p.numel()),), p.device)
            if not isinstance(s, Tensor) or (s.dtype, tuple(s.shape), s.device) != exact or not s.is_contiguous():
                faults.append(f"{name}[{i}]: expected float32 {exact[1]} on {p.device}, got {describe(s)}")
    for name, slot in slots.items():
        for i, (p, s) in enumerate(zip(params, slot, strict=True)):
            if not isinstance(p, Tensor):
                continue
            allowed = {p.dtype, WIDE.get(p.dtype, p.dtype)} if scales is None else {torch.int8, torch.uint8}
            if not isinstance(s, Tensor):
                faults.append(f"{name}[{i}]: expected a tensor, got {type(s).__name__}")
            elif s.layout is not torch.strided or s.dtype not in allowed or (s.shape, s.device) != (p.shape, p.device):
                wanted = " or ".join(sorted(map(dtype_name, allowed)))
                faults.append(f"{name}[{i}]: expected {wanted} {tuple(p.shape)} on {p.device}, got {describe(s)}")
            elif any(stride == 0 and n > 1 for stride, n in zip(s.stride(), s.shape, strict=True)):
                faults.append(f"{name}[{i}]: is expanded (stride 0), so one update would reach several elements")
    return faults


def _beside_faults(params: Sequence[Any], beside: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for name, tensors in beside.items():
        allowed = (torch.int16,) if name == "low" else tuple(WIDE)
        for i, (p, t) in enumerate(zip(params, tensors, strict=True)):
            if not isinstance(t, Tensor) or not isinstance(p, Tensor):
                yield f"{name}[{i}]: expected a tensor, got {type(t).__name__}"
            elif t.layout is not torch.strided or t.dtype not in allowed or (t.shape, t.device) != (p.shape, p.device):
                wanted = " or ".join(map(dtype_name, allowed))
                yield f"{name}[{i}]: expected {wanted} {tuple(p.shape)} on {p.device}, got {describe(t)}"
            elif name == "low" and p.dtype != torch.bfloat16:
                yield f"params[{i}]: a split parameter is bfloat16, got {describe(p)}"


def _sharing_faults(lists: Mapping[str, Sequence[Tensor]]) -> Iterator[str]:
    """Name the tensors that lie in another one's memory, or in their own.

    Sorted by address, tensors that are dense must not reach into the next one. Where a tensor has
    holes, others may lie in them: there the elements are counted, address by address.
    """
    every = [t for members in lists.values() for t in members if t.numel() and t.device.type != "meta"]
    extents = sorted((t.data_ptr(), t.data_ptr() + _extent(t)) for t in every)
    apart = all(one[1] <= other[0] for one, other in pairwise(extents))
    if apart and all(map(is_dense, every)):
        return
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + _extent(t), at, f"{name}[{i}]")
        for at, (name, members) in enumerate(lists.items())
        for i, t in enumerate(members)
        if t.numel() and t.device.type != "meta"
    )
    tensors = {f"{name}[{i}]": t for name, members in lists.items() for i, t in enumerate(members)}
    cluster: list[tuple[int, int, int, str]] = []
    reach = 0
    for span in [*spans, (2**63, 2**63, 0, "")]:
        if cluster and span[0] >= reach:
            yield from _cluster_faults(cluster, tensors)
            cluster = []
        cluster.append(span)
        reach = max(reach, span[1]) if len(cluster) > 1 else span[1]


def _cluster_faults(cluster: list[tuple[int, int, int, str]], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Faults among tensors whose extents overlap one another; most clusters are one dense tensor."""
    if len(cluster) == 1 and is_dense(tensors[cluster[0][3]]):
        return
    begin, end = cluster[0][0], max(span[1] for span in cluster)
    owner = torch.full((end - begin,), -1, dtype=torch.int32)  # by byte
    ordered = sorted(cluster, key=lambda span: (span[2], span[3]))
    for number, (start, _, _, name) in enumerate(ordered):
        t = tensors[name]
        size = t.element_size()
        index = start - begin + torch.zeros(t.shape, dtype=torch.int64)
        for axis, (n, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
            index += (torch.arange(n) * (stride * size)).view(-1, *[1] * (t.dim() - axis - 1))
        bytes_of = (index.flatten()[:, None] + torch.arange(size)).flatten()
        if len(bytes_of.unique()) != len(bytes_of):
            yield f"{name}: overlaps itself, so one update would reach several elements"
        elif (other := int(owner[bytes_of].max())) >= 0:
            yield f"{name}: shares its memory with {ordered[other][3]}, so it would be updated twice"
        owner[bytes_of] = number


def _extent(t: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if t.is_contiguous():
        return t.numel() * t.element_size()
    return (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * t.element_size()


def _grad_faults(params: list[Tensor], grads: Sequence[Any]) -> list[str]:
    faults = []
    for i, (p, g) in enumerate(zip(params, grads, strict=False)):
        if not isinstance(g, Tensor):
            faults.append(f"grads[{i}]: expected a tensor, got {type(g).__name__}")
        elif g.layout is not torch.strided:
            faults.append(f"grads[{i}]: sparse gradients are not supported, got {g.layout}: pass grad.to_dense()")
        elif _facts(g) != _facts(p):
            faults.append(f"grads[{i}]: expected {describe(p)} as params[{i}], got {describe(g)}")
    return faults


def describe(t: Tensor) -> str:
    """Write a tensor's dtype, shape and device as error messages do: `float32 (10, 64) on cpu`."""
    layout = "" if t.layout is torch.strided else f" {t.layout}".replace("torch.", "")
    return f"{dtype_name(t.dtype)}{layout} {tuple(t.shape)} on {t.device}"


def dtype_name(dtype: torch.dtype) -> str:
    """Write a dtype without its package: `float32`."""
    return str(dtype).removeprefix("torch.")
