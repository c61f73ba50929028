"""The row: all scalars of one step in device memory, computed there by a kernel of one program.

    hypers  float64 [2 + k]   max_norm, EMA decay, then the rule's own: uploaded when one changes
    step    float32 []        steps taken; advanced here, unless the step is skipped
    row     [5 + k]           factor, skip, EMA weight, step, norm, then what the rule multiplies by

The row is float32, or float64 for float64 parameters; everything before its rounding is double.
Because step, bias corrections, clipping and the verdict on non-finite gradients never leave the
device, a schedule recompiles nothing, a captured launch advances them, and no step waits.
"""

import triton
import triton.language as tl

# Where the row keeps what every rule shares; the rule's own numbers begin at OWN.
FACTOR = tl.constexpr(0)
SKIP = tl.constexpr(1)
EMA_WEIGHT = tl.constexpr(2)
COUNT = tl.constexpr(3)
NORM = tl.constexpr(4)
OWN = tl.constexpr(5)


@triton.jit  # type: ignore[untyped-decorator]
def _settle(
    hypers: tl.tensor, step_ptr: tl.tensor, partials: tl.tensor, n_partials: tl.tensor,
    scale_ptr: tl.tensor, found_ptr: tl.tensor, row: tl.tensor,
    CLIP: tl.constexpr, GUARD: tl.constexpr, SCALE: tl.constexpr, FOUND: tl.constexpr, ADVANCE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Fill the shared part of the row; the number of this step, in double."""
    factor = tl.full([], 1.0, tl.float64)
    skip = tl.full([], 0, tl.int32)
    norm = tl.full([], 0.0, tl.float64)
    if SCALE:
        factor = factor / tl.load(scale_ptr).to(tl.float64)
    if FOUND:
        skip = (tl.load(found_ptr).to(tl.float32) != 0.0).to(tl.int32)
    if CLIP or GUARD:
        i = tl.full([], 0, tl.int32)
        sums = tl.zeros([256], tl.float64)
        bad = tl.zeros([256], tl.float64)
        while i < n_partials:
            at = i + tl.arange(0, 256)
            sums += tl.load(partials + at, mask=at < n_partials, other=0.0).to(tl.float64)
            bad += tl.load(partials + n_partials + at, mask=at < n_partials, other=0.0).to(tl.float64)
            i += 256
        norm = tl.sqrt(tl.sum(sums, 0)) * factor
        if GUARD:
            skip = tl.maximum(skip, (tl.sum(bad, 0) != 0.0).to(tl.int32))
        if CLIP:
            limit = tl.load(hypers) / (norm + 1e-6)
            factor = tl.where(limit < 1.0, limit, tl.where(limit >= 1.0, 1.0, limit)) * factor  # a NaN stays one
    taken = tl.load(step_ptr).to(tl.float64)
    count = taken + 1.0
    if ADVANCE:
        tl.store(step_ptr, tl.where(skip != 0, taken, count).to(step_ptr.dtype.element_ty))
    wide = row.dtype.element_ty
    tl.store(row + FACTOR, factor.to(wide))
    tl.store(row + SKIP, skip.to(wide))
    tl.store(row + EMA_WEIGHT, (1.0 - tl.load(hypers + 1)).to(wide))
    tl.store(row + COUNT, count.to(wide))
    tl.store(row + NORM, norm.to(wide))
    return count


@triton.jit  # type: ignore[untyped-decorator]
def _power(b: tl.tensor, t: tl.tensor) -> tl.tensor:
    return tl.where(b > 0.0, tl.exp(t * tl.log(tl.where(b > 0.0, b, 1.0))), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _decay(lr: tl.tensor, decay: tl.tensor, DECOUPLED: tl.constexpr, CAREFUL: tl.constexpr) -> tl.tensor:
    """The share that is kept where the decay is apart from the gradient, or that is removed where only some decay."""
    if DECOUPLED:
        decay = lr * decay
        if not CAREFUL:
            decay = 1.0 - decay
    return decay


@triton.jit  # type: ignore[untyped-decorator]
def adam_row(hypers: tl.tensor, row: tl.tensor, t: tl.tensor, SWITCHES: tl.constexpr) -> None:
    """Adam's row, of lr, b1, b2, eps, weight decay: decay, 1-b1, b2, 1-b2, lr/c1, sqrt(c2), eps."""
    lr, b1, b2 = tl.load(hypers), tl.load(hypers + 1), tl.load(hypers + 2)
    wide = row.dtype.element_ty
    tl.store(row, _decay(lr, tl.load(hypers + 4), SWITCHES[0], SWITCHES[1]).to(wide))
    tl.store(row + 1, (1.0 - b1).to(wide))
    tl.store(row + 2, b2.to(wide))
    tl.store(row + 3, (1.0 - b2).to(wide))
    tl.store(row + 4, (lr / (1.0 - _power(b1, t))).to(wide))
    tl.store(row + 5, tl.sqrt(1.0 - _power(b2, t)).to(wide))
    tl.store(row + 6, tl.load(hypers + 3).to(wide))


@triton.jit  # type: ignore[untyped-decorator]
def schedule_free_row(hypers: tl.tensor, row: tl.tensor, t: tl.tensor, SWITCHES: tl.constexpr) -> None:
    """That of schedule-free AdamW, of lr, b1, b2, eps, weight decay, warmup; see `weights` in schedule_free.py.

    1 - s*wd*(1-b1), s*wd, b2, 1-b2, sqrt(c2), eps, s, c
    """
    b1, b2 = tl.load(hypers + 1), tl.load(hypers + 2)
    whole = tl.maximum(tl.ceil(tl.load(hypers + 5)), 1.0)
    n = tl.minimum(t, whole)
    part = n / whole
    c = part * part / (n * (n + 1.0) * (2.0 * n + 1.0) / (6.0 * whole * whole) + (t - n))
    wide = row.dtype.element_ty
    decay = tl.load(hypers) * part * tl.load(hypers + 4)
    tl.store(row, (1.0 - decay * (1.0 - b1)).to(wide))
    tl.store(row + 1, decay.to(wide))
    tl.store(row + 2, b2.to(wide))
    tl.store(row + 3, (1.0 - b2).to(wide))
    tl.store(row + 4, tl.sqrt(1.0 - _power(b2, t)).to(wide))
    tl.store(row + 5, tl.load(hypers + 3).to(wide))
    tl.store(row + 6, (tl.load(hypers) * part).to(wide))
    tl.store(row + 7, c.to(wide))


@triton.jit  # type: ignore[untyped-decorator]
def lion_row(hypers: tl.tensor, row: tl.tensor, t: tl.tensor, SWITCHES: tl.constexpr) -> None:
    """Lion's row, of lr, b1, b2, weight decay: decay, lr, b1, 1-b1, b2, 1-b2."""
    lr, b1, b2 = tl.load(hypers), tl.load(hypers + 1), tl.load(hypers + 2)
    wide = row.dtype.element_ty
    tl.store(row, _decay(lr, tl.load(hypers + 3), SWITCHES[0], SWITCHES[1]).to(wide))
    tl.store(row + 1, lr.to(wide))
    tl.store(row + 2, b1.to(wide))
    tl.store(row + 3, (1.0 - b1).to(wide))
    tl.store(row + 4, b2.to(wide))
    tl.store(row + 5, (1.0 - b2).to(wide))


@triton.jit  # type: ignore[untyped-decorator]
def muon_row(hypers: tl.tensor, row: tl.tensor, t: tl.tensor, SWITCHES: tl.constexpr) -> None:
    """Muon's row, of lr, weight decay, momentum, eps: decay, lr, 1-momentum, momentum, eps."""
    lr, momentum = tl.load(hypers), tl.load(hypers + 2)
    wide = row.dtype.element_ty
    tl.store(row, (1.0 - lr * tl.load(hypers + 1)).to(wide))
    tl.store(row + 1, lr.to(wide))
    tl.store(row + 2, (1.0 - momentum).to(wide))
    tl.store(row + 3, momentum.to(wide))
    tl.store(row + 4, tl.load(hypers + 3).to(wide))


@triton.jit  # type: ignore[untyped-decorator]
def sgd_row(hypers: tl.tensor, row: tl.tensor, t: tl.tensor, SWITCHES: tl.constexpr) -> None:
    """SGD's row, of lr, momentum, dampening, decay: lr, momentum, damp, decay; step 1 is not damped, as in torch."""
    lr = tl.load(hypers)
    wide = row.dtype.element_ty
    tl.store(row, lr.to(wide))
    tl.store(row + 1, tl.load(hypers + 1).to(wide))
    tl.store(row + 2, tl.where(t > 1.0, 1.0 - tl.load(hypers + 2), 1.0).to(wide))
    tl.store(row + 3, _decay(lr, tl.load(hypers + 3), SWITCHES[3], False).to(wide))


@triton.jit(do_not_specialize=["n_partials"])  # type: ignore[untyped-decorator]
def row_kernel(
    hypers: tl.tensor,  # max_norm, EMA decay, then the rule's own
    step_ptr: tl.tensor, partials: tl.tensor, n_partials: tl.tensor, scale_ptr: tl.tensor, found_ptr: tl.tensor,
    row: tl.tensor,
    ROW: tl.constexpr, SWITCHES: tl.constexpr,  # a rule's function of its part of the row, and what it switches on
    CLIP: tl.constexpr, GUARD: tl.constexpr, SCALE: tl.constexpr, FOUND: tl.constexpr, ADVANCE: tl.constexpr,
) -> None:  # fmt: skip
    """Advance the step and write the row."""
    t = _settle(hypers, step_ptr, partials, n_partials, scale_ptr, found_ptr, row, CLIP, GUARD, SCALE, FOUND, ADVANCE)
    ROW(hypers + 2, row + OWN, t, SWITCHES)
