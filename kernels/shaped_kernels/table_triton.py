"""The kernel over a `Table`, whatever the rule: finding chunks, loading and storing a block, the gradients' norm.

A rule gives `table_kernel` the function that moves one chunk; its switches go there as one tuple. What may be fused
around every rule is compiled in only when asked for: the factor on the gradient (unscaling and clipping), the skip of
a whole step, an average of the parameters, zeroing of the gradients.

A pointer that was loaded from a table says nothing of its alignment: `place` restates it on the fast
path, without which there would be no 128-bit access at all (see the kernel contract in the tests).
"""

import triton
import triton.language as tl

from .rounding_triton import high_half, joined, low_half, noise, rounded, stochastic
from .rows_triton import COUNT, EMA_WEIGHT, FACTOR, SKIP

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
def place_beside(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, p_ptr: tl.tensor,
    ROLE: tl.constexpr, E: tl.constexpr, EMA: tl.constexpr, STORE: tl.constexpr, FAST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The pointers to the average and to the low half, which come from ROLE on where they are asked for."""
    e_ptr = p_ptr
    if EMA:
        e_ptr = place(addresses, n_tensors, t, start, ROLE, E, FAST)
    low_ptr = p_ptr
    if STORE == SPLIT:
        low_ptr = place(addresses, n_tensors, t, start, ROLE + EMA, tl.int16, FAST)
    return e_ptr, low_ptr


@triton.jit  # type: ignore[untyped-decorator]
def fetch_gradient(
    ptr: tl.tensor, offs: tl.tensor, n: tl.tensor, row: tl.tensor,
    WIDE: tl.constexpr, SCALED: tl.constexpr, FAST: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """One block of a gradient, scaled."""
    g = fetch(ptr, offs, n, WIDE, FAST)
    if SCALED:
        g = g * tl.load(row + FACTOR)
    return g


@triton.jit  # type: ignore[untyped-decorator]
def drawn(
    start: tl.tensor, offs: tl.tensor, t: tl.tensor, row: tl.tensor, STORE: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """The random bits of one block, where its store takes some."""
    bits = tl.zeros([BLOCK], tl.uint32)
    if STORE == STOCHASTIC:
        bits = noise(start, offs, t, tl.load(row + COUNT).to(tl.int32))
    return bits


@triton.jit  # type: ignore[untyped-decorator]
def put_state(
    ptr: tl.tensor, offs: tl.tensor, x: tl.tensor, bits: tl.tensor, n: tl.tensor,
    STORE: tl.constexpr, FAST: tl.constexpr,
) -> None:  # fmt: skip
    """Store one block of state: bfloat16 by the upper 16 of the random `bits` where the parameter has some."""
    if STORE == STOCHASTIC and ptr.dtype.element_ty == tl.bfloat16:
        put_bits(ptr, offs, stochastic(x, bits >> 16), n, FAST)
    else:
        put(ptr, offs, x, n, FAST)


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


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def table_kernel(
    addresses: tl.tensor,  # [roles, n_tensors]: p, g, the state, then those asked for of EMA, low half
    n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor,
    row: tl.tensor,  # see rows_triton.py; its dtype is the one to compute in
    CHUNK: tl.constexpr, SWITCHES: tl.constexpr,  # a rule's function of one chunk, and what it switches on
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, GUARDED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Move all chunks of a table, or none where the step is skipped; their gradients are zeroed all the same."""
    skip = tl.full([], False, tl.int1)
    if GUARDED:
        skip = tl.load(row + SKIP) != 0
        if not ZERO:
            n_chunks = tl.where(skip, 0, n_chunks)
    c = tl.program_id(0)
    while c < n_chunks:
        t = tl.load(chunks + 4 * c)
        start = tl.load(chunks + 4 * c + 1)
        n = tl.load(chunks + 4 * c + 2).to(tl.int32)
        if skip:
            if ZERO:
                zero_chunk(place(addresses, n_tensors, t, start, 1, G, False), n, BLOCK)
        elif tl.load(chunks + 4 * c + 3) != 0:
            CHUNK(addresses, n_tensors, t, start, n, row, SWITCHES, P, G, M, E, SCALED, EMA, ZERO, STORE, True, BLOCK)
        else:
            CHUNK(addresses, n_tensors, t, start, n, row, SWITCHES, P, G, M, E, SCALED, EMA, ZERO, STORE, False,
                  BLOCK // 8)  # fmt: skip
        c += tl.num_programs(0)


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
