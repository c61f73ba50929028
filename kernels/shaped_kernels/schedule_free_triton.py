"""Schedule-free AdamW in Triton: one launch over a `Table` of any number of tensors; the maths is in schedule_free.py.

The same things may be fused around it as around Adam (see adam_triton.py). fp32 traffic: 28 bytes an element.
"""

import triton
import triton.language as tl

from .rounding_triton import divide, noise, root, stochastic
from .rows_triton import COUNT, FACTOR, OWN, SKIP
from .table_triton import (
    SPLIT,
    STOCHASTIC,
    fetch,
    fetch_parameter,
    place,
    put,
    put_beside,
    put_bits,
    put_parameter,
    zero_chunk,
)


@triton.jit  # type: ignore[untyped-decorator]
def schedule_free_squares(
    g: tl.tensor, v: tl.tensor,
    row: tl.tensor,  # 1 - s*wd*(1-b1), s*wd, b2, 1-b2, sqrt(c2), eps, s, c
) -> tl.tensor:  # fmt: skip
    """The new squares."""
    return tl.load(row + 2) * v + tl.load(row + 3) * (g * g)


@triton.jit  # type: ignore[untyped-decorator]
def schedule_free_direction(g: tl.tensor, v: tl.tensor, row: tl.tensor, EXACT: tl.constexpr) -> tl.tensor:
    """The gradient over the root of the squares."""
    return divide(g, divide(root(v, EXACT), tl.load(row + 4), EXACT) + tl.load(row + 5), EXACT)


@triton.jit  # type: ignore[untyped-decorator]
def schedule_free_rule(
    p: tl.tensor, d: tl.tensor, e: tl.tensor, row: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values along `d`; knows nothing of addresses."""
    e = tl.load(row) * e - tl.load(row + 1) * p - tl.load(row + 6) * d
    step = tl.load(row + 7) * e
    return p + step, e - step


@triton.jit  # type: ignore[untyped-decorator]
def _schedule_free_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    W: tl.constexpr = row.dtype.element_ty
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    v_ptr = place(addresses, n_tensors, t, start, 3, M, FAST)
    e_ptr = p_ptr
    if EMA:
        e_ptr = place(addresses, n_tensors, t, start, 4, E, FAST)
    low_ptr = p_ptr
    if STORE == SPLIT:
        low_ptr = place(addresses, n_tensors, t, start, 4 + EMA, tl.int16, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        # The squares are stored before the rest is loaded: with all at once, two variants take 70 registers.
        g = fetch(g_ptr, offs, n, W, FAST)
        if MAXIMIZE:
            g = -g
        if SCALED:
            g = g * tl.load(row + FACTOR)
        v = schedule_free_squares(g, fetch(v_ptr, offs, n, W, FAST), row + OWN)
        bits = tl.zeros([BLOCK], tl.uint32)
        if STORE == STOCHASTIC:
            bits = noise(start, offs, t, tl.load(row + COUNT).to(tl.int32))
        if STORE == STOCHASTIC and tl.bfloat16 == M:
            put_bits(v_ptr, offs, stochastic(v, bits >> 16), n, FAST)
        else:
            put(v_ptr, offs, v, n, FAST)
        # A store that drops 16 random bits has no use for the last bit of a quotient, and registers are short.
        d = schedule_free_direction(g, v, row + OWN, STORE != STOCHASTIC)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        p, m = schedule_free_rule(p, d, fetch(m_ptr, offs, n, W, FAST), row + OWN)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        if STORE == STOCHASTIC and tl.bfloat16 == M:
            put_bits(m_ptr, offs, stochastic(m, (bits * 0x9E3779B1) >> 16), n, FAST)
        else:
            put(m_ptr, offs, m, n, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def schedule_free_kernel(
    addresses: tl.tensor,  # [roles, n_tensors]: p, g, e, v, then those asked for of EMA, low half
    n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor,
    row: tl.tensor,  # see rows_triton.py; its dtype is the one to compute in
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    SCALED: tl.constexpr, GUARDED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
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
            _schedule_free_chunk(addresses, n_tensors, t, start, n, row, P, G, M, E, MAXIMIZE,
                        SCALED, EMA, ZERO, STORE, True, BLOCK)  # fmt: skip
        else:
            _schedule_free_chunk(addresses, n_tensors, t, start, n, row, P, G, M, E, MAXIMIZE,
                        SCALED, EMA, ZERO, STORE, False, BLOCK // 8)  # fmt: skip
        c += tl.num_programs(0)
