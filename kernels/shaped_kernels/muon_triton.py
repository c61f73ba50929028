"""Muon in Triton, in two passes around the products: where momentum leads, then the step along what they made of it.

    ahead_kernel      d, of gradient and momentum, into a tensor of its own
    MuonRule.between  an orthogonal factor of each d, scaled, in its place: products by torch, batched by shape
    table_kernel      b <- b + (1 - momentum)*(g - b), p <- (1 - lr*weight_decay)*p - lr*d, and what is fused around it

`d` is the last role of a tensor's table, in the dtype that is computed in; it lives for the step alone. State and
parameter move in the last pass only, so that products for which there is no memory leave both as they were. The maths
is at the top of muon.py. fp32 traffic: read g b, write d, then read p g b d, write p b = 36 bytes an element, beside
the products.
"""

import triton
import triton.language as tl

from .rows_triton import OWN
from .table_triton import (
    SPLIT,
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
def muon_momentum(g: tl.tensor, b: tl.tensor, row: tl.tensor) -> tl.tensor:
    """The new momentum of loaded values."""
    return b + tl.load(row + 2) * (g - b)


@triton.jit  # type: ignore[untyped-decorator]
def muon_ahead(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # nesterov
    G: tl.constexpr, M: tl.constexpr, SCALED: tl.constexpr, ROLE: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """For `ahead_kernel`: what of one chunk is to be made orthogonal."""
    W: tl.constexpr = row.dtype.element_ty
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    b_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    d_ptr = place(addresses, n_tensors, t, start, ROLE, W, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        d = muon_momentum(g, fetch(b_ptr, offs, n, W, FAST), row + OWN)
        if SWITCHES[0]:
            d = g + tl.load(row + OWN + 3) * (d - g)
        put(d_ptr, offs, d, n, FAST)
        i += BLOCK


@triton.jit  # type: ignore[untyped-decorator]
def muon_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of the step; roles are p, g, b, and last d."""
    W: tl.constexpr = row.dtype.element_ty
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    b_ptr = place(addresses, n_tensors, t, start, 2, M, FAST)
    d_ptr = place(addresses, n_tensors, t, start, 3 + EMA + (STORE == SPLIT), W, FAST)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 3, E, EMA, STORE, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, BLOCK)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, W, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, W, SCALED, FAST)
        b = muon_momentum(g, fetch(b_ptr, offs, n, W, FAST), row + OWN)
        p = tl.load(row + OWN) * p - tl.load(row + OWN + 1) * fetch(d_ptr, offs, n, W, FAST)
        bits = drawn(start, offs, t, row, STORE, BLOCK)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_state(b_ptr, offs, b, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += BLOCK


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def ahead_kernel(
    addresses: tl.tensor, n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor, row: tl.tensor,
    AHEAD: tl.constexpr, SWITCHES: tl.constexpr,  # a rule's first pass over one chunk, and what it switches on
    G: tl.constexpr, M: tl.constexpr, SCALED: tl.constexpr, ROLE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The first pass over all chunks of a table; it writes nothing but the tensors of ROLE."""
    c = tl.program_id(0)
    while c < n_chunks:
        t = tl.load(chunks + 4 * c)
        start = tl.load(chunks + 4 * c + 1)
        n = tl.load(chunks + 4 * c + 2).to(tl.int32)
        if tl.load(chunks + 4 * c + 3) != 0:
            AHEAD(addresses, n_tensors, t, start, n, row, SWITCHES, G, M, SCALED, ROLE, True, BLOCK)
        else:
            AHEAD(addresses, n_tensors, t, start, n, row, SWITCHES, G, M, SCALED, ROLE, False, BLOCK // 8)
        c += tl.num_programs(0)
