"""Small CPU tensors as one: an operator over four flat tensors costs the same for 1 and for 1000 parameters.

torch's fused CPU operators spend 0.5 to 2 us on every tensor of a list, and a norm over a list 1 us
more: for 1000 tensors of 1024 elements that is ten times the arithmetic. So

    the state that we own lies in one block (`arena`);
    gradients are copied into one block, unless they lie in one already;
    parameters too, and back, unless they lie in one (`flatten_parameters` in shaped.optim).

Tensors lie without gaps, in order: so an update of the block touches their elements and nobody else's memory, whoever
made the block.
"""

from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import attrgetter, eq, is_

import torch
from torch import Tensor

from .lists import TensorLists, is_dense

# Beyond this mean size copying parameters to and fro costs more than calls over lists do: on 2 cores, torch 2.13,
# 1000 tensors, lists / flat: 3.2 / 1.6 ms at 1024 elements; docs/benchmarks/updates.py measures it.
SMALL = 4096
# Fewer tensors than this gain nothing.
_FEW = 4
_is_cpu, _dtype, _shape = attrgetter("is_cpu"), attrgetter("dtype"), attrgetter("shape")


def offsets_of(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where tensors would begin in an arena, in elements, and how long it would be."""
    ends = list(accumulate(map(Tensor.numel, tensors), initial=0))
    return ends[:-1], ends[-1]


def views(flat: Tensor, like: Sequence[Tensor], offsets: Sequence[int]) -> list[Tensor]:
    """Views into a flat tensor, laid out as dense tensors are."""
    return [flat.as_strided(t.shape, t.stride(), offset) for t, offset in zip(like, offsets, strict=True)]


def arena(like: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Make zeros shaped and laid out as dense tensors of one device, in one block of memory.

    Args:
        like: Dense tensors; their dtype must agree if none is given.
        dtype: That of the zeros.

    Returns:
        One view for each of `like`.
    """
    if not like:
        return []
    offsets, total = offsets_of(like)
    return views(torch.zeros(total, dtype=dtype or like[0].dtype, device=like[0].device), like, offsets)


def flat_of(tensors: Sequence[Tensor], offsets: Sequence[int], total: int, pointers: list[int]) -> Tensor | None:
    """The flat tensor behind views as `arena` makes them, or None if they do not lie so.

    Args:
        tensors: Of one dtype and device.
        offsets, total: What `offsets_of` returned for tensors of these sizes.
        pointers: Their data pointers.
    """
    base = next((t for t in tensors if t.numel()), None)
    if base is None:
        return None
    size = base.element_size()
    origin = base.data_ptr() - size * next(o for t, o in zip(tensors, offsets, strict=True) if t.numel())
    wanted = [origin + size * o if t.numel() else 0 for t, o in zip(tensors, offsets, strict=True)]
    storage = base.untyped_storage()
    start = origin - storage.data_ptr()
    if wanted != [p if t.numel() else 0 for t, p in zip(tensors, pointers, strict=True)]:
        return None
    if start < 0 or start + size * total > storage.nbytes():
        return None
    if any(t.untyped_storage().data_ptr() != storage.data_ptr() for t in tensors if t.numel()):
        return None
    return torch.empty(0, dtype=base.dtype, device=base.device).set_(storage, start // size, (total,), (1,))


class Flat:
    """Lists of CPU tensors as flat tensors.

    Attributes:
        params: One flat tensor that holds the parameters after `enter`.
        slots, ema: The state, one flat tensor for each kind.
        small: Whether copying gradients costs less than walking them as a list.
        owned: Whether `params` is the parameters' own memory, and not a copy.
        copies: Whether the last gradients had to be copied.
    """

    def __init__(self, lists: TensorLists, slots: list[Tensor], offsets: list[int], total: int) -> None:
        self._lists = lists
        self._offsets, self._total = offsets, total
        self.slots = slots
        self.small = total <= SMALL * len(lists.params)
        self._pointers = list(map(Tensor.data_ptr, lists.params))
        owned = flat_of(lists.params, offsets, total, self._pointers)
        self.owned = owned is not None
        self.params = lists.params[0].new_zeros(total) if owned is None else owned
        self._param_views = [] if self.owned else views(self.params, lists.params, offsets)
        self._counts = list(map(Tensor.numel, lists.params))
        self.copies = True
        self._shapes = [p.shape for p in lists.params]
        self._seen: list[int] = []
        self._block: list[Tensor] = []
        self._found: Tensor | None = None
        self._grads: Tensor | None = None
        self._grad_views: list[Tensor] = []
        ema = lists.ema
        self.ema = None if ema is None else flat_of(ema, offsets, total, list(map(Tensor.data_ptr, ema)))

    def holds(self) -> bool:
        """Say whether the parameters are where they were, and as large; `p.data = ...` may change that."""
        params = self._lists.params
        return list(map(Tensor.data_ptr, params)) == self._pointers and list(map(Tensor.numel, params)) == self._counts

    def admit(self, grads: Sequence[Tensor]) -> Tensor | None:
        """The gradients as one flat tensor: their own memory if they lie so, a copy otherwise.

        The check is that of `TensorLists.admit`, less what cannot matter here: a copy takes any strides, and what
        has no memory to point to is found by asking for it. None where something does not fit, and `TensorLists.admit`
        can say what; and where a copy would cost more than it saves.
        """
        if self._block and len(grads) == len(self._block) and all(map(is_, grads, self._block)):
            again = list(map(Tensor.data_ptr, grads)) == self._seen
            if again:  # these very tensors were checked before; at the same addresses they are still the same block
                return self._found
        try:
            fit = (
                len(grads) == len(self._shapes)
                and all(map(_is_cpu, grads))
                and all(map(is_, map(_dtype, grads), repeat(self.params.dtype)))
                and all(map(eq, map(_shape, grads), self._shapes))
            )
            pointers = list(map(Tensor.data_ptr, grads)) if fit else []
        except (AttributeError, TypeError, RuntimeError):
            fit, pointers = False, []
        return self._gathered(list(grads), pointers) if fit else None

    def _gathered(self, grads: list[Tensor], pointers: list[int]) -> Tensor | None:
        if pointers != self._seen or self._found is None:
            self._seen, self._found = pointers, self._in_one_block(grads, pointers)
            self._block = [] if self._found is None else grads  # other gradients are not kept alive
        self.copies = self._found is None
        if self._found is not None or not self.small:
            return self._found
        if self._grads is None:
            self._grads = torch.zeros_like(self.params)
            self._grad_views = views(self._grads, self._lists.params, self._offsets)
        torch._foreach_copy_(self._grad_views, grads)
        return self._grads

    def _in_one_block(self, grads: list[Tensor], pointers: list[int]) -> Tensor | None:
        if pointers[-1] - pointers[0] != self._offsets[-1] * grads[0].element_size():  # most gradients fail here
            return None
        if list(map(Tensor.stride, grads)) != list(map(Tensor.stride, self._lists.params)):
            return None
        return flat_of(grads, self._offsets, self._total, pointers)

    def enter(self) -> None:
        """Bring the parameters into `params`."""
        if not self.owned:
            torch._foreach_copy_(self._param_views, self._lists.params)

    def leave(self) -> None:
        """Bring `params` back into the parameters."""
        if not self.owned:
            torch._foreach_copy_(self._lists.params, self._param_views)


def flat_view(lists: TensorLists, gather: bool) -> Flat | None:
    """The flat form of lists for which it pays, kept with them; None for the others. `gather` is that of a `Call`."""
    key = ("flat", gather)
    flat: Flat | None = lists.kept.get(key, None)
    if key not in lists.kept:
        flat = lists.kept[key] = _made(lists, gather)
    elif flat is not None and not flat.holds():
        if not lists.as_checked():
            raise ValueError(
                "params: have changed shape, dtype or device since these lists were checked; make them anew"
            )
        flat = lists.kept[key] = _made(lists, gather)
    return flat


def _made(lists: TensorLists, gather: bool) -> Flat | None:
    params = lists.params
    if len(params) < _FEW or lists.slow or lists.path != "torch" or params[0].device.type != "cpu":
        return None
    if any(p.dtype != params[0].dtype for p in params):
        return None
    offsets, total = offsets_of(params)
    slots = [flat_of(slot, offsets, total, list(map(Tensor.data_ptr, slot))) for slot in lists.slots]
    found = [slot for slot in slots if slot is not None]
    if len(found) < len(slots):
        return None
    flat = Flat(lists, found, offsets, total)
    return flat if flat.owned or (gather and flat.small) else None


def worth_an_arena(params: Sequence[Tensor]) -> bool:
    """Say whether state for these parameters should be made by `arena`: CPU tensors of one dtype, dense, and many."""
    if len(params) < _FEW or any(type(p) not in (Tensor, torch.nn.Parameter) for p in params):
        return False
    alike = params[0].device.type == "cpu" and all(p.dtype == params[0].dtype for p in params)
    return alike and all(map(is_dense, params))


def block_of(tensors: Sequence[Tensor]) -> Tensor | None:
    """The flat tensor behind tensors that `arena` made, or None."""
    if not tensors or any(t.layout is not torch.strided for t in tensors):
        return None
    first, last = tensors[0], tensors[-1]
    offsets, total = offsets_of(tensors)
    if last.data_ptr() - first.data_ptr() != offsets[-1] * first.element_size():
        return None
    return flat_of(tensors, offsets, total, list(map(Tensor.data_ptr, tensors)))
