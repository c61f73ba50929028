"""Sequences that are packed by their lengths: to pack them, and to pad them again, are one operation of the graph each.

    shaped::pack      [batch, time, ...] and its lengths -> the rows below each length, how many there are at each time
    shaped::unpack    and back: [batch, time, ...], padded
    shaped::repack    the gradient of that

How many rows there are, and for how many times, data tell; of how many sequences they are, the batch does. The layers
over them are in recurrent.py.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from shaped.proof import indexing
from shaped.proof.reads import is_traced

_BATCH = "_shaped_batch"  # where the sizes of the batches carry the first of them


def batch_of(sizes: Any) -> Any:
    """How many sequences are packed; None of what was not packed within the trace."""
    return getattr(sizes, _BATCH, None) if isinstance(sizes, Tensor) else None


def pack(x: Tensor, lengths: Tensor, batch_first: bool = False) -> tuple[Tensor, Tensor]:
    """`torch._pack_padded_sequence`, which `nn.utils.rnn.pack_padded_sequence` calls."""
    if not is_traced(x) or not isinstance(lengths, Tensor) or x.dim() < 2:
        return torch._pack_padded_sequence(x, lengths, batch_first)
    batch = x.shape[0 if batch_first else 1]
    if lengths.dim() != 1 or lengths.dtype is not torch.int64 or lengths.device.type != "cpu":
        raise RuntimeError("'lengths' argument should be a 1D CPU int64 tensor")
    if not lengths.shape[0] == batch:
        raise RuntimeError("there are to be as many lengths as sequences")
    data, sizes = _Pack.apply(x, lengths, batch_first)  # type: ignore[no-untyped-call]
    setattr(sizes, _BATCH, batch)
    return data, sizes


def unpack(
    data: Tensor, sizes: Tensor, batch_first: bool, padding_value: float, total_length: Any
) -> tuple[Tensor, Tensor]:
    """`torch._pad_packed_sequence`, which `nn.utils.rnn.pad_packed_sequence` calls."""
    batch = batch_of(sizes)
    if batch is None:
        return torch._pad_packed_sequence(data, sizes, batch_first, padding_value, total_length)
    padded: Tensor = _Unpack.apply(data, sizes, batch_first, padding_value, total_length, batch)  # type: ignore[no-untyped-call]
    counted: Tensor = torch.arange(batch)
    return padded, (sizes.unsqueeze(0) > counted.unsqueeze(1)).sum(1)


def getitem(x: Any, index: Any) -> Any:
    """Indexing, as indexing.py has it; the first of the sizes is that of the batch."""
    if type(index) is int and index == 0 and (batch := batch_of(x)) is not None:
        return batch
    return indexing.getitem(x, index)


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Tensor, batch_first: bool) -> Any:
        data, sizes = operations()[0](x, lengths, batch_first)
        ctx.save_for_backward(sizes)
        ctx.given = batch_first, x.shape[:2]
        ctx.mark_non_differentiable(sizes)
        return data, sizes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        batch_first, shape = ctx.given
        batch, time = shape if batch_first else shape[::-1]
        return operations()[1](gradient, *ctx.saved_tensors, batch_first, 0.0, time, batch), None, None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, data: Tensor, sizes: Tensor, batch_first: bool, value: float, time: Any, batch: Any
    ) -> Tensor:
        ctx.save_for_backward(data, sizes)
        ctx.batch_first = batch_first
        padded: Tensor = operations()[1](data, sizes, batch_first, value, time, batch)
        return padded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return operations()[2](gradient, *ctx.saved_tensors, ctx.batch_first), None, None, None, None, None


@cache
def operations() -> tuple[Any, Any, Any]:
    tags = (torch.Tag.pt2_compliant_tag,)
    given = "Tensor data, Tensor sizes, bool batch_first"
    for name, schema, run, like, more in (
        ("pack", "(Tensor x, Tensor lengths, bool batch_first) -> (Tensor, Tensor)", _packed, _packed_like,
         (torch.Tag.dynamic_output_shape,)),
        ("unpack", f"({given}, float value, SymInt time, SymInt batch) -> Tensor", _unpacked, _unpacked_like, ()),
        ("repack", f"(Tensor gradient, {given}) -> Tensor", _repacked, _repacked_like, ()),
    ):  # fmt: skip
        torch.library.define(f"shaped::{name}", schema, tags=(*tags, *more))
        torch.library.impl(f"shaped::{name}", "default", run)
        torch.library.register_fake(f"shaped::{name}", like)
    return torch.ops.shaped.pack.default, torch.ops.shaped.unpack.default, torch.ops.shaped.repack.default


def _packed(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    time = x.shape[1 if batch_first else 0]
    if lengths.numel() and int(lengths.max()) > time:
        raise RuntimeError(f"pack_padded_sequence: a length is {int(lengths.max())}, and the sequences are {time} long")
    data, sizes = torch._pack_padded_sequence(x, lengths, batch_first)
    return data.contiguous(), sizes.contiguous()


def _packed_like(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    context = torch.library.get_ctx()
    rows, times = context.new_dynamic_size(), context.new_dynamic_size()
    torch._check(times <= x.shape[1 if batch_first else 0])
    return x.new_empty(rows, *x.shape[2:]), lengths.new_empty(times)


def _unpacked(data: Tensor, sizes: Tensor, batch_first: bool, value: float, time: int, batch: int) -> Tensor:
    return torch._pad_packed_sequence(data, sizes, batch_first, value, time)[0].contiguous()


def _unpacked_like(data: Tensor, sizes: Tensor, batch_first: bool, value: float, time: Any, batch: Any) -> Tensor:
    first = (batch, time) if batch_first else (time, batch)
    return data.new_empty(*first, *data.shape[1:])


def _repacked(gradient: Tensor, data: Tensor, sizes: Tensor, batch_first: bool) -> Tensor:
    batch = int(sizes[0])
    lengths = (sizes.unsqueeze(0) > torch.arange(batch).unsqueeze(1)).sum(1)
    return torch._pack_padded_sequence(gradient, lengths, batch_first)[0].contiguous()


def _repacked_like(gradient: Tensor, data: Tensor, sizes: Tensor, batch_first: bool) -> Tensor:
    return gradient.new_empty(data.shape)


REWRITES: dict[Any, Callable[..., Any]] = {
    torch._pack_padded_sequence: pack,
    torch._pad_packed_sequence: unpack,
    Tensor.__getitem__: getitem,
}
