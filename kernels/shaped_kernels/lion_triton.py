"""Lion in Triton: one launch over a `Table` of any number of tensors; the maths is at the top of lion.py.

What may be fused around it is in table_triton.py. fp32 traffic: 20 bytes an element.
"""

import triton
import triton.language as tl

from .rows_triton import OWN
from .table_triton import (
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
def lion_rule(
    p: tl.tensor, g: tl.tensor, m: tl.tensor,
    row: tl.tensor,  # decay, lr, b1, 1-b1, b2, 1-b2
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, MAXIMIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values; knows nothing of addresses."""
    if MAXIMIZE:
        g = -g
    if not DECOUPLED:
        g = g + tl.load(row) * p  # wd
    elif not CAREFUL:
        p = p * tl.load(row)  # 1 - lr*wd
    u = tl.load(row + 2) * m + tl.load(row + 3) * g
    u = tl.where(u > 0.0, 1.0, tl.where(u < 0.0, -1.0, 0.0))  # of a NaN 0, as torch has it
    if CAREFUL:
        p = tl.where(u * p >= 0.0, p - tl.load(row) * p, p)  # lr*wd
    p = p - tl.load(row + 1) * u
    return p, tl.load(row + 4) * m + tl.load(row + 5) * g


@triton.jit  # type: ignore[untyped-decorator]
def lion_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # decoupled, careful, maximize
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of Lion; roles are p, g, m."""
    W: tl.constexpr = row.dtype.element_ty
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 3, E, EMA, STORE, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        m = fetch(m_ptr, offs, n, W, FAST)
        p, m = lion_rule(p, g, m, row + OWN, SWITCHES[0], SWITCHES[1], SWITCHES[2])
        bits = drawn(start, offs, t, row, STORE, BLOCK)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_state(m_ptr, offs, m, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK
