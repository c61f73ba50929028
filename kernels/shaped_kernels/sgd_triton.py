"""SGD in Triton: one launch over a `Table` of any number of tensors; the maths is at the top of sgd.py.

What may be fused around it is in table_triton.py. fp32 traffic: 12 bytes an element, 20 with momentum.
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
def sgd_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # momentum, nesterov, maximize, decoupled
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of SGD; roles are p, g, and with momentum its buffer."""
    W: tl.constexpr = row.dtype.element_ty
    MOMENTUM: tl.constexpr = SWITCHES[0]
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    b_ptr = p_ptr
    if MOMENTUM:
        b_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 2 + MOMENTUM, E, EMA, STORE, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        b = p
        if MOMENTUM:
            b = fetch(b_ptr, offs, n, W, FAST)
        p, b = sgd_rule(p, g, b, row + OWN, MOMENTUM, SWITCHES[1], SWITCHES[2], SWITCHES[3])
        bits = drawn(start, offs, t, row, STORE, BLOCK)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        if MOMENTUM:
            put_state(b_ptr, offs, b, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK
