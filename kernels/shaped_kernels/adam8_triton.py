"""Adam and AdamW with 8-bit moments in Triton: a block is a few groups of 256 neighbours, each under one scale.

The codes are those of lowmemory.py, the rule and all that is fused around it that of adam_triton.py.
Traffic with a bfloat16 parameter: 10.06 bytes an element.
"""

import triton
import triton.language as tl

from .adam_triton import adam_rule
from .rounding_triton import noise
from .rows_triton import COUNT, FACTOR, OWN, SKIP
from .table_triton import (
    SPLIT,
    STOCHASTIC,
    fetch,
    fetch_parameter,
    place,
    put_beside,
    put_bits,
    put_parameter,
    zero_chunk,
)

GROUP = tl.constexpr(256)
TINY = tl.constexpr(1e-37)  # below it the inverse of a scale is no float32


@triton.jit  # type: ignore[untyped-decorator]
def _scales(ptr: tl.tensor, i: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    at = i // GROUP + tl.arange(0, BLOCK // GROUP)
    return tl.load(ptr + at, mask=at * GROUP < n, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _put_scales(ptr: tl.tensor, i: tl.tensor, x: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = i // GROUP + tl.arange(0, BLOCK // GROUP)
    tl.store(ptr + at, x, mask=at * GROUP < n)


@triton.jit  # type: ignore[untyped-decorator]
def _each(scale: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """A group's number for each of its elements."""
    return tl.reshape(tl.broadcast_to(scale[:, None], [BLOCK // GROUP, GROUP]), [BLOCK])


@triton.jit  # type: ignore[untyped-decorator]
def _largest(x: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    return tl.max(tl.reshape(x, [BLOCK // GROUP, GROUP]), 1)


@triton.jit  # type: ignore[untyped-decorator]
def _share(x: tl.tensor, scale: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """x / scale, where one division serves a group; zeros where the scale has no inverse."""
    return x * _each(tl.where(scale > TINY, 1.0 / tl.where(scale > TINY, scale, 1.0), 0.0), BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _adam8_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    P: tl.constexpr, G: tl.constexpr, E: tl.constexpr,
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, MAXIMIZE: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, tl.int8, FAST)
    v_ptr = place(addresses, n_tensors, t, start, 3, tl.uint8, FAST)
    m_scale_ptr = place(addresses, n_tensors, t, start // GROUP, 4, tl.float32, False)
    v_scale_ptr = place(addresses, n_tensors, t, start // GROUP, 5, tl.float32, False)
    e_ptr = p_ptr
    if EMA:
        e_ptr = place(addresses, n_tensors, t, start, 6, E, FAST)
    low_ptr = p_ptr
    if STORE == SPLIT:
        low_ptr = place(addresses, n_tensors, t, start, 6 + EMA, tl.int16, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, tl.float32, STORE, FAST)
        g = fetch(g_ptr, offs, n, tl.float32, FAST)
        m = fetch(m_ptr, offs, n, tl.float32, FAST) * (1.0 / 127)
        m = m * tl.abs(m) * _each(_scales(m_scale_ptr, i, n, BLOCK), BLOCK)
        v = fetch(v_ptr, offs, n, tl.float32, FAST) * (1.0 / 255)
        v = v * v
        v = v * v * _each(_scales(v_scale_ptr, i, n, BLOCK), BLOCK)
        if SCALED:
            g = g * tl.load(row + FACTOR)
        p, m, v, _ = adam_rule(p, g, m, v, v, row + OWN, DECOUPLED, CAREFUL, False, MAXIMIZE, False)
        if not FAST:  # what lies beyond the tensor must not set a scale
            m = tl.where(offs < n, m, 0.0)
            v = tl.where(offs < n, v, 0.0)
        m_scale = _largest(tl.abs(m), BLOCK)
        code = tl.floor(tl.sqrt(_share(tl.abs(m), m_scale, BLOCK)) * 127 + 0.5)
        put_bits(m_ptr, offs, tl.where(m < 0.0, -code, code).to(tl.int8), n, FAST)
        _put_scales(m_scale_ptr, i, m_scale, n, BLOCK)
        v_scale = _largest(v, BLOCK)
        code = tl.floor(tl.sqrt(tl.sqrt(_share(v, v_scale, BLOCK))) * 255 + 0.5)
        code = tl.where(v > 0.0, tl.maximum(code, 1.0), 0.0)
        put_bits(v_ptr, offs, code.to(tl.uint8), n, FAST)
        _put_scales(v_scale_ptr, i, v_scale, n, BLOCK)
        bits = tl.zeros([BLOCK], tl.uint32)
        if STORE == STOCHASTIC:
            bits = noise(start, offs, t, tl.load(row + COUNT).to(tl.int32))
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def adam8_kernel(
    addresses: tl.tensor,  # [roles, n_tensors]: p, g, codes of m and v, their scales, then those asked for of EMA, low
    n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor,
    row: tl.tensor,  # see rows_triton.py; float32
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, MAXIMIZE: tl.constexpr,
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
            _adam8_chunk(addresses, n_tensors, t, start, n, row, P, G, E, DECOUPLED, CAREFUL, MAXIMIZE,
                         SCALED, EMA, ZERO, STORE, True, BLOCK)  # fmt: skip
        else:
            _adam8_chunk(addresses, n_tensors, t, start, n, row, P, G, E, DECOUPLED, CAREFUL, MAXIMIZE,
                         SCALED, EMA, ZERO, STORE, False, GROUP)  # fmt: skip
        c += tl.num_programs(0)
