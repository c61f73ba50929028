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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from shaped.errors import Goal, ProofError, Unprovable, first_line
from shaped.proof.conditions import Condition
from shaped.proof.isolation import uncompiled
from shaped.proof.keeping import putting_back
from shaped.proof.setting import Setting, checking
from shaped.proof.shelter import Shelter
from shaped.proof.source import place_of_traceback
from shaped.proof.standing import Standing
from shaped.proof.trials import ABSENT, NEGATIVE
from shaped.proof.ways import way_under_way
from shaped.shapes import TensorSpec, Term

_TRIES = 600  # draws of sizes
_ELEMENTS = 2_000_000  # of all tensors together; more would take its time
_VALUES = re.compile(
    r"out of (bounds|range) (for|in|with)|is out of (bounds|range)|between 0 and 1|probabilit|singular"
    rf"|positive.definite|overflow|converge|{NEGATIVE}|monotonic|must be in the range|{ABSENT}"
    r"|elements of source|ZeroDivisionError|Length of all samples|does not match required size"
)


@dataclass(frozen=True)
class Rehearsed:
    """What plain torch makes of a program at some sizes."""

    error: Exception | None
    differs: str  # how the result is not what is declared


def rehearse(
    setting: Setting, names: Sequence[str], static: Mapping[str, int], conditions: Sequence[Condition], seed: int = 0
) -> None:
    """Run the function, and its gradients if it is a loss, at small sizes.

    Raises:
        ProofError: A kernel refuses, or the result is not what is declared.
        Unprovable: It writes into a tensor from outside.
    """
    sizes = draw_sizes(names, static, conditions, seed)
    found = run_for_real(setting, sizes, seed) if sizes is not None else None
    if found is None or sizes is None:
        return
    name, error, way = setting.signature.name, found.error, way_under_way()
    if way is not None and error is not None and way.refuses(error):
        return
    if isinstance(error, RuntimeError | TypeError | IndexError):
        place = place_of_traceback(error.__traceback__)
        if not is_about_values(error) and place is not None:
            goal = Goal(said=first_line(error), sizes=dict(sizes))
            raise ProofError(f"`{name}` is not well-shaped.", place.source(), goal) from None
    elif error is None and found.differs:
        goal = Goal("result", found.differs, sizes=dict(sizes))
        raise ProofError(f"`{name}` does not return what it declares.", None, goal)


def run_for_real(setting: Setting, sizes: Mapping[str, int], seed: int = 0) -> Rehearsed | None:
    """Run on real numbers; None where the tensors would have too many elements, or less than none."""
    shapes = [[int(dim.evaluate(sizes)) for dim in entry.spec.dims] for entry in setting.signature.entries]
    if min((n for shape in shapes for n in shape), default=0) < 0 or sum(map(math.prod, shapes)) > _ELEMENTS:
        return None
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        _values(shape, dtype, generator).to(setting.device).requires_grad_(want)
        for shape, dtype, want in zip(shapes, setting.dtypes, setting.mask, strict=True)
    ]
    shelter, check = Shelter(tensors, seed), checking(partial(_hold, sizes))
    try:
        standing = Standing(setting.held, tensors)
        with (uncompiled(), putting_back(), setting.keeping(), torch.enable_grad(), shelter, check,
              setting.around(), standing):  # fmt: skip
            if setting.strategy is not None:
                setting.differentiate(tensors)
            results = setting.run(tensors)
            if setting.strategy is None and setting.is_loss and results[0].requires_grad:
                torch.autograd.grad(results[0], [tensors[i] for i in setting.wanted], allow_unused=True)
    except Unprovable:
        raise
    except Exception as error:  # torch's, about values, or the user's own
        return Rehearsed(error, "")
    return Rehearsed(None, _differs(results, setting, sizes))


def is_about_values(error: Exception) -> bool:
    """Whether an error proves nothing about shapes."""
    return isinstance(error, LinAlgError) or bool(_VALUES.search(str(error)))


def _hold(sizes: Mapping[str, int], value: Any, spec: TensorSpec) -> None:
    """What `expect` asks within the program."""
    wrong = _compared(value, spec, dict(sizes))
    if wrong:
        raise ValueError(wrong)


def _differs(results: Sequence[Any], setting: Setting, sizes: Mapping[str, int]) -> str:
    """How the results are not what is declared."""
    specs, known = setting.signature.result, dict(sizes)
    if len(results) != len(specs):
        return f"{len(results)} results, declared {len(specs)}"
    differing = (_compared(result, spec, known) for result, spec in zip(results, specs, strict=True))
    return next(filter(None, differing), "")


def _compared(value: Any, spec: TensorSpec, known: dict[str, int]) -> str:
    """How the shape of a value differs from its spec; binds names that only results have."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}, declared {spec}"
    if value.dim() == len(spec.dims):
        known.update({dim.text: n for dim, n in zip(spec.dims, value.shape, strict=True)
                      if dim.is_name and dim.text not in known})  # fmt: skip
    if not all(name in known for dim in spec.dims for name in dim.names):
        return f"{list(value.shape)}, declared {spec}"  # an expression that nothing fixes
    declared = [int(dim.evaluate(known)) for dim in spec.dims]
    return "" if list(value.shape) == declared else f"{list(value.shape)}, declared {spec} = {declared}"


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
