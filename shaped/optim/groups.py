"""A group as it is given: torch's switches that choose an implementation, names, and parameters that can be moved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .updates import Group

# Accepted and kept, since ours has one implementation.
FLAGS: Mapping[str, Any] = {"foreach": None, "differentiable": False, "fused": None}


def check_flags(group: Mapping[str, Any]) -> None:
    """Refuse the switch that would change what a step means.

    Args:
        group: A param_group, or the defaults of one.

    Raises:
        ValueError: `differentiable` is true, or `fused` and `foreach` both are.
    """
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True is not supported: updates are in place, and autograd cannot pass through them. "
            "Differentiate `reference`, or use torch.optim"
        )
    if group.get("fused") and group.get("foreach"):
        raise ValueError("fused and foreach cannot both be True")


def named_like(groups: Sequence[Group], group: Group) -> Group:
    """A new group with names, where the groups before it have names and it has none."""
    if not groups or "param_names" not in groups[0]:
        return group
    params = [group["params"]] if isinstance(group.get("params"), Tensor) else list(group.get("params", ()))
    if any(isinstance(p, tuple) for p in params):
        return group
    here = f"param_groups[{len(groups)}]"
    return {**group, "params": [(f"{here}[{i}]", p) for i, p in enumerate(params)]}


def unsupported(params: Sequence[Tensor]) -> list[str]:
    """What cannot be optimized here, and why."""
    faults = []
    for i, p in enumerate(params):
        if p.is_complex():
            faults.append(
                f"params[{i}]: complex parameters are not supported, got {p.dtype}: optimize torch.view_as_real of it"
            )
        elif p.layout is not torch.strided:
            faults.append(f"params[{i}]: sparse parameters are not supported, got {p.layout}")
    return faults
