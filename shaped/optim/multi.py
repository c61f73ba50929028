"""Several optimizers as one: each steps its own parameters by its own rule, in one step of a trainer.

They hand their groups over as they are, so a scheduler of one of them, or `set_lr`, still reaches its parameters. A
group says whose it is under the key `optimizer`, and so does a state dict.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from shaped.arguments import checked
from shaped_kernels.rule import Rule

from .base import FusedOptimizer
from .updates import Group, GroupUpdate, parameters_of

KEY = "optimizer"  # of a group: whose it is


class MultiOptimizer(FusedOptimizer):
    """Several of our optimizers over parameters that no two share; a trainer makes it of a list of them.

    `ScalarTrainer(loss, params, optimizer=[AdamW([params.w], lr=1e-3), SGD([params.b], lr=0.1)])`. What is fused
    around a step (`Options`) is one for all, and so is the norm of the gradients that clipping takes.

    Args:
        parts: The optimizers. One made from a proof, as Muon is, leaves to the others what they have.

    Attributes:
        parts: The same.

    Raises:
        ValueError: One is not ours, or has stepped already, two have a parameter in common, or their `Options` differ.
    """

    @checked
    def __init__(self, parts: Sequence[FusedOptimizer]) -> None:
        self._forget_plans()
        self.parts = tuple(parts)
        _refuse(self.parts)
        self.options = self.parts[0].options
        names = _names(self.parts)
        for name, part in zip(names, self.parts, strict=True):
            for group in part.param_groups:
                group[KEY] = name
        self._of = dict(zip(names, self.parts, strict=True))
        groups = [group for part in self.parts for group in part.param_groups]
        if not all("param_names" in group for group in groups):
            for group in groups:  # torch has names for all of an optimizer's groups, or for none
                group.pop("param_names", None)
        Optimizer.__init__(self, [{k: v for k, v in group.items() if k != "param_names"} for group in groups], {})
        self.param_groups = groups
        self._hand_back()

    def _hand_back(self) -> None:
        """Let each part have its groups and its parameters' state as they are now."""
        for name, part in self._of.items():
            part.param_groups = [group for group in self.param_groups if group.get(KEY) == name]
            part.state = self.state
            part._forget_plans()

    def _part(self, group: Group) -> FusedOptimizer:
        part = self._of.get(group.get(KEY, ""))
        if part is None:
            known = ", ".join(map(repr, self._of))
            raise ValueError(f"a group says {KEY} = {group.get(KEY)!r}; it is one of {known}")
        return part

    def rule_of(self, group: Group) -> Rule:
        """The rule of the optimizer whose group it is."""
        return self._part(group).rule_of(group)

    def rule_for(self, update: GroupUpdate) -> Rule:
        """As its optimizer has it, whose `reference` may be said anew."""
        return self._part(update.group).rule_for(update)

    def _check_group(self, group: Group) -> None:
        part = self._part(group)
        missing = [name for name in part.defaults if name not in group and name not in part._optional_keys]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        part._check_group({**part.defaults, **group})

    @property
    def _optional_keys(self) -> dict[str, Any]:
        return {"differentiable": False}  # torch puts it into the defaults of what is copied

    def add_param_group(self, param_group: Group) -> None:
        """Refuse: which optimizer's it would be is not said. Raises ValueError."""
        if KEY not in param_group:
            raise ValueError("give the group to one of the optimizers, before the trainer is made of them")
        super().add_param_group(param_group)

    def adopt(self, update: GroupUpdate) -> None:
        """Put what an update made into `state`; the parts have stepped too, as schedulers want to know."""
        super().adopt(update)
        for part in self.parts:
            part._opt_called = True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts, "_of": self._of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "parts" in state:  # a copy, whose parts are its own
            self.parts = tuple(map(copy.copy, self.parts))
            self._of = dict(zip(self._of, self.parts, strict=True))
        self._hand_back()


def without(optimizer: FusedOptimizer, params: Sequence[Tensor]) -> None:
    """Take parameters out of an optimizer that has not stepped."""
    gone = set(map(id, params))
    for group in optimizer.param_groups:
        left = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][i] for i in left]
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    optimizer._forget_plans()


def _names(parts: Sequence[FusedOptimizer]) -> list[str]:
    """The class of each, with a number where there are several: "AdamW", "AdamW 2"."""
    seen: Counter[str] = Counter()
    found = []
    for part in parts:
        kind = type(part).__name__
        seen[kind] += 1
        found.append(kind if seen[kind] == 1 else f"{kind} {seen[kind]}")
    return found


def _refuse(parts: Sequence[FusedOptimizer]) -> None:
    if len(parts) < 2:
        raise ValueError(f"optimizer: a list of {len(parts)}; give the optimizer itself, or several")
    owner: dict[int, str] = {}
    names = _names(parts)
    for name, part in zip(names, parts, strict=True):
        if part.state:
            raise ValueError(
                f"optimizer: {name} has stepped already; a list is of new ones, whose state is loaded later"
            )
        if part.options != parts[0].options:
            raise ValueError(
                f"optimizer: {names[0]} has {parts[0].options} and {name} has {part.options}; what is fused around a "
                "step is one for all"
            )
        for p in parameters_of(part.param_groups):
            if id(p) in owner:
                raise ValueError(
                    f"optimizer: {owner[id(p)]} and {name} share a parameter of shape {list(p.shape)}; each has its own"
                )
            owner[id(p)] = name
