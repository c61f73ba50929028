"""One step on several ranks: what a rank's own pass gave, and what all agreed on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Passed:
    """A pass of this rank, with gradients summed over all.

    Attributes:
        loss: Of this rank's batch.
        gradients: Of the used parameters, samples*gradient summed over ranks, in the dtype of sums.
        others: All further outputs of the graph.
        fine: Whether this rank's own gradients were finite.
        right: Whether all values could be taken; None where nothing was looked at.
    """

    loss: Tensor
    gradients: list[Tensor]
    others: list[Tensor]
    fine: Tensor
    right: Tensor | None


@dataclass
class AgreedStep:
    """A step as the ranks agreed on it.

    Attributes:
        loss: The mean over all samples.
        gradients: Likewise, in the parameters' dtypes.
        samples: How many there are on all ranks.
        finite, right: Whether everything is finite on all ranks, and every batch could be taken.
        totals: What was summed; `Exchange.read`.
    """

    loss: Tensor
    gradients: list[Tensor]
    samples: Tensor
    finite: Tensor
    right: Tensor
    totals: Tensor
