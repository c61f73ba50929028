"""Adam and AdamW in Triton: one launch over a `Table` of any number of tensors; the maths is at the top of adam.py.

What may be fused around it is in table_triton.py. The parameter is stored rounded to nearest, stochastically, or split
into two exact halves.

fp32 traffic: 28 bytes an element; AMSGrad and an EMA add 8 each, zeroing 4, the rest nothing.
"""

import triton
import triton.language as tl

from .cautious_triton import careful, growth
from .rounding_triton import divide, root
from .rows_triton import OWN
from .table_triton import (
    SPLIT,
    STOCHASTIC,
    drawn,
    fetch,
    fetch_gradient,
    fetch_parameter,
    place,
    place_beside,
    put,
    put_beside,
    put_parameter,
    put_state,
)


@triton.jit  # type: ignore[untyped-decorator]
def adam_direction(
    p: tl.tensor, g: tl.tensor, m: tl.tensor, v: tl.tensor, u: tl.tensor,
    row: tl.tensor,  # decay, 1-b1, b2, 1-b2, lr/c1, sqrt(c2), eps
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr, EXACT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """The new state of loaded values, the gradient that it was made of, and where the parameter is to go."""
    if MAXIMIZE:
        g = -g
    if not DECOUPLED:
        g = g + tl.load(row) * p  # wd
    elif not CAREFUL:
        p = p * tl.load(row)  # 1 - lr*wd
    m = m + tl.load(row + 1) * (g - m)
    v = tl.load(row + 2) * v + tl.load(row + 3) * (g * g)
    top = v
    if AMSGRAD:
        u = tl.maximum(u, v, propagate_nan=tl.PropagateNan.ALL)
        top = u
    floor = divide(root(top, EXACT), tl.load(row + 5), EXACT) + tl.load(row + 6)
    return p, g, m, v, u, divide(m, floor, EXACT)


@triton.jit  # type: ignore[untyped-decorator]
def adam_move(p: tl.tensor, d: tl.tensor, row: tl.tensor, CAREFUL: tl.constexpr) -> tl.tensor:
    """The parameter, moved."""
    if CAREFUL:
        p = tl.where(d * p >= 0.0, p - tl.load(row) * p, p)  # lr*wd
    return p - tl.load(row + 4) * d


@triton.jit  # type: ignore[untyped-decorator]
def adam_rule(
    p: tl.tensor, g: tl.tensor, m: tl.tensor, v: tl.tensor, u: tl.tensor, row: tl.tensor,
    DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr, EXACT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values; knows nothing of addresses."""
    p, g, m, v, u, d = adam_direction(p, g, m, v, u, row, DECOUPLED, CAREFUL, AMSGRAD, MAXIMIZE, EXACT)
    return adam_move(p, d, row, CAREFUL), m, v, u


@triton.jit  # type: ignore[untyped-decorator]
def adam_agreeing(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, SCALED: tl.constexpr,
    STORE: tl.constexpr, LOW: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """For `agree_kernel`: how many elements of one chunk agree. LOW is the role of the low half."""
    W: tl.constexpr = row.dtype.element_ty
    AMSGRAD: tl.constexpr = SWITCHES[3]
    EXACT: tl.constexpr = STORE != STOCHASTIC
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    v_ptr = place(addresses, n_tensors, t, start, 3, M, FAST)
    u_ptr = v_ptr
    if AMSGRAD:
        u_ptr = place(addresses, n_tensors, t, start, 4, M, FAST)
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
        v = fetch(v_ptr, offs, n, W, FAST)
        u = v
        if AMSGRAD:
            u = fetch(u_ptr, offs, n, W, FAST)
        p, g, m, v, u, d = adam_direction(p, g, m, v, u, row + OWN, SWITCHES[0], SWITCHES[1], AMSGRAD, SWITCHES[2],
                                          EXACT)  # fmt: skip
        count += (d * g > 0.0).to(tl.int32)
        i += BLOCK
    return tl.sum(count, 0)


@triton.jit  # type: ignore[untyped-decorator]
def adam_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # decoupled, careful, maximize, AMSGrad, cautious
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of Adam; roles are p, g, m, v, and with AMSGrad the largest v."""
    W: tl.constexpr = row.dtype.element_ty
    AMSGRAD: tl.constexpr = SWITCHES[3]
    # A store that drops 16 random bits has no use for the last bit of a quotient, and registers are short.
    EXACT: tl.constexpr = STORE != STOCHASTIC
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    v_ptr = place(addresses, n_tensors, t, start, 3, M, FAST)
    u_ptr = v_ptr
    if AMSGRAD:
        u_ptr = place(addresses, n_tensors, t, start, 4, M, FAST)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 4 + AMSGRAD, E, EMA, STORE, FAST)
    if SWITCHES[4]:
        grown = growth(addresses, n_tensors, t, 4 + AMSGRAD + EMA + (STORE == SPLIT), W)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        m = fetch(m_ptr, offs, n, W, FAST)
        v = fetch(v_ptr, offs, n, W, FAST)
        u = v
        if AMSGRAD:
            u = fetch(u_ptr, offs, n, W, FAST)
        p, g, m, v, u, d = adam_direction(p, g, m, v, u, row + OWN, SWITCHES[0], SWITCHES[1], AMSGRAD, SWITCHES[2],
                                          EXACT)  # fmt: skip
        if SWITCHES[4]:
            d = careful(d, g, grown)
        p = adam_move(p, d, row + OWN, SWITCHES[1])
        bits = drawn(start, offs, t, row, STORE, BLOCK)
        # The state first: with the parameter before it, one variant takes 72 registers on sm_80.
        put_state(v_ptr, offs, v, bits, n, STORE, FAST)
        put_state(m_ptr, offs, m, bits * 0x9E3779B1, n, STORE, FAST)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        if AMSGRAD:
            put(u_ptr, offs, u, n, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK
