"""One run for real, at small sizes: torch's kernels check more than its shape functions do.

A softmax of integers, an index_add of another dtype: the shape functions let it pass and the kernels refuse. So a proof
ends with a run on real numbers at sizes that satisfy its conditions. What depends on values (a matrix that is not
positive definite, an index out of range, an integer divided by zero) proves nothing and is let pass.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from shaped.errors import Goal, ProofError, first_line
from shaped.proof.conditions import Condition
from shaped.proof.setting import Setting
from shaped.proof.source import place_of_traceback
from shaped.shapes import Term

_TRIES = 600  # draws of sizes
_ELEMENTS = 2_000_000  # of all tensors together; more would take its time
_VALUES = re.compile(
    r"out of (bounds|range) (for|in|with)|is out of (bounds|range)|between 0 and 1|probabilit|singular"
    r"|positive.definite|overflow|converge|non-?negative|monotonic|must be in the range"
    r"|elements of source|ZeroDivisionError"
)


def rehearse(
    setting: Setting, names: Sequence[str], static: Mapping[str, int], conditions: Sequence[Condition], seed: int = 0
) -> None:
    """Run the function, and its gradients if it is a loss, at small sizes.

    Raises:
        ProofError: A kernel refuses, or the result is not what is declared.
    """
    sizes = draw_sizes(names, static, conditions, seed)
    if sizes is None:
        return
    shapes = [[int(dim.evaluate(sizes)) for dim in entry.spec.dims] for entry in setting.signature.entries]
    if min((n for shape in shapes for n in shape), default=0) < 0 or sum(map(math.prod, shapes)) > _ELEMENTS:
        return
    name = setting.signature.name
    with torch.random.fork_rng(devices=[] if setting.device.type == "cpu" else [setting.device]):
        generator = torch.Generator().manual_seed(seed)
        tensors = [
            _values(shape, dtype, generator).to(setting.device).requires_grad_(want)
            for shape, dtype, want in zip(shapes, setting.dtypes, setting.mask, strict=True)
        ]
        try:
            with setting.keeping(), torch.enable_grad(), setting.around():
                if setting.strategy is not None:
                    setting.differentiate(tensors)
                results = setting.run(tensors)
                if setting.strategy is None and setting.is_loss and results[0].requires_grad:
                    torch.autograd.grad(results[0], [tensors[i] for i in setting.wanted], allow_unused=True)
        except (RuntimeError, TypeError, IndexError) as error:
            place = place_of_traceback(error.__traceback__)
            said = first_line(error)
            if type(error).__name__ == "LinAlgError" or place is None or _VALUES.search(str(error)):
                return
            goal = Goal(said=said, sizes=dict(sizes))
            raise ProofError(f"`{name}` is not well-shaped.", place.source(), goal) from None
        except Exception:  # about values, or the user's own
            return
    for result, spec in zip(results, setting.signature.result, strict=False):
        known = all(n in sizes for dim in spec.dims for n in dim.names)
        declared = [int(dim.evaluate(sizes)) for dim in spec.dims] if known else list(result.shape)
        if list(result.shape) != declared:
            goal = Goal("result", f"{list(result.shape)}, declared {spec} = {declared}", sizes=dict(sizes))
            raise ProofError(f"`{name}` does not return what it declares.", None, goal)


def draw_sizes(
    names: Sequence[str], static: Mapping[str, int], conditions: Sequence[Condition], seed: int = 0
) -> dict[str, int] | None:
    """Small sizes, mostly distinct, that satisfy the conditions; None if none were found."""
    generator = random.Random(seed)
    free = [name for name in names if name not in static]
    for attempt in range(_TRIES):
        top = 2 + len(free) if attempt < _TRIES // 3 else 24
        sizes = dict(static) | dict(zip(free, (generator.randint(2, 1 + top) for _ in free), strict=True))
        if attempt < _TRIES // 3:
            sizes |= dict(zip(free, generator.sample(range(2, 2 + top), len(free)), strict=True))
        for condition in conditions:
            match condition.term:
                case Term("==", (Term("%", (Term("name", (name,)), by)), rest)) if name in free:
                    with suppress(ArithmeticError, ValueError):
                        sizes[name] = by.evaluate(sizes) * generator.randint(1, 2) + rest.evaluate(sizes)
                case Term("==", (Term("name", (name,)), other)) if name in free and not condition.holds(sizes):
                    with suppress(ArithmeticError, ValueError):
                        sizes[name] = int(other.evaluate(sizes))
        if all(condition.holds(sizes) for condition in conditions):
            return {name: sizes[name] for name in names}
    return None


def _values(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Floats in (0, 1), zeros for integers (an index into anything), true booleans."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(shape, generator=generator).clamp_min(1e-3).to(dtype)
    return torch.ones(shape, dtype=dtype) if dtype is torch.bool else torch.zeros(shape, dtype=dtype)
