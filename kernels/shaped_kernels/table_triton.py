"""What every kernel over a `Table` shares: finding a chunk, loading and storing a block of it, the gradients' norm.

A pointer that was loaded from a table says nothing of its alignment: `place` restates it on the fast
path, without which there would be no 128-bit access at all (see the kernel contract in the tests).
"""

import triton
import triton.language as tl

from .rounding_triton import high_half, joined, low_half, rounded, stochastic
from .rows_triton import EMA_WEIGHT

NEAREST = tl.constexpr(0)  # how a parameter is stored
STOCHASTIC = tl.constexpr(1)
SPLIT = tl.constexpr(2)


@triton.jit  # type: ignore[untyped-decorator]
def place(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor,
    ROLE: tl.constexpr, TYPE: tl.constexpr, FAST: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The pointer to element `start` of tensor `t` in a role."""
    ptr = tl.load(addresses + ROLE * n_tensors + t).to(tl.pointer_type(TYPE)) + start
    if FAST:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit  # type: ignore[untyped-decorator]
def fetch(ptr: tl.tensor, offs: tl.tensor, n: tl.tensor, WIDE: tl.constexpr, FAST: tl.constexpr) -> tl.tensor:
    """One block in the dtype to compute in; zeros beyond `n`."""
    if FAST:
        x = tl.load(ptr + offs)
    else:
        x = tl.load(ptr + offs, mask=offs < n, other=0)
    return x.to(WIDE)


@triton.jit  # type: ignore[untyped-decorator]
def fetch_bits(ptr: tl.tensor, offs: tl.tensor, n: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    """One block as it lies in memory."""
    if FAST:
        x = tl.load(ptr + offs)
    else:
        x = tl.load(ptr + offs, mask=offs < n, other=0)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def put(ptr: tl.tensor, offs: tl.tensor, x: tl.tensor, n: tl.tensor, FAST: tl.constexpr) -> None:
    """Store one block, rounded to nearest even; nothing beyond `n`."""
    x = rounded(x, ptr.dtype.element_ty)
    if FAST:
        tl.store(ptr + offs, x)
    else:
        tl.store(ptr + offs, x, mask=offs < n)


@triton.jit  # type: ignore[untyped-decorator]
def put_bits(ptr: tl.tensor, offs: tl.tensor, x: tl.tensor, n: tl.tensor, FAST: tl.constexpr) -> None:
    """Store one block that already has the type of its memory."""
    if FAST:
        tl.store(ptr + offs, x)
    else:
        tl.store(ptr + offs, x, mask=offs < n)


@triton.jit  # type: ignore[untyped-decorator]
def fetch_parameter(
    ptr: tl.tensor, low: tl.tensor, offs: tl.tensor, n: tl.tensor,
    WIDE: tl.constexpr, STORE: tl.constexpr, FAST: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One block of a parameter, its halves joined where it has two."""
    if STORE == SPLIT:
        p = joined(fetch_bits(ptr, offs, n, FAST), fetch_bits(low, offs, n, FAST))
    else:
        p = fetch(ptr, offs, n, WIDE, FAST)
    return p


@triton.jit  # type: ignore[untyped-decorator]
def put_parameter(
    ptr: tl.tensor, low: tl.tensor, offs: tl.tensor, p: tl.tensor, bits: tl.tensor, n: tl.tensor,
    STORE: tl.constexpr, FAST: tl.constexpr,
) -> None:  # fmt: skip
    """Store one block of a parameter: to nearest, by the low 16 of the random `bits`, or as two exact halves."""
    if STORE == STOCHASTIC:
        put_bits(ptr, offs, stochastic(p, bits & 0xFFFF), n, FAST)
    elif STORE == SPLIT:
        put_bits(ptr, offs, high_half(p), n, FAST)
        put_bits(low, offs, low_half(p), n, FAST)
    else:
        put(ptr, offs, p, n, FAST)


@triton.jit  # type: ignore[untyped-decorator]
def put_beside(
    ema: tl.tensor, grad: tl.tensor, offs: tl.tensor, p: tl.tensor, row: tl.tensor, n: tl.tensor,
    EMA: tl.constexpr, ZERO: tl.constexpr, FAST: tl.constexpr,
) -> None:  # fmt: skip
    """What may follow the update of a block: its average, and its gradient zeroed."""
    if EMA:
        e = fetch(ema, offs, n, p.dtype, FAST)
        put(ema, offs, e + tl.load(row + EMA_WEIGHT) * (p - e), n, FAST)
    if ZERO:
        put(grad, offs, tl.zeros_like(p), n, FAST)


@triton.jit  # type: ignore[untyped-decorator]
def zero_chunk(ptr: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Store zeros into one chunk; only where a step is skipped, so width does not matter."""
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        tl.store(ptr + offs, tl.zeros([BLOCK], ptr.dtype.element_ty), mask=offs < n)
        i += BLOCK


@triton.jit  # type: ignore[untyped-decorator]
def _add_squares(
    ptr: tl.tensor, n: tl.tensor, sums: tl.tensor, bad: tl.tensor, FAST: tl.constexpr, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    i = 0
    while i < n:
        g = fetch(ptr, i + tl.arange(0, BLOCK), n, sums.dtype, FAST)
        sums += g * g
        bad = tl.maximum(bad, tl.where(tl.abs(g) < float("inf"), 0, 1))  # a NaN is not less either
        i += BLOCK
    return sums, bad


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def squares_kernel(
    addresses: tl.tensor, n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor,
    partials: tl.tensor,  # [2, programs]: each program's sum of squares, and 1 where it saw an inf or a NaN
    G: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The sum of the gradients' squares, in parts: no atomics, so the same bits on every run."""
    sums = tl.zeros([BLOCK], partials.dtype.element_ty)
    bad = tl.zeros([BLOCK], tl.int32)
    c = tl.program_id(0)
    while c < n_chunks:
        t = tl.load(chunks + 4 * c)
        start = tl.load(chunks + 4 * c + 1)
        n = tl.load(chunks + 4 * c + 2).to(tl.int32)
        if tl.load(chunks + 4 * c + 3) != 0:
            sums, bad = _add_squares(place(addresses, n_tensors, t, start, 1, G, True), n, sums, bad, True, BLOCK)
        else:
            sums, bad = _add_squares(place(addresses, n_tensors, t, start, 1, G, False), n, sums, bad, False, BLOCK)
        c += tl.num_programs(0)
    at = partials + tl.program_id(0)
    tl.store(at, tl.sum(sums, 0))
    tl.store(at + tl.num_programs(0), tl.max(bad, 0).to(partials.dtype.element_ty))
