"""Whether a loss is the mean over its samples, so that ranks may each take a part of them.

    loss(whole) = (n1*loss(part 1) + n2*loss(part 2)) / (n1 + n2)      and so for every gradient

A contrastive loss, batch norm in training, a correlation or a ratio of sums is none: on parts it is another program,
which would train without a word. The proved graph is run in float64 on small drawn batches, whole and in two parts,
with the counts that a step weighs by. What differs differs by far more than rounding; what agrees at random points of a
piece of a program agrees on all of it. Random operations give the same to every sample here.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from shaped.backends.outside import tensors_of
from shaped.backends.program import Program
from shaped.backends.values import Checked
from shaped.errors import ProofError, ShapedError, ShapeError
from shaped.proof.setting import Step

_CUTS = ((7, 3), (8, 4), (12, 4), (6, 2), (32, 16))  # sizes of a batch, and of its first part
_SIZES = (5, 4, 6, 3, 8, 12, 16, 2, 32, 64)  # of other dimensions, the first ones first
_TRIES = 200  # combinations of these that are tried until one meets the conditions of the proof
_APART = 1e-7  # float64 rounds a million times finer; programs that differ do so by 1e-3 and more


def hold_to_mean(program: Program, name: str) -> None:
    """Refuse a loss that is no mean over the samples of a dimension.

    Raises:
        ProofError: It is none; the message says where samples meet. Or no batch could be drawn that tells.
    """
    told = False
    for inputs, cut in _batches(program, name):
        told = _agrees(program, name, inputs, cut) or told
    if not told:
        raise ProofError(
            f"`{program.signature.name}` could not be tried on parts of a batch: none of the drawn ones was in its "
            "domain, so that it is not known whether ranks may share it"
        )


def _batches(program: Program, name: str) -> Iterator[tuple[list[Tensor], int]]:
    """Drawn batches that meet the conditions of the proof, and where they are cut."""
    generator = torch.Generator().manual_seed(20)
    for draw in range(3):
        for sizes, cut in itertools.islice(_sizes(program, name), _TRIES):
            whole = _drawn(program, sizes, draw, generator)
            try:
                for inputs in (whole, *_parts(program, name, whole, cut)):
                    program.admit(inputs)
            except ShapeError:
                continue
            yield whole, cut
            break


def _sizes(program: Program, name: str) -> Iterator[tuple[dict[str, int], int]]:
    known = {**program.params.dims, **program.proof.static}
    names = {n: None for e in program.inputs for dim in e.spec.dims for n in dim.names}
    free = [n for n in names if n not in known and n != name]
    for size, cut in _CUTS:
        for some in itertools.product(_SIZES, repeat=len(free)):
            yield {**known, **dict(zip(free, some, strict=True)), name: size}, cut


def _drawn(program: Program, sizes: Mapping[str, int], draw: int, generator: torch.Generator) -> list[Tensor]:
    """A batch: normal numbers, numbers between 0 and 1, or large ones; whole numbers below 2, or below 5."""
    made = []
    for entry in program.inputs:
        shape, dtype = [int(dim.evaluate(sizes)) for dim in entry.spec.dims], program.batch.dtype(entry)
        if dtype.is_floating_point or dtype.is_complex:
            values = torch.rand(shape, generator=generator) * 0.9 + 0.05
            if draw != 1:
                values = torch.randn(shape, generator=generator) * (1 + draw)
        else:
            values = torch.randint(0, 2 if draw < 2 else 5, shape, generator=generator)
        made.append(values.to(program.params.device, dtype))
    return made


def _parts(program: Program, name: str, inputs: Sequence[Tensor], cut: int) -> list[list[Tensor]]:
    """A batch in two, along every axis that is named so."""
    parts: list[list[Tensor]] = [[], []]
    for entry, x in zip(program.inputs, inputs, strict=True):
        axes = [axis for axis, dim in enumerate(entry.spec.dims) if dim.text == name]
        first, second = x, x
        for axis in axes:
            first, second = first.narrow(axis, 0, cut), second.narrow(axis, cut, second.shape[axis] - cut)
        parts[0].append(first.contiguous())
        parts[1].append(second.contiguous())
    return parts


def _agrees(program: Program, name: str, inputs: Sequence[Tensor], cut: int) -> bool:
    """Whether a batch is the mean of its parts; False where it tells nothing.

    Raises:
        ProofError: It is not.
    """
    parts = _parts(program, name, inputs, cut)
    found = [_computed(program, batch) for batch in (inputs, *parts)]
    if any(one is None for one in found):
        return False
    (whole, _), (first, n), (second, m) = (one for one in found if one is not None)
    if not n + m or not all(t.isfinite().all() for t in (*whole, *first, *second)):
        return False
    scale = max(float(t.abs().amax()) for t in (*whole, *first, *second) if t.numel())
    for a, b, c in zip(whole, first, second, strict=True):
        together = (n * b + m * c) / (n + m)
        apart = float((a - together).abs().amax()) if a.numel() else 0.0
        own = float(a.abs().amax()) if a.numel() else 0.0
        if apart > _APART * max(own, 1e-3 * scale):
            mean = float((n * first[0] + m * second[0]) / (n + m))
            raise _refused(program, name, (_length(program, name, inputs), cut), float(whole[0]), mean)
    return True


def _length(program: Program, name: str, inputs: Sequence[Tensor]) -> int:
    shapes = zip(program.inputs, inputs, strict=True)
    return next(x.shape[i] for e, x in shapes for i, dim in enumerate(e.spec.dims) if dim.text == name)


def _computed(program: Program, inputs: Sequence[Tensor]) -> tuple[list[Tensor], float] | None:
    """Loss and gradients in float64, and the count; None where a value cannot be taken."""
    try:
        case = program.admit(inputs)
        count = float(program.count(case, inputs))
        exact = _Exact(case.graph)
        written = set(program.writes)
        params = [t.clone() if i in written else t for i, t in enumerate(program.plain)]
        given = [*params, *program.batch.present(inputs), *tensors_of(case.outside)]
        with torch.no_grad():
            outputs = exact.run(*map(_wide, given))
    except ShapedError:
        raise
    except (RuntimeError, IndexError):  # a kernel refuses the values
        return None
    right = exact.right()
    if right is not None and not bool(right):
        return None
    rows = [1 + program.trainable.index(i) for i in program.used]
    return [outputs[0].double(), *(outputs[row].double() for row in rows)], count


class _Exact(Checked):
    """Runs a graph in float64, with the same of every random operation for every sample."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation."""
        args, kwargs = tree_map(_wide, (args, kwargs))
        name = str(getattr(target, "__name__", target))
        if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()) or "scaled_dot_product" in name:
            return super().call_function(target, args, kwargs)
        if name.startswith("native_dropout"):
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        drawn = super().call_function(target, args, kwargs)
        return tree_map(lambda t: torch.full_like(t, 0.5 if t.is_floating_point() else 1), drawn)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A constant of the graph."""
        return _wide(super().get_attr(target, args, kwargs))


def _wide(x: Any) -> Any:
    """Floating-point tensors and dtypes as float64."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.detach().double()
    return torch.float64 if isinstance(x, torch.dtype) and x.is_floating_point else x


def _refused(program: Program, name: str, sizes: tuple[int, int], whole: float, together: float) -> ProofError:
    total, cut = sizes
    value = f"is {whole:.6g} of {total} drawn samples, and {together:.6g} of {cut} and {total - cut} of them"
    if abs(whole - together) <= 1e-6 * max(abs(whole), abs(together)):
        value = f"has other gradients of {total} drawn samples than of {cut} and {total - cut} of them"
    where = _where(program.proof.steps, name)
    at = f"\n  {where}" if where is not None else ""
    return ProofError(
        f"`{program.signature.name}` is no mean over {name}: it {value}. Ranks that each take their part would train "
        f"another program.{at}\n"
        f"  hint  write it as a mean over samples; say samples= where it divides by a count of its own, such as "
        f"`lambda x, keep: keep.sum()`; or leave mesh out. To shard {name} within the program is not done yet"
    )


def _where(steps: Sequence[Step], name: str) -> Step | None:
    """The first operation where samples meet: one that gives two axes of them, or none of what had one; for a message.

    The last that loses the axis is the mean itself, and stands for the rest.
    """
    losing = []
    for step in steps:
        count = step.result.count(name)
        if count > 1:
            return step
        if not count and any(name in operand for operand in step.operands):
            losing.append(step)
    return losing[0] if losing else None
