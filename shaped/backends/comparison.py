"""Eager against compiled on one batch: gradients, a step on copies, and a verdict against what rounding can do."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shaped.backends.compiled import Compiled
from shaped.backends.eager import Eager
from shaped.backends.rounding import draws_at_random, rounding_bounds
from shaped.optim import FusedOptimizer


@dataclass(frozen=True)
class Comparison:
    """Two backends on one batch.

    Attributes:
        loss: Relative difference of the loss.
        gradients: Of each parameter's gradient, max|a - b| / max|a|.
        parameters: Of each parameter after a step, in the same unit.
        bounds: How far rounding can move two backends apart, for each parameter after a step and for `loss`, in the
            same unit; derived in `rounding.py` from the dtypes, the lengths of the sums and this batch.
    """

    loss: float
    gradients: Mapping[str, float]
    parameters: Mapping[str, float]
    bounds: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest relative difference of the loss and the gradients."""
        return max(self.loss, *self.gradients.values())

    @property
    def beyond(self) -> tuple[str, ...]:
        """What differs by more than rounding explains."""
        found = {"loss": self.loss, **self.parameters}
        return tuple(name for name, difference in found.items() if not difference <= self.bounds[name])

    @property
    def agree(self) -> bool:
        """Whether every difference after a step is within its bound."""
        return not self.beyond

    def __str__(self) -> str:
        width = max(map(len, [*self.parameters, "loss"]))
        lines = [f"  {'':<{width}}  gradient  after a step  bound"]
        rows = {"loss": ("", self.loss), **{n: (f"{self.gradients[n]:.1e}", d) for n, d in self.parameters.items()}}
        for name, (gradient, difference) in rows.items():
            mark = "   beyond" if name in self.beyond else ""
            lines.append(f"  {name:<{width}}  {gradient:<8}  {difference:.1e}       {self.bounds[name]:.1e}{mark}")
        verdict = "the same up to rounding" if self.agree else f"not the same: {', '.join(self.beyond)}"
        return "\n".join([*lines, f"  {verdict}"])


def compare(eager: Eager, compiled: Compiled, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> Comparison:
    """One pass and one step on each backend from here; the steps run on copies.

    Raises:
        ValueError: The loss draws at random, so no two passes agree; or something is not finite.
    """
    program = eager.program
    if draws_at_random(program.admit(inputs).graph):
        raise ValueError(
            "the loss draws at random (dropout?), and each backend draws its own numbers: compare with the module in "
            "eval(), or with a rate of 0"
        )
    loss, mine, _ = eager.loss_and_backward(inputs)
    _, others, _ = compiled.loss_and_backward(inputs)
    if not all(bool(t.isfinite().all()) for t in (loss, *mine)):
        raise ValueError(
            "the loss or a gradient is not finite, so a step changes nothing and there is nothing to compare"
        )
    names = program.params.names
    zero = dict.fromkeys(names, 0.0)  # frozen, or not used by the loss
    used = [names[i] for i in program.used]
    gradients = zero | {n: relative(a, b) for n, a, b in zip(used, mine, others, strict=True)}
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in program.tensors]
    memo = {id(t): c for t, c in zip(program.tensors, copies, strict=True)}
    with torch.no_grad():
        loss, after = eager.after_step(inputs, copy.deepcopy(optimizer, memo), copies)
    other_loss, others = compiled.after_step(inputs, optimizer)
    graph, arguments = compiled.step_graph(inputs, optimizer)
    loss_bound, moves = rounding_bounds(graph, arguments, len(names))
    bounds = {name: 2 * move / (_scale(t) or 1.0) for name, t, move in zip(names, after, moves, strict=True)}
    return Comparison(
        relative(loss, other_loss),
        gradients,
        {name: relative(a, b) for name, a, b in zip(names, after, others, strict=True)},
        {**bounds, "loss": 2 * loss_bound / (_scale(loss) or 1.0)},
    )


def relative(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a|; the difference itself where all of a is zero."""
    difference = (a.detach().double() - b.detach().double()).abs().max().item() if a.numel() else 0.0
    return difference / (_scale(a) or 1.0)


def _scale(t: Tensor) -> float:
    return t.detach().double().abs().max().item() if t.numel() else 0.0
