"""Lion with 8-bit state in Triton: codes as in codes_triton.py, the rule and all that is fused around it as in
lion_triton.py.

Traffic with a bfloat16 parameter: 8.03 bytes an element.
"""

import triton
import triton.language as tl

from .codes_triton import GROUP, fetch_signed, put_signed
from .lion_triton import lion_rule
from .rows_triton import OWN
from .table_triton import drawn, fetch_gradient, fetch_parameter, place, place_beside, put_beside, put_parameter


@triton.jit  # type: ignore[untyped-decorator]
def lion8_chunk(
    addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, start: tl.tensor, n: tl.tensor, row: tl.tensor,
    SWITCHES: tl.constexpr,  # decoupled, careful, maximize
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    SCALED: tl.constexpr, EMA: tl.constexpr, ZERO: tl.constexpr, STORE: tl.constexpr,
    FAST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One chunk of Lion on codes; roles are p, g, codes of m, their scales."""
    WIDTH: tl.constexpr = BLOCK if FAST else GROUP
    p_ptr = place(addresses, n_tensors, t, start, 0, P, FAST)
    g_ptr = place(addresses, n_tensors, t, start, 1, G, FAST)
    m_ptr = place(addresses, n_tensors, t, start, 2, tl.int8, FAST)
    scale_ptr = place(addresses, n_tensors, t, start // GROUP, 3, tl.float32, False)
    e_ptr, low_ptr = place_beside(addresses, n_tensors, t, start, p_ptr, 4, E, EMA, STORE, FAST)
    i = 0
    while i < n:
        offs = i + tl.arange(0, WIDTH)
        p = fetch_parameter(p_ptr, low_ptr, offs, n, tl.float32, STORE, FAST)
        g = fetch_gradient(g_ptr, offs, n, row, tl.float32, SCALED, FAST)
        m = fetch_signed(m_ptr, scale_ptr, i, offs, n, FAST, WIDTH)
        p, m = lion_rule(p, g, m, row + OWN, SWITCHES[0], SWITCHES[1], SWITCHES[2])
        put_signed(m_ptr, scale_ptr, i, offs, m, n, FAST, WIDTH)
        bits = drawn(start, offs, t, row, STORE, WIDTH)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += WIDTH
