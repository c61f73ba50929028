"""SGD in Triton: one flat in-place pass per tensor; the maths is at the top of sgd.py.

The scalars travel as a row in device memory, in the dtype of the computation: Triton passes a
Python float as float32, which would cost float64 parameters their precision, and a row can later
be advanced by a captured graph. A launch reads 16 or 32 bytes of it from cache.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lists import WIDE
from .rounding_triton import rounded

# One program owns BLOCK neighbours: 1024 = 4 warps x 32 lanes x 8 elements, two 128-bit float32
# loads a lane. Fixed, never autotuned: a trial launch would take a second optimizer step.
BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def sgd_rule(
    p: tl.tensor, g: tl.tensor, b: tl.tensor,
    lr: tl.tensor, mu: tl.tensor, damp: tl.tensor, wd: tl.tensor,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values; knows nothing of addresses."""
    if MAXIMIZE:
        g = -g
    g = g + wd * p
    d = g
    if MOMENTUM:
        b = mu * b + damp * g
        d = b
        if NESTEROV:
            d = g + mu * b
    return p - lr * d, b


@triton.jit  # type: ignore[untyped-decorator]
def sgd_kernel(
    p_ptr: tl.tensor, g_ptr: tl.tensor, b_ptr: tl.tensor,  # [n]; p and b updated in place (b is p without momentum)
    row_ptr: tl.tensor,  # [4]: lr, momentum, damp, weight decay, in the dtype to compute in
    n: tl.tensor,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    wide = row_ptr.dtype.element_ty
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # n may pass 2**31
    mask = offs < n  # only the last program is ragged
    p = tl.load(p_ptr + offs, mask=mask, other=0.0).to(wide)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(wide)
    b = p
    if MOMENTUM:
        b = tl.load(b_ptr + offs, mask=mask, other=0.0).to(wide)
    p, b = sgd_rule(
        p, g, b, tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2), tl.load(row_ptr + 3),
        MOMENTUM, NESTEROV, MAXIMIZE,
    )  # fmt: skip
    tl.store(p_ptr + offs, rounded(p, p_ptr.dtype.element_ty), mask=mask)
    if MOMENTUM:
        tl.store(b_ptr + offs, rounded(b, b_ptr.dtype.element_ty), mask=mask)


def launch_sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    bufs: Sequence[Tensor] | None,
    scalars: Sequence[float],
    *,
    nesterov: bool,
    maximize: bool,
    block: int = BLOCK,
) -> None:
    """Launch one kernel for each tensor.

    Args:
        params, grads, bufs: Parallel lists of dense tensors, laid out alike, on one device.
        scalars: (lr, momentum, damp, weight_decay).
        nesterov, maximize: As in `sgd_`.
        block: Elements a program; tests make it small.
    """
    rows = Rows(scalars)
    with torch.no_grad(), torch.cuda.device_of(params[0]):  # type: ignore[no-untyped-call]
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            if p.numel() == 0:
                continue
            sgd_kernel[(triton.cdiv(p.numel(), block),)](
                p, g, p if bufs is None else bufs[i], rows.of(p), p.numel(),
                MOMENTUM=bufs is not None, NESTEROV=nesterov, MAXIMIZE=maximize, BLOCK=block,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip


class Rows:
    """The scalars of one step in device memory, made once for each width that its tensors need.

    Args:
        scalars: Python floats, rounded once to the width.
    """

    def __init__(self, scalars: Sequence[float]) -> None:
        self._scalars = list(scalars)
        self._made: dict[torch.dtype, Tensor] = {}

    def of(self, p: Tensor) -> Tensor:
        """The row for a parameter: float64 for float64, float32 for narrower ones, on its device."""
        wide = WIDE[p.dtype]
        if wide not in self._made:
            # From pinned memory the copy queues behind earlier kernels; from pageable memory torch would wait for them.
            row = torch.tensor(self._scalars, dtype=wide, pin_memory=p.is_cuda)
            self._made[wide] = row.to(p.device, non_blocking=True)
        return self._made[wide]
