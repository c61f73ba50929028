"""Optimizers of torch and of other libraries, stepped on the eager backend from gradients that are given.

They read `.grad`, so it is theirs for the length of a step: set for the parameters that move, absent for all others;
what the user has in it is there again afterwards. What they compute is theirs: it is neither proved nor compiled.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from .base import FusedOptimizer
from .options import Options
from .table import OPTIMIZERS
from .updates import CheckedRules, UpdatePlan, parameters_of


class Foreign(FusedOptimizer):
    """Another library's optimizer behind the way in that needs no `.grad`.

    Args:
        optimizer: Whose groups, state and step these are.

    Raises:
        ValueError: Its step asks for a closure that computes the loss again and again, as L-BFGS does.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.inner, self.options = optimizer, Options()
        parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if needed := [p.name for p in parameters if p.default is p.empty and p.kind in plain]:
            raise ValueError(
                f"the step of {name_of(optimizer)} takes a {needed[0]} that computes the loss again and again, and a "
                "trainer makes one pass a batch: call it yourself, with trainer.loss_and_backward"
            )

    @property
    def refusal(self) -> str:
        """Why it cannot be compiled, and what to do."""
        ours = counterpart(self.inner) or "one of shaped.optim"
        return f"the step of {name_of(self.inner)} cannot be part of a compiled graph: take {ours}, or backend='eager'"

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Its own."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Its own."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    def read(self, params: Sequence[Tensor] | None = None, laid_out: bool = False) -> CheckedRules:
        """Nothing: it reads its groups itself."""
        return CheckedRules(UpdatePlan(None, []), [])

    def ahead(self, params: Sequence[Tensor] | None = None, readings: CheckedRules | None = None) -> Any:
        """Parameters stay where they are."""
        return nullcontext()

    def update(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor] | None = None,
        found_inf: Tensor | None = None,
        readings: CheckedRules | None = None,
        max_norm: float | None = None,
        norm: Tensor | None = None,
    ) -> None:
        """Take its step from given gradients, clipped as torch clips; `found_inf` is read by the host."""
        everyone = list(parameters_of(self.param_groups))
        if found_inf is not None and found_inf.item():
            return
        given = grads if max_norm is None else [g.clone() for g in grads]
        with _in_grad(everyone, dict(zip(map(id, params or everyone), given, strict=True))):
            if max_norm is not None:
                self.grad_norm = get_total_norm(given) if norm is None else norm
                clip_grads_with_norm_([p for p in everyone if p.grad is not None], max_norm, self.grad_norm)
            self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        """Its own."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As its own. Raises what that raises."""
        self.inner.load_state_dict(dict(state_dict))

    def trial(self) -> "Foreign":
        """A copy whose state may be loaded to see whether it fits.

        torch's own copies lack what a class keeps beside groups and state, which a `load_state_dict` of its own needs.
        """
        if type(self.inner).load_state_dict is Optimizer.load_state_dict:
            return copy.copy(self)
        memo: dict[int, Any] = {id(p): p for p in parameters_of(self.param_groups)}
        made = object.__new__(type(self.inner))
        memo[id(self.inner)] = made
        vars(made).update({name: copy.deepcopy(value, memo) for name, value in vars(self.inner).items()})
        return Foreign(made)

    def __copy__(self) -> "Foreign":
        return Foreign(copy.copy(self.inner))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Foreign":
        return Foreign(copy.deepcopy(self.inner, memo))

    def __repr__(self) -> str:
        return repr(self.inner)


@contextmanager
def _in_grad(params: Sequence[Tensor], gradients: Mapping[int, Tensor]) -> Iterator[None]:
    before = [p.grad for p in params]
    try:
        for p in params:
            p.grad = gradients.get(id(p))
        yield
    finally:
        for p, gradient in zip(params, before, strict=True):
            p.grad = gradient


def own(optimizer: FusedOptimizer) -> Optimizer:
    """What the user gave."""
    return optimizer.inner if isinstance(optimizer, Foreign) else optimizer


def name_of(optimizer: object) -> str:
    """Its class, with the package where it is another library's: `torch.optim.AdamW`."""
    kind = type(optimizer)
    package = "torch.optim" if kind.__module__.startswith("torch.optim.") else kind.__module__
    return f"{package}.{kind.__qualname__}"


def counterpart(optimizer: Optimizer) -> str | None:
    """Ours of the same name, as one writes it; None where there is none."""
    names = {kind.__name__ for kind in OPTIMIZERS.values()} | {"Muon"}
    return f"shaped.optim.{type(optimizer).__name__}" if type(optimizer).__name__ in names else None
