"""State in codes of 8 bits: a block is a few groups of 256 neighbours, each under one scale.

The codes are those of lowmemory.py: int8 with the sign and the root of the share of the largest, uint8 with its fourth
root.
"""

import triton
import triton.language as tl

from .table_triton import fetch, put_bits

GROUP = tl.constexpr(256)
TINY = tl.constexpr(1e-37)  # below it the inverse of a scale is no float32


@triton.jit  # type: ignore[untyped-decorator]
def scales(ptr: tl.tensor, i: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    at = i // GROUP + tl.arange(0, BLOCK // GROUP)
    return tl.load(ptr + at, mask=at * GROUP < n, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def put_scales(ptr: tl.tensor, i: tl.tensor, x: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = i // GROUP + tl.arange(0, BLOCK // GROUP)
    tl.store(ptr + at, x, mask=at * GROUP < n)


@triton.jit  # type: ignore[untyped-decorator]
def each(scale: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """A group's number for each of its elements."""
    return tl.reshape(tl.broadcast_to(scale[:, None], [BLOCK // GROUP, GROUP]), [BLOCK])


@triton.jit  # type: ignore[untyped-decorator]
def largest(x: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    return tl.max(tl.reshape(x, [BLOCK // GROUP, GROUP]), 1)


@triton.jit  # type: ignore[untyped-decorator]
def share(x: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """x / scale, where one division serves a group; zeros where the scale has no inverse."""
    return x * each(tl.where(scale > TINY, 1.0 / tl.where(scale > TINY, scale, 1.0), 0.0), BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def fetch_signed(
    ptr: tl.tensor, scale_ptr: tl.tensor, i: tl.tensor, offs: tl.tensor, n: tl.tensor,
    FAST: tl.constexpr, WIDTH: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One block of int8 codes as what they stand for."""
    m = fetch(ptr, offs, n, tl.float32, FAST) * (1.0 / 127)
    return m * tl.abs(m) * each(scales(scale_ptr, i, n, WIDTH), WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def put_signed(
    ptr: tl.tensor, scale_ptr: tl.tensor, i: tl.tensor, offs: tl.tensor, m: tl.tensor, n: tl.tensor,
    FAST: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Store one block as int8 codes under new scales."""
    if not FAST:  # what lies beyond the tensor must not set a scale
        m = tl.where(offs < n, m, 0.0)
    scale = largest(tl.abs(m), WIDTH)
    code = tl.floor(tl.sqrt(share(tl.abs(m), scale, WIDTH)) * 127 + 0.5)
    put_bits(ptr, offs, tl.where(m < 0.0, -code, code).to(tl.int8), n, FAST)
    put_scales(scale_ptr, i, scale, n, WIDTH)
