"""DTensor parameters: an update is elementwise, so each rank moves its own shard; only the norm is shared."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sharded(t: Tensor) -> bool:
    """Say whether a tensor is a DTensor; nothing is imported to find out."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> Any:
    """This rank's part of a DTensor, which may be empty; any other tensor itself."""
    if not sharded(t):
        return t
    part = t.to_local()
    return part.wait() if hasattr(part, "wait") else part


def local_gradient(p: Any, g: Any) -> Any:
    """This rank's part of a gradient, laid out over the ranks as its parameter.

    Raises:
        ValueError: Only one of the two is a DTensor, or their shapes differ.
    """
    if not sharded(p):
        return local(g)
    if not sharded(g):
        raise ValueError(
            f"a DTensor parameter of shape {tuple(p.shape)} needs a DTensor gradient, got {type(g).__name__}"
        )
    if g.shape != p.shape:
        raise ValueError(f"a gradient has shape {tuple(g.shape)}, its DTensor parameter {tuple(p.shape)}")
    if g.placements != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    return local(g)


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients over all ranks, on every rank: 0-dim."""
    norms = [torch.linalg.vector_norm(g) for g in grads]
    whole = [norm.full_tensor() if sharded(norm) else norm for norm in norms]  # type: ignore[operator]
    return torch.linalg.vector_norm(torch.stack([norm.to(whole[0].device, torch.float32) for norm in whole]))
