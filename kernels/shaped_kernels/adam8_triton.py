"""Adam and AdamW with 8-bit moments in Triton: a block is a few groups of 256 neighbours, each under one scale.

The codes are those of lowmemory.py, the rule and all that is fused around it that of adam_triton.py.
Traffic with a bfloat16 parameter: 10.06 bytes an element.
"""

import triton
import triton.language as tl

from .adam_triton import adam_rule
from .rows_triton import OWN
from .table_triton import (
    drawn,
    fetch,
    fetch_gradient,
    fetch_parameter,
    place,
    place_beside,
    put_beside,
    put_bits,
    put_parameter,
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
def adam8_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # decoupled, careful, maximize
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of Adam on codes; roles are p, g, codes of m and v, their scales."""
    WIDTH: tl.constexpr = BLOCK if FAST else GROUP
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, tl.int8, FAST)
    v_ptr = place(addresses, n_tensors, t, start, 3, tl.uint8, FAST)
    m_scale_ptr = place(addresses, n_tensors, t, start // GROUP, 4, tl.float32, False)
    v_scale_ptr = place(addresses, n_tensors, t, start // GROUP, 5, tl.float32, False)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 6, E, EMA, STORE, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, WIDTH)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, tl.float32, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, tl.float32, SCALED, FAST)
        m = fetch(m_ptr, offs, n, tl.float32, FAST) * (1.0 / 127)
        m = m * tl.abs(m) * _each(_scales(m_scale_ptr, i, n, WIDTH), WIDTH)
        v = fetch(v_ptr, offs, n, tl.float32, FAST) * (1.0 / 255)
        v = v * v
        v = v * v * _each(_scales(v_scale_ptr, i, n, WIDTH), WIDTH)
        p, m, v, _ = adam_rule(p, g, m, v, v, row + OWN, SWITCHES[0], SWITCHES[1], False, SWITCHES[2], False)
        if not FAST:  # what lies beyond the tensor must not set a scale
            m = tl.where(offs < n, m, 0.0)
            v = tl.where(offs < n, v, 0.0)
        m_scale = _largest(tl.abs(m), WIDTH)
        code = tl.floor(tl.sqrt(_share(tl.abs(m), m_scale, WIDTH)) * 127 + 0.5)
        put_bits(m_ptr, offs, tl.where(m < 0.0, -code, code).to(tl.int8), n, FAST)
        _put_scales(m_scale_ptr, i, m_scale, n, WIDTH)
        v_scale = _largest(v, WIDTH)
        code = tl.floor(tl.sqrt(tl.sqrt(_share(v, v_scale, WIDTH))) * 255 + 0.5)
        code = tl.where(v > 0.0, tl.maximum(code, 1.0), 0.0)
        put_bits(v_ptr, offs, code.to(tl.uint8), n, FAST)
        _put_scales(v_scale_ptr, i, v_scale, n, WIDTH)
        bits = drawn(start, offs, t, row, STORE, WIDTH)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += WIDTH
