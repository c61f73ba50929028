"""Adam and AdamW with 8-bit moments in Triton: codes as in codes_triton.py, the rule and all that is fused around it
as in adam_triton.py.

Traffic with a bfloat16 parameter: 10.06 bytes an element.
"""

import triton
import triton.language as tl

from .adam_triton import adam_rule
from .codes_triton import GROUP, each, fetch_signed, largest, put_scales, put_signed, scales, share
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
        m = fetch_signed(m_ptr, m_scale_ptr, i, offs, n, FAST, WIDTH)
        v = fetch(v_ptr, offs, n, tl.float32, FAST) * (1.0 / 255)
        v = v * v
        v = v * v * each(scales(v_scale_ptr, i, n, WIDTH), WIDTH)
        p, m, v, _ = adam_rule(p, g, m, v, v, row + OWN, SWITCHES[0], SWITCHES[1], False, SWITCHES[2], False)
        put_signed(m_ptr, m_scale_ptr, i, offs, m, n, FAST, WIDTH)
        if not FAST:  # what lies beyond the tensor must not set a scale
            v = tl.where(offs < n, v, 0.0)
        v_scale = largest(v, WIDTH)
        code = tl.floor(tl.sqrt(tl.sqrt(share(v, v_scale, WIDTH))) * 255 + 0.5)
        code = tl.where(v > 0.0, tl.maximum(code, 1.0), 0.0)
        put_bits(v_ptr, offs, code.to(tl.uint8), n, FAST)
        put_scales(v_scale_ptr, i, v_scale, n, WIDTH)
        bits = drawn(start, offs, t, row, STORE, WIDTH)
        put_parameter(p_ptr, low_ptr, offs, p, bits, n, STORE, FAST)
        put_beside(e_ptr, g_ptr, offs, p, row, n, EMA, ZERO, FAST)
        i += WIDTH
