"""What an updated model must show before it becomes a version. A validator answers None, or why not."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from shaped.arguments import checked
from shaped.params import ParamList


@dataclass(frozen=True)
class Candidate:
    """A model before and after an update, and its loss on batches that the update did not see."""

    before: ParamList
    after: ParamList
    loss_before: float
    loss_after: float


Validator = Callable[[Candidate], str | None]


@checked
@dataclass(frozen=True)
class LossDelta:
    """Accept where the loss on held-out batches grew by no more than `most`, in the loss's unit; 0 lets none."""

    most: float = 0.0

    def __call__(self, candidate: Candidate) -> str | None:
        """None, or by how much the loss grew."""
        delta = candidate.loss_after - candidate.loss_before
        if delta <= self.most:  # a NaN is not
            return None
        before, after = candidate.loss_before, candidate.loss_after
        return f"the loss went from {before:.4g} to {after:.4g}, by more than {self.most:g}"


@checked
@dataclass(frozen=True)
class WeightNorm:
    """Accept where the parameters' 2-norm is at most `most`, and they moved by at most `change` of their norm.

    Over floating-point entries that ask for gradients, in float64.
    """

    most: float = math.inf
    change: float = math.inf

    def __call__(self, candidate: Candidate) -> str | None:
        """None, or the norm that is too large."""
        pairs = [(a, b) for a, b in zip(candidate.before, candidate.after, strict=True) if b.requires_grad]
        with torch.no_grad():
            before = math.sqrt(sum(float(a.double().square().sum()) for a, _ in pairs))
            after = math.sqrt(sum(float(b.double().square().sum()) for _, b in pairs))
            moved = math.sqrt(sum(float((b.double() - a.double()).square().sum()) for a, b in pairs))
        if not after <= self.most:
            return f"the parameters' norm is {after:.4g}, above {self.most:g}"
        if self.change < math.inf and not moved <= self.change * before:  # inf*0 is NaN, and a model may start at 0
            return f"the parameters moved by {moved:.4g}, more than {self.change:g} of their norm {before:.4g}"
        return None


class Composite:
    """Accept where every validator does; else all that object are heard."""

    @checked
    def __init__(self, *validators: Validator) -> None:
        self.validators = validators

    def __call__(self, candidate: Candidate) -> str | None:
        """None, or what each has to say."""
        said = [answer for validator in self.validators if (answer := validator(candidate)) is not None]
        return "; ".join(said) or None
