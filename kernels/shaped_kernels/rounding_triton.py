"""What the Triton kernels share: IEEE division and root for both widths, and the rounding of a store."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def divide(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x / y rounded to nearest, in float32 or float64 (plain `/` on float32 is 2 ulp on NVIDIA)."""
    if x.dtype == tl.float64:
        quotient = x / y
    else:  # code after an early return would be compiled too, and div_rn takes float32 alone
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit  # type: ignore[untyped-decorator]
def root(x: tl.tensor) -> tl.tensor:
    """sqrt(x) rounded to nearest, in float32 or float64 (plain sqrt on float32 is approximate on NVIDIA)."""
    if x.dtype == tl.float64:
        result = tl.sqrt(x)
    else:
        result = tl.sqrt_rn(x)
    return result


@triton.jit  # type: ignore[untyped-decorator]
def rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """x in a narrower dtype, rounded to nearest even on every device.

    bfloat16 is rounded by integers: adding 0x7FFF plus the last kept bit carries exactly when the
    dropped half rounds up. A GPU's own cast agrees, but Triton's interpreter truncates. NaN is
    replaced first, since the carry could turn its bits into an infinity or a zero.
    """
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        bits = tl.where(x == x, bits >> 16, 0x7FC0)
        y = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y
