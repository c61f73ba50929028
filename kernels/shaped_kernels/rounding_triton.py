"""What the Triton kernels share: IEEE division and root for both widths, and the ways a store may round.

    rounded      to nearest even, everywhere alike
    stochastic   up with the probability of the dropped part, from a hash of place and step
    joined/split float32 as a bfloat16 high half and an int16 low half: exact, 4 bytes, no copy

lowmemory.py holds the same three in plain torch, bit for bit.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def divide(x: tl.tensor, y: tl.tensor, EXACT: tl.constexpr) -> tl.tensor:
    """x / y in float32 or float64, rounded to nearest if EXACT (otherwise float32 may be 2 ulp off on NVIDIA)."""
    if x.dtype == tl.float64 or not EXACT:
        quotient = x / y
    else:  # code after an early return would be compiled too, and div_rn takes float32 alone
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit  # type: ignore[untyped-decorator]
def root(x: tl.tensor, EXACT: tl.constexpr) -> tl.tensor:
    """sqrt(x) in float32 or float64, rounded to nearest if EXACT (otherwise approximate on NVIDIA)."""
    if x.dtype == tl.float64 or not EXACT:
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


@triton.jit  # type: ignore[untyped-decorator]
def noise(start: tl.tensor, offs: tl.tensor, t: tl.tensor, step: tl.tensor) -> tl.tensor:
    """32 bits for elements start + offs of tensor `t` at a step: murmur3's finalizer over place and step.

    A hash costs a tenth of the instructions of Triton's Philox, and the same element at the same
    step always rounds alike, so a resumed run takes the same steps. Chunks never cross a multiple
    of 2**32 elements, so the upper half of the place is one number.
    """
    seed = step.to(tl.uint32) * 0x9E3779B9 + t.to(tl.uint32) * 0x85EBCA77 + (start >> 32).to(tl.uint32) * 0x27D4EB2F
    place = (start & 0xFFFFFFFF).to(tl.uint32) + offs.to(tl.uint32)
    return scrambled(place * 0xC2B2AE3D ^ seed)


@triton.jit  # type: ignore[untyped-decorator]
def scrambled(x: tl.tensor) -> tl.tensor:
    """murmur3's finalizer: every bit of the result depends on every bit of x."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    x ^= x >> 16
    return x


@triton.jit  # type: ignore[untyped-decorator]
def stochastic(x: tl.tensor, bits16: tl.tensor) -> tl.tensor:
    """float32 to bfloat16: 16 random bits are added below the last kept bit, then the rest is cut off."""
    bits = x.to(tl.uint32, bitcast=True) + bits16
    bits = tl.where(x == x, bits >> 16, 0x7FC0)
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def joined(high: tl.tensor, low: tl.tensor) -> tl.tensor:
    """The float32 whose bits are high * 2**16 + low; `high` is a bfloat16's bits, `low` signed."""
    bits = (high.to(tl.uint32) << 16) + low.to(tl.int32).to(tl.uint32, bitcast=True)
    return bits.to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def high_half(x: tl.tensor) -> tl.tensor:
    """The bits of the bfloat16 nearest to x (halves away from zero, so that `low_half` fits 16 bits)."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(x == x, (bits + 0x8000) >> 16, 0x7FC0).to(tl.uint16)


@triton.jit  # type: ignore[untyped-decorator]
def low_half(x: tl.tensor) -> tl.tensor:
    """What `high_half` left over, between -2**15 and 2**15 - 1."""
    bits = x.to(tl.uint32, bitcast=True)
    left = bits - (((bits + 0x8000) >> 16) << 16)
    return tl.where(x == x, left.to(tl.int32, bitcast=True), 0).to(tl.int16)
