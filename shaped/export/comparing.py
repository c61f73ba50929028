"""An exported program held against the function it was made of, at several sizes and on random numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shaped.errors import ExportError
from shaped.export.sizes import Sizes, others
from shaped.export.subject import Subject


@dataclass(frozen=True)
class Compared:
    """At which sizes of the free names two programs were compared, and their largest relative difference."""

    sizes: tuple[dict[str, int], ...]
    difference: float


def hold(
    found: Subject,
    first: Sizes,
    fits: Callable[[Sizes], bool],
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    what: str,
) -> Compared:
    """Run both at the first sizes and at others.

    Raises:
        ExportError: They differ by more than rounding can do, or one fails where the other does not.
    """
    compared: list[dict[str, int]] = []
    largest = 0.0
    for sizes in others(found.proof, found.known, found.free, fits, first):
        inputs = random_inputs(found, sizes)
        expected = _expected(found, inputs)
        if expected is None:  # the function itself fails on such values: an index that is out of range
            continue
        at = ", ".join(f"{name} = {sizes[name]}" for name in found.free) or "its one size"
        try:
            got = run(inputs)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _differs(found, sizes, f"{what} fails at {at}: {reason}") from None
        for name, a, b in zip(found.outputs, got, expected, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                kinds = f"{a.dtype} {tuple(a.shape)}, and the function {b.dtype} {tuple(b.shape)}"
                raise _differs(found, sizes, f"{what} gives {name} as {kinds} at {at}")
            difference = relative(a, b)
            if not difference <= bound(b.dtype):
                raise _differs(found, sizes, f"{what} gives another {name} at {at}: {difference:.2g} off")
            largest = max(largest, difference)
        compared.append({name: sizes[name] for name in found.free})
    return Compared(tuple(compared), largest)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, by the second one's largest entry; infinite where one alone is NaN."""
    if not a.numel():
        return 0.0
    kind = torch.complex128 if b.is_complex() else torch.float64
    a, b = a.detach().cpu().to(kind), b.detach().cpu().to(kind)
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    same = (a == b) | a.isnan()
    scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0
    return float(torch.where(same, torch.zeros_like(a), a - b).abs().max() / max(scale, 1e-30))


def bound(dtype: torch.dtype) -> float:
    """What other orders of summation may do: half of the digits. Whole numbers are equal."""
    return float(torch.finfo(dtype).eps ** 0.5) if dtype.is_floating_point or dtype.is_complex else 0.0


def _differs(found: Subject, sizes: Sizes, message: str) -> ExportError:
    ones = [name for name in found.free if sizes[name] == 1]
    relations = [c for c in found.proof.branch if not c.holds(sizes)]
    hint = ""
    if relations:
        hint = f"; the function takes another branch there: assume=({str(relations[0])!r},) leaves it out"
    elif ones:
        hint = f"; assume=('{ones[0]} >= 2',) leaves it out"
    return ExportError(f"`{found.signature.name}`: {message}{hint}")


def random_inputs(found: Subject, sizes: Sizes) -> list[Tensor]:
    """Random numbers; integers are 0 or 1, which index something wherever anything does."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for entry, dtype in zip(found.entries, found.dtypes, strict=True):
        shape = [dim.evaluate(sizes) for dim in entry.spec.dims]
        if dtype.is_floating_point or dtype.is_complex:
            made.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return [tensor.to(found.setting.device) for tensor in made]


def _expected(found: Subject, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """What the function gives; None where it refuses the values."""
    try:
        return found.run([tensor.clone() for tensor in inputs])
    except Exception:
        return None
