"""Schedule-free AdamW in Triton: one launch over a `Table` of any number of tensors; the maths is in schedule_free.py.

What may be fused around it is in table_triton.py. fp32 traffic: 28 bytes an element.
"""

import triton
import triton.language as tl

from .rounding_triton import divide, root
from .rows_triton import OWN
from .table_triton import (
    STOCHASTIC,
    drawn,
    fetch,
    fetch_gradient,
    fetch_parameter,
    place,
    place_beside,
    put_beside,
    put_parameter,
    put_state,
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
def schedule_free_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # maximize
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of schedule-free AdamW; roles are p, g, e, v."""
    W: tl.constexpr = row.dtype.element_ty
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    v_ptr = place(addresses, n_tensors, t, start, 3, M, FAST)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 4, E, EMA, STORE, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        # The squares are stored before the rest is loaded: with all at once, two variants take 70 registers.
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        if SWITCHES[0]:
            g = -g
        v = schedule_free_squares(g, fetch(v_ptr, offs, n, W, FAST), row + OWN)
        bits = drawn(start, offs, t, row, STORE, BLOCK)
        put_state(v_ptr, offs, v, bits, n, STORE, FAST)
        # A store that drops 16 random bits has no use for the last bit of a quotient, and registers are short.
        d = schedule_free_direction(g, v, row + OWN, STORE != STOCHASTIC)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        p, m = schedule_free_rule(p, d, fetch(m_ptr, offs, n, W, FAST), row + OWN)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_state(m_ptr, offs, m, bits * 0x9E3779B1, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK
