"""Cautious updates in Triton, in two passes: how many elements of each tensor agree, then the update with that share.

    agree_kernel    adds the count of each chunk to its tensor's: whole numbers, whose sum is the same in any order
    careful         a block of the update: where it agrees with the gradient, divided by the share of those that do

A tensor's count is a role of its table, the last: int64 [2], the count and the tensor's elements. The first pass reads
what the rule needs for its update and writes nothing: 12 bytes an element for AdamW in float32, 8 for Lion. The maths
is at the top of cautious.py.
"""

import triton
import triton.language as tl

from .rounding_triton import divide
from .table_triton import place

FLOOR = tl.constexpr(1e-3)  # as in cautious.py


@triton.jit  # type: ignore[untyped-decorator]
def growth(addresses: tl.tensor, n_tensors: tl.tensor, t: tl.tensor, ROLE: tl.constexpr, W: tl.constexpr) -> tl.tensor:
    """What the elements that agree are multiplied with: one over their share of a tensor."""
    counts = place(addresses, n_tensors, t, 0, ROLE, tl.int64, False)
    share = divide(tl.load(counts).to(W), tl.load(counts + 1).to(W), True)
    return divide(tl.full([], 1.0, W), tl.maximum(share, tl.full([], FLOOR, W)), True)


@triton.jit  # type: ignore[untyped-decorator]
def careful(d: tl.tensor, g: tl.tensor, grown: tl.tensor) -> tl.tensor:
    """A block of an update without the elements that its gradient disagrees with; of a NaN 0."""
    return tl.where(d * g > 0.0, d * grown, 0.0)


@triton.jit(do_not_specialize=["n_tensors", "n_chunks"])  # type: ignore[untyped-decorator]
def agree_kernel(
    addresses: tl.tensor, n_tensors: tl.tensor, chunks: tl.tensor, n_chunks: tl.tensor, row: tl.tensor,
    COUNT: tl.constexpr, SWITCHES: tl.constexpr,  # a rule's count of one chunk, and what it switches on
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
    SCALED: tl.constexpr, STORE: tl.constexpr, LOW: tl.constexpr, ROLE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Count the elements whose update agrees with their gradient; the counts were zeros."""
    c = tl.program_id(0)
    while c < n_chunks:
        t = tl.load(chunks + 4 * c)
        start = tl.load(chunks + 4 * c + 1)
        n = tl.load(chunks + 4 * c + 2).to(tl.int32)
        counts = place(addresses, n_tensors, t, 0, ROLE, tl.int64, False)
        if tl.load(chunks + 4 * c + 3) != 0:
            agree = COUNT(addresses, n_tensors, t, start, n, row, SWITCHES, P, G, M, SCALED, STORE, LOW, True, BLOCK)
        else:
            agree = COUNT(addresses, n_tensors, t, start, n, row, SWITCHES, P, G, M, SCALED, STORE, LOW, False,
                          BLOCK // 8)  # fmt: skip
        tl.atomic_add(counts, agree.to(tl.int64), sem="relaxed")
        c += tl.num_programs(0)
