"""How far rounding alone can carry a training run: the run in float64, with every result made wrong by a rounding.

Monte Carlo arithmetic (Parker 1997): whatever an operation returns is multiplied by 1 + e, |e| <= eps of the dtype in
question, drawn anew each time. The spread of a few such runs about the exact one is the error to expect from any order
of the same operations in that dtype, with all that training makes of it: a model that cancels has a wide spread, and
Adam's first step turns a gradient of nothing but rounding into a step of lr.

This is not shaped/backends/rounding.py and shares no line with it: that bound is derived from a step's graph, and this
one knows neither graph nor trainer. A fault of the one is seen by the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RUNS = 4
# The largest of four runs is itself a draw, and one fused operation (a softmax, a sum of up to 40 products) rounds more
# than once. Over the corpus a backend takes up to a quarter of its bound, and 0.54 with one thread, where oneDNN
# computes small convolutions by Winograd's algorithm, which cancels.
MARGIN = 16.0
# What only picks values is exact; the gradient of a maximum compares its result with what it was taken of.
EXACT = ("amax", "amin", "max", "min", "index_reduce", "scatter_reduce", "index_select", "index", "gather", "clone",
         "embedding", "where", "relu", "neg", "cat", "stack", "sort", "topk")  # fmt: skip
# Inside, log_softmax adds to 1 and takes the logarithm, so its error is that of 1 where its result is near 0.
NEAR_ONE = ("_log_softmax",)

Train = Callable[[], Sequence[Tensor]]


class Rounding(TorchDispatchMode):
    """Within it, every float64 result is off by a random relative amount of up to `eps`."""

    def __init__(self, eps: float, seed: int) -> None:
        super().__init__()
        self.eps = eps
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        several = results if isinstance(results, tuple) else (results,)
        name = func._schema.name.removeprefix("aten::")
        if name in EXACT:
            return results
        scale = 1.0 if name in NEAR_ONE else 0.0
        rounded = [self._round(*pair, scale) for pair in zip(several, func._schema.returns, strict=False)]
        return type(results)(rounded) if isinstance(results, tuple) else rounded[0] if rounded else results

    def _round(self, value: Any, declared: Any, scale: float) -> Any:
        written = declared.alias_info is not None and declared.alias_info.is_write
        view = declared.alias_info is not None and not written
        if not isinstance(value, Tensor) or value.dtype != torch.float64 or view:
            return value
        if value._is_zerotensor():  # a tangent that is 0 has no memory, and some operations want some
            return torch.zeros(value.shape, dtype=value.dtype)
        if written and value.dim() == 0:  # the step count of torch.optim, which is exact
            return value
        uniform = torch.rand(value.shape, generator=self.generator, dtype=torch.float64)
        error = self.eps * (2 * uniform - 1)
        return value.mul_(1 + error) if written else value * (1 + error) + error * scale  # and -inf stays -inf


def spread(train: Train, eps: float) -> tuple[Sequence[Tensor], list[float]]:
    """The exact results of a run in float64, and for each the largest absolute error that roundings of `eps` allow.

    Args:
        train: Trains in float64 from the same start at each call: every loss, then the parameters.
    """
    exact = train()
    bounds = [eps * value.abs().max().item() for value in exact]  # of the result itself
    for seed in range(RUNS):
        with Rounding(eps, seed):
            noisy = train()
        bounds = [max(b, difference(a, c)) for b, a, c in zip(bounds, exact, noisy, strict=True)]
    return exact, [MARGIN * bound for bound in bounds]


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where one is no number."""
    return (a.double() - b.double()).abs().nan_to_num(nan=torch.inf).max().item()
