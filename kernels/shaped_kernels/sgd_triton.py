"""SGD in Triton: one launch over a `Table` of any number of tensors; the maths is at the top of sgd.py.

The same things may be fused around it as around Adam (see adam_triton.py). fp32 traffic: 12 bytes
an element, 20 with momentum.
"""

import triton
import triton.language as tl

from .rounding_triton import noise, stochastic
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
def sgd_rule(
    p: tl.tensor, g: tl.tensor, b: tl.tensor,
    row: tl.tensor,  # lr, momentum, damp, weight decay
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, DECOUPLED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values; knows nothing of addresses."""
    if MAXIMIZE:
        g = -g
    if DECOUPLED:
        p = p * tl.load(row + 3)  # 1 - lr*wd
    else:
        g = g + tl.load(row + 3) * p
    d = g
    if MOMENTUM:
        mu = tl.load(row + 1)
        b = mu * b + tl.load(row + 2) * g
        d = b
        if NESTEROV:
            d = g + mu * b
    return p - tl.load(row) * d, b


@triton.jit  # type: ignore[untyped-decorator]
def _sgd_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, DECOUPLED: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    W: tl.constexpr = row.dtype.element_ty
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    b_ptr = p_ptr
    if MOMENTUM:
        b_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    e_ptr = p_ptr
    if EMA:
        e_ptr = place(addresses, n_tensors, t, start, 2 + MOMENTUM, E, FAST)
    low_ptr = p_ptr
    if STORE == SPLIT:
        low_ptr = place(addresses, n_tensors, t, start, 2 + MOMENTUM + EMA, tl.int16, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        g = fetch(g_ptr, offs, n, W, FAST)
        b = p
        if MOMENTUM:
            b = fetch(b_ptr, offs, n, W, FAST)
        if SCALED:
            g = g * tl.load(row + FACTOR)
        p, b = sgd_rule(p, g, b, row + OWN, MOMENTUM, NESTEROV, MAXIMIZE, DECOUPLED)
        bits = tl.zeros([BLOCK], tl.uint32)
        if STORE == STOCHASTIC:
            bits = noise(start, offs, t, tl.load(row + COUNT).to(tl.int32))
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        if MOMENTUM:
            if STORE == STOCHASTIC and tl.bfloat16 == M:
                put_bits(b_ptr, offs, stochastic(b, bits >> 16), n, FAST)
            else:
                put(b_ptr, offs, b, n, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def sgd_kernel(
    addresses: tl.tensor,  # [roles, n_tensors]: p, g, then those asked for of momentum, EMA, low half
    n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor,
    row: tl.tensor,  # see rows_triton.py; its dtype is the one to compute in
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, DECOUPLED: tl.constexpr,
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
            _sgd_chunk(addresses, n_tensors, t, start, n, row, P, G, M, E, MOMENTUM, NESTEROV, MAXIMIZE, DECOUPLED,
                       SCALED, EMA, ZERO, STORE, True, BLOCK)  # fmt: skip
        else:
            _sgd_chunk(addresses, n_tensors, t, start, n, row, P, G, M, E, MOMENTUM, NESTEROV, MAXIMIZE, DECOUPLED,
                       SCALED, EMA, ZERO, STORE, False, BLOCK // 8)  # fmt: skip
        c += tl.num_programs(0)
