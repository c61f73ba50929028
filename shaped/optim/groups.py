"""A group as it is given: torch's switches that choose an implementation, names, and parameters that can be moved."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shaped.params import ParamList

from .updates import Group

# Accepted and kept, since ours has one implementation.
FLAGS: Mapping[str, Any] = {"foreach": None, "differentiable": False, "fused": None}


def listed(params: Any) -> list[Any]:
    """Parameters as torch.optim takes them, in a list: tensors, named tensors or groups. A ParamList has names.

    Raises:
        ValueError: They are something else; what is named.
    """
    if isinstance(params, ParamList):  # its names go with its moments, so that a state dict is loaded by name
        return list(zip(params.names, params, strict=True))
    if not isinstance(params, Iterable) or isinstance(params, Tensor | str | bytes | Mapping):
        alone = ": pass [tensor]" if isinstance(params, Tensor) else ""
        raise ValueError(f"params is of type {type(params).__name__}; it is tensors, named tensors or groups{alone}")
    found = list(params)
    for i, one in enumerate(found):
        named = isinstance(one, tuple) and [*map(type, one[:1])] == [str] and len(one) == 2
        if not isinstance(one[1] if named else one, Tensor) and not (isinstance(one, dict) and "params" in one):
            raise ValueError(
                f"params[{i}] is of type {type(one).__name__}; it is a tensor, a name with a tensor, or a group, "
                "a dict with `params`"
            )
    return found


def refuse_no_sequence(name: str, value: Any) -> None:
    """Refuse what are no tensors in order, with ValueError."""
    if type(value) in (list, tuple):
        return
    if not isinstance(value, Sequence | ParamList) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is of type {type(value).__name__}; it is a sequence of tensors")


def refuse_other(scheduled: Any, stepped: Optimizer | None) -> None:
    """Raise ValueError where what a scheduler moves is no group of the optimizer that steps."""
    if stepped is None or not isinstance(scheduled, Optimizer):
        return
    if not {id(group) for group in scheduled.param_groups} & {id(group) for group in stepped.param_groups}:
        raise ValueError(
            f"the schedule moves the lr of another {type(scheduled).__name__} than the one that the trainer steps "
            f"with, whose lr would stay as it is: make it over trainer.optimizer, a {type(stepped).__name__}"
        )


def read_group(group: Any) -> Group:
    """One group, its parameters in a list.

    Raises:
        ValueError: It is none, or its parameters are something else, or have no order.
    """
    if not isinstance(group, dict) or "params" not in group:
        raise ValueError(f"param_group is of type {type(group).__name__}; it is a dict with `params`")
    params = group["params"]
    if isinstance(params, set | frozenset):
        raise ValueError("params is a set, which has no order to save state by: pass a list")
    return {**group, "params": [params] if isinstance(params, Tensor) else listed(params)}


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
    params = group["params"]
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
