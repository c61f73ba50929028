"""Adam and AdamW in Triton: one flat in-place pass per tensor; the maths is at the top of adam.py.

The scalars travel as a row in device memory, in the dtype of the computation (see sgd_triton.py).
1 - b1, 1 - b2, lr/c1 and sqrt(c2) are computed on the host in double: so one compile serves all
steps, and no element pays a double-precision instruction.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rounding_triton import divide, root, rounded
from .sgd_triton import Rows

# One program owns BLOCK neighbours: 1024 = 4 warps x 32 lanes x 8 elements, two 128-bit float32
# loads a lane. Fixed, never autotuned: a trial launch would take a second optimizer step.
BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def adam_rule(
    p: tl.tensor, g: tl.tensor, m: tl.tensor, v: tl.tensor, u: tl.tensor,
    decay: tl.tensor, a1: tl.tensor, b2: tl.tensor, a2: tl.tensor,  # a = 1 - b
    step_size: tl.tensor, root_c2: tl.tensor, eps: tl.tensor,
    DECOUPLED: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """The update of loaded values; knows nothing of addresses."""
    if MAXIMIZE:
        g = -g
    if DECOUPLED:
        p = p * decay  # 1 - lr*wd
    else:
        g = g + decay * p  # wd
    m = m + a1 * (g - m)
    v = b2 * v + a2 * (g * g)
    top = v
    if AMSGRAD:
        u = tl.maximum(u, v, propagate_nan=tl.PropagateNan.ALL)
        top = u
    p = p - step_size * divide(m, divide(root(top), root_c2) + eps)
    return p, m, v, u


@triton.jit  # type: ignore[untyped-decorator]
def adam_kernel(
    p_ptr: tl.tensor, g_ptr: tl.tensor,  # [n] each; all but g are updated in place
    m_ptr: tl.tensor, v_ptr: tl.tensor, u_ptr: tl.tensor,  # [n] each; u is v without AMSGrad
    row_ptr: tl.tensor,  # [7]: decay, 1-b1, b2, 1-b2, lr/c1, sqrt(c2), eps, in the dtype to compute in
    n: tl.tensor,
    DECOUPLED: tl.constexpr, AMSGRAD: tl.constexpr, MAXIMIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    wide = row_ptr.dtype.element_ty
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # n may pass 2**31
    mask = offs < n  # only the last program is ragged
    p = tl.load(p_ptr + offs, mask=mask, other=0.0).to(wide)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(wide)
    m = tl.load(m_ptr + offs, mask=mask, other=0.0).to(wide)
    v = tl.load(v_ptr + offs, mask=mask, other=0.0).to(wide)
    u = v
    if AMSGRAD:
        u = tl.load(u_ptr + offs, mask=mask, other=0.0).to(wide)
    p, m, v, u = adam_rule(
        p, g, m, v, u,
        tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2), tl.load(row_ptr + 3),
        tl.load(row_ptr + 4), tl.load(row_ptr + 5), tl.load(row_ptr + 6),
        DECOUPLED, AMSGRAD, MAXIMIZE,
    )  # fmt: skip
    tl.store(p_ptr + offs, rounded(p, p_ptr.dtype.element_ty), mask=mask)
    tl.store(m_ptr + offs, rounded(m, m_ptr.dtype.element_ty), mask=mask)
    tl.store(v_ptr + offs, rounded(v, v_ptr.dtype.element_ty), mask=mask)
    if AMSGRAD:
        tl.store(u_ptr + offs, rounded(u, u_ptr.dtype.element_ty), mask=mask)


def launch_adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slots: Sequence[Sequence[Tensor]],
    scalars: Sequence[float],
    step: float,
    *,
    decoupled: bool,
    maximize: bool,
    block: int = BLOCK,
) -> None:
    """Launch one kernel for each tensor.

    Args:
        params, grads: Parallel lists of dense tensors, on one device.
        slots: exp_avg, exp_avg_sq and, for AMSGrad, max_exp_avg_sq lists, laid out as `params`.
        scalars: (lr, beta1, beta2, eps, weight_decay).
        step: The number of this step, from 1.
        decoupled: AdamW if true, Adam if not.
        maximize: Climb instead of descend.
        block: Elements a program; tests make it small.
    """
    rows = Rows(_row(*scalars, step=step, decoupled=decoupled))
    amsgrad = len(slots) == 3
    with torch.no_grad(), torch.cuda.device_of(params[0]):  # type: ignore[no-untyped-call]
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            if p.numel() == 0:
                continue
            adam_kernel[(triton.cdiv(p.numel(), block),)](
                p, g, slots[0][i], slots[1][i], slots[-1][i], rows.of(p), p.numel(),
                DECOUPLED=decoupled, AMSGRAD=amsgrad, MAXIMIZE=maximize, BLOCK=block,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip


def _row(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, *, step: float, decoupled: bool
) -> list[float]:
    decay = 1.0 - lr * weight_decay if decoupled else weight_decay
    step_size = lr / (1.0 - beta1**step)
    return [decay, 1.0 - beta1, beta2, 1.0 - beta2, step_size, (1.0 - beta2**step) ** 0.5, eps]
