"""Cautious updates and decay: flags that several rules have, in plain torch.

    u <- u * k / max(mean(k), 1e-3)        k = u*g > 0: an element moves only where the update agrees with its gradient
    p <- p - lr*wd*p   where u*p >= 0      decay only where the update itself shrinks the element

The mean is that of a whole tensor, so cautious updates are not elementwise.
Sources: Liang et al. 2024, arXiv:2411.16085 (the mean and its floor as in the authors' code); Chen et al. 2025,
arXiv:2510.12402.
"""

import torch
from torch import Tensor

from .scalars import Scalar

FLOOR = 1e-3  # of the share of elements that move, by whose inverse they are scaled


def agreeing(u: Tensor, g: Tensor) -> Tensor:
    """An update without the elements that its gradient disagrees with, the others scaled up for it.

    Args:
        u: The update, which is subtracted.
        g: The gradient.
    """
    if not u.numel():
        return u
    keep = (u * g > 0).to(u.dtype)
    return u * (keep / keep.mean().clamp(min=FLOOR))


def decayed(p: Tensor, u: Tensor, decay: Scalar) -> Tensor:
    """A parameter with the share `decay` removed where the update, which is subtracted, shrinks it too."""
    return torch.where(u * p >= 0, p - decay * p, p)
