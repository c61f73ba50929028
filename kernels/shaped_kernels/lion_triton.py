"""Lion in Triton: one launch over a `Table` of any number of tensors; the maths is at the top of lion.py.

What may be fused around it is in table_triton.py. fp32 traffic: 20 bytes an element.
"""

import triton
import triton.language as tl

from .cautious_triton import careful, growth
from .rows_triton import OWN
from .table_triton import (
    SPLIT,
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
def lion_direction(
    p: tl.tensor, g: tl.tensor, m: tl.tensor,
    row: tl.tensor,  # decay, lr, b1, 1-b1, b2, 1-b2
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, MAXIMIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Of loaded values: the parameter and the gradient, decayed where that is theirs, and the sign to go against."""
    if MAXIMIZE:
        g = -g
    if not DECOUPLED:
        g = g + tl.load(row) * p  # wd
    elif not CAREFUL:
        p = p * tl.load(row)  # 1 - lr*wd
    u = tl.load(row + 2) * m + tl.load(row + 3) * g
    return p, g, tl.where(u > 0.0, 1.0, tl.where(u < 0.0, -1.0, 0.0)).to(g.dtype)  # of a NaN 0, as torch has it


@triton.jit  # type: ignore[untyped-decorator]
def lion_move(
    p: tl.tensor, g: tl.tensor, m: tl.tensor, u: tl.tensor, row: tl.tensor, CAREFUL: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The parameter, moved, and the new state."""
    if CAREFUL:
        p = tl.where(u * p >= 0.0, p - tl.load(row) * p, p)  # lr*wd
    p = p - tl.load(row + 1) * u
    return p, tl.load(row + 4) * m + tl.load(row + 5) * g


@triton.jit  # type: ignore[untyped-decorator]
def lion_rule(
    p: tl.tensor, g: tl.tensor, m: tl.tensor, row: tl.tensor,
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, MAXIMIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values; knows nothing of addresses."""
    p, g, u = lion_direction(p, g, m, row, DECOUPLED, CAREFUL, MAXIMIZE)
    return lion_move(p, g, m, u, row, CAREFUL)


@triton.jit  # type: ignore[untyped-decorator]
def lion_agreeing(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, SCALED: tl.constexpr,
    STORE: tl.constexpr, LOW: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """For `agree_kernel`: how many elements of one chunk agree. LOW is the role of the low half."""
    W: tl.constexpr = row.dtype.element_ty
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    low_ptr = p_ptr
    if STORE == SPLIT:
        low_ptr = place(addresses, n_tensors, t, start, LOW, tl.int16, FAST)
    count = tl.zeros([BLOCK], tl.int32)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        p = g
        if not SWITCHES[0]:
            p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        m = fetch(m_ptr, offs, n, W, FAST)
        p, g, u = lion_direction(p, g, m, row + OWN, SWITCHES[0], SWITCHES[1], SWITCHES[2])
        count += (u * g > 0.0).to(tl.int32)
        i += BLOCK
    return tl.sum(count, 0)


@triton.jit  # type: ignore[untyped-decorator]
def lion_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # decoupled, careful, maximize, cautious
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
    if SWITCHES[3]:
        grown = growth(addresses, n_tensors, t, 3 + EMA + (STORE == SPLIT), W)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        m = fetch(m_ptr, offs, n, W, FAST)
        p, g, u = lion_direction(p, g, m, row + OWN, SWITCHES[0], SWITCHES[1], SWITCHES[2])
        if SWITCHES[3]:
            u = careful(u, g, grown)
        p, m = lion_move(p, g, m, u, row + OWN, SWITCHES[1])
        bits = drawn(start, offs, t, row, STORE, BLOCK)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_state(m_ptr, offs, m, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK
