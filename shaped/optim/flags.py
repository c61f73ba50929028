"""Switches of torch's classes that choose an implementation: accepted and kept, since ours has one."""

from collections.abc import Mapping
from typing import Any

FLAGS: Mapping[str, Any] = {"foreach": None, "differentiable": False, "fused": None}


def check_flags(group: Mapping[str, Any]) -> None:
    """Refuse the switch that would change what a step means.

    Args:
        group: A param_group, or the defaults of one.

    Raises:
        ValueError: `differentiable` is true, or `fused` and `foreach` both are.
    """
    if group["differentiable"]:
        raise ValueError(
            "differentiable=True is not supported: updates are in place, and autograd cannot pass through them. "
            "Differentiate `reference`, or use torch.optim"
        )
    if group["fused"] and group["foreach"]:
        raise ValueError("fused and foreach cannot both be True")
