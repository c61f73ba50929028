"""Orthogonal factors of many matrices at once: Newton-Schulz in products of batches, one chain for each shape.

    x <- m / |m|_F                        so that no singular value is above 1
    x <- a*x + (b*(x x^T) + c*(x x^T)^2) x          steps times

Singular values s go to a*s + b*s^3 + c*s^5 each time; singular vectors stay. With the coefficients of Muon five steps
bring them to about 0.7 to 1.2, and not to 1; with (15/8, -5/4, 3/8) they converge to 1, the polar factor.

Matrices lie on their side, so that x x^T is of the shorter one, and all of one shape are one batch: [n, short, long].
A step is 2*n*short^2*(2*long + short) multiplications and additions; where long >= 2*short and products are not rounded
to bfloat16, five steps are 2*n*short^2*(2*long + 17*short), since together they are a polynomial of x x^T. In bfloat16
on a GPU, in float32 on a CPU, and float64 stays, unless it is said.

Source: Jordan 2024, kellerjordan.github.io/posts/muon; Bernstein & Newhouse 2024, arXiv:2409.20325.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
MUON: Coefficients = (3.4445, -4.7750, 2.0315)  # the steepest at zero


def polar_dtype(tensor: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """What products of such a tensor are computed in: what is said, or what suits it."""
    if dtype is not None:
        return dtype
    if tensor.dtype == torch.float64:
        return torch.float64
    return torch.float32 if tensor.device.type == "cpu" else torch.bfloat16


def orthogonal(
    matrices: Tensor,
    coefficients: Coefficients = MUON,
    steps: int = 5,
    eps: float | Tensor = 1e-7,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Nearly orthogonal factors of a batch of matrices.

    Args:
        matrices: [n, rows, columns], any floating dtype.
        coefficients: (a, b, c) above.
        steps: How many times.
        eps: The least norm that a matrix is divided by.
        dtype: What products are computed in, if not in `polar_dtype`.

    Returns:
        [n, rows, columns], in the dtype that products are computed in (`polar_dtype`).
    """
    upright = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if upright else matrices).to(polar_dtype(matrices, dtype))
    x = iterate((x / norms(x, eps)).to(x.dtype), coefficients, steps)
    return x.mT if upright else x


def norms(matrices: Tensor, eps: float | Tensor) -> Tensor:
    """What matrices [n, rows, columns] are divided by before `iterate`: [n, 1, 1], in float32 at least."""
    wide = torch.promote_types(matrices.dtype, torch.float32)
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=wide).clamp(min=eps)


def iterate(x: Tensor, coefficients: Coefficients = MUON, steps: int = 5, *, reuse: bool = False) -> Tensor:
    """All steps, of matrices [n, short, long] with norms of at most 1.

    Args:
        reuse: Products may be written into `x`, in turns with a second block of its size; for what is not traced.
    """
    a, b, c = coefficients
    if x.shape[-1] >= 2 * x.shape[-2] and x.dtype != torch.bfloat16:
        return torch.bmm(_polynomial(torch.bmm(x, x.mT), coefficients, steps), x)
    n, short, _ = x.shape
    spare, gram, factor = (torch.empty_like(x), *x.new_empty(2, n, short, short)) if reuse else (None, None, None)
    for _ in range(steps):
        # Written out, since memory that is new each time costs as much as the smaller products.
        gram = torch.bmm(x, x.mT, out=gram) if reuse else torch.bmm(x, x.mT)
        by = torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        by.diagonal(dim1=-2, dim2=-1).add_(a)
        x, spare = torch.bmm(by, x, out=spare), x if reuse else None
    return x


def _polynomial(gram: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """What `x` is multiplied with in all steps together: a polynomial of x x^T, so that `long` enters twice only.

    Each step multiplies x with q = a + b*G + c*G^2, and so G = x x^T with q on both sides.
    """
    a, b, c = coefficients
    total: Tensor | None = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        total = factor if total is None else torch.bmm(factor, total)
        if step < steps - 1:
            gram = torch.bmm(factor, torch.bmm(gram, factor))
    assert total is not None
    return total


def chains(batches: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[tuple[torch.dtype, list[int]]]:
    """Which batches [n, rows, columns] have matrices of one shape, standing or lying, and their products' dtype."""
    found: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for i, batch in enumerate(batches):
        rows, columns = batch.shape[-2:]
        found.setdefault((min(rows, columns), max(rows, columns), polar_dtype(batch, dtype)), []).append(i)
    return [(kind, members) for (_, _, kind), members in found.items()]


def orthogonal_list(
    batches: Sequence[Tensor],
    scales: Sequence[float],
    coefficients: Coefficients = MUON,
    steps: int = 5,
    eps: float | Tensor = 1e-7,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The same for batches of several shapes: those of one shape, standing or lying, are one chain of products.

    Args:
        batches: [n, rows, columns] each.
        scales: What each result is multiplied with.
        dtype: What products are computed in, if not in `polar_dtype`.

    Returns:
        One for each, of its shape.
    """
    made: list[Tensor] = list(batches)
    for kind, members in chains(batches, dtype):
        flat = [lying(batches[i]).to(kind) for i in members]
        together = orthogonal(torch.cat(flat) if len(flat) > 1 else flat[0], coefficients, steps, eps, kind)
        parts = together.split([len(batches[i]) for i in members])
        if len({scales[i] for i in members}) == 1:
            parts = (together * scales[members[0]]).split([len(batches[i]) for i in members])
        else:
            parts = tuple(part * scales[i] for i, part in zip(members, parts, strict=True))
        for i, part in zip(members, parts, strict=True):
            rows, columns = batches[i].shape[-2:]
            made[i] = part.mT if rows > columns else part
    return made


def lying(batch: Tensor) -> Tensor:
    """Matrices on their side: no more rows than columns."""
    return batch.mT if batch.shape[-2] > batch.shape[-1] else batch
