"""Whether a loss is the mean over its samples, so that ranks may each take a part of them.

    loss(whole) = (n1*loss(part 1) + n2*loss(part 2)) / (n1 + n2)      and so for every gradient

A contrastive loss, batch norm in training, a correlation or a ratio of sums is none: on parts it is another program,
which would train without a word. The proved graph is run in float64 on small drawn batches, whole and in two parts,
with the counts that a step weighs by. What differs differs by far more than rounding; what agrees at random points of a
piece of a program agrees on all of it. Random operations give the same to every sample here.

That is so of one graph. A program that branches on its sizes has others: so the first comparison is of sizes that the
proved graph stands for, and a batch that takes another graph, or whose ranks together would, is compared when it comes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from shaped.backends.cases import AdmittedCase
from shaped.backends.outside import tensors_of
from shaped.backends.program import Program
from shaped.backends.values import Checked
from shaped.errors import ProofError, ShapedError, ShapeError
from shaped.proof.setting import Step

_CUTS = ((7, 3), (8, 4), (12, 4), (6, 2), (32, 16))  # sizes of a batch, and of its first part
_LARGER = ((48, 21), (120, 50), (300, 140), (1100, 520), (4200, 2080))  # where the program branches on its size
_SIZES = (5, 4, 6, 3, 8, 12, 16, 2, 32, 64)  # of other dimensions, the first ones first
_TRIES = 200  # combinations of these that are tried until one meets the conditions of the proof
_AGAIN = 3  # batches that come and tell nothing, after which others like them are taken
_APART = 1e-7  # float64 rounds a million times finer; programs that differ do so by 1e-3 and more


def hold_to_mean(program: Program, name: str) -> set[str]:
    """Refuse a loss that is no mean over the samples of a dimension.

    Returns:
        The structures of the graphs that were tried; `SharedMeans`.

    Raises:
        ProofError: It is none; the message says where samples meet. Or no batch could be drawn that tells.
    """
    told, tried = False, set[str]()
    for inputs, cut in _batches(program, name):
        told = _agrees(program, name, inputs, cut) or told
        tried.add(_structure(program.admit(inputs).graph))
    if not told:
        raise ProofError(
            f"`{program.signature.name}` could not be tried on parts of a batch: none of the drawn ones was in its "
            "domain, so that it is not known whether ranks may share it"
        )
    return tried


class SharedMeans:
    """Which batches of a program are known to be means over their samples, as ranks that share them out take them.

    Args:
        program: Whose proved graph is one (`hold_to_mean`).
        name: The dimension that is shared out.
        count: Among how many.
        graphs: The structures of those that are known to be means.
    """

    def __init__(self, program: Program, name: str, count: int, graphs: set[str]) -> None:
        self._program, self._name, self._count, self.graphs = program, name, count, graphs
        self._known: WeakSet[AdmittedCase] = WeakSet()
        self._tried: WeakKeyDictionary[AdmittedCase, int] = WeakKeyDictionary()

    def hold(self, case: AdmittedCase, inputs: Sequence[Any]) -> None:
        """Hold a batch of one rank, and the batch of all that it may be of, to a mean over samples.

        Raises:
            ProofError: They are none.
        """
        rows, count = case.sizes.get(self._name, 0), self._count
        if case in self._known or count == 1 or not rows:
            return
        equal = count * rows
        wholes = [whole for whole in (equal, equal - count + 1, equal + count - 1) if whole > rows]
        every = {rows, *wholes, *(whole - rows for whole in wholes)}
        branch, structure = case.proof.branch, _structure(case.graph)
        plain = not case.apart and all(c.holds({**case.sizes, self._name: n}) for c in branch for n in every)
        told = plain and structure in self.graphs
        for draw, whole in () if told else itertools.product(range(2), wholes):
            told = _agrees(self._program, self._name, self._grown(inputs, whole, draw), rows) or told
        tries = self._tried[case] = self._tried.get(case, 0) + 1
        if told or tries == _AGAIN:
            self._known.add(case)
            self.graphs |= {structure} if told and plain else set()

    def _grown(self, inputs: Sequence[Any], whole: int, draw: int) -> list[Any]:
        """A batch of as many rows, each one of this batch; of the first draw with other floats."""
        generator, grown = torch.Generator().manual_seed(whole), list(inputs)
        rows = torch.randint(2**31, (whole,), generator=generator)
        for at, (entry, x) in enumerate(zip(self._program.inputs, inputs, strict=True)):
            for axis, dim in enumerate(entry.spec.dims):
                if dim.text == self._name and isinstance(x, Tensor):
                    grown[at] = grown[at].detach().index_select(axis, (rows % x.shape[axis]).to(x.device))
            if grown[at] is not x and x.is_floating_point() and not draw:
                noise = torch.randn(grown[at].shape, generator=generator).to(x.device, x.dtype)
                grown[at] = grown[at] * (1 + 0.1 * noise)
        return grown


def _structure(graph: GraphModule) -> str:
    """The operations of a graph with what they are given, but for floats, which a schedule may move."""
    nodes = graph.graph.nodes
    given = [tree_map(lambda x: None if isinstance(x, float) else x, (n.args, dict(n.kwargs))) for n in nodes]
    return " ".join(f"{node.target} {each}" for node, each in zip(nodes, given, strict=True))


def _batches(program: Program, name: str) -> Iterator[tuple[list[Tensor], int]]:
    """Drawn batches that meet the conditions of the proof, and where they are cut."""
    generator = torch.Generator().manual_seed(20)
    for draw in range(3):
        every = (s for main in (True, False) for s in itertools.islice(_sizes(program, name, main), _TRIES))
        for sizes, cut in every:
            whole = _drawn(program, sizes, draw, generator)
            try:
                for inputs in (whole, *_parts(program, name, whole, cut)):
                    program.admit(inputs)
            except ShapeError:
                continue
            yield whole, cut
            break


def _sizes(program: Program, name: str, main: bool) -> Iterator[tuple[dict[str, int], int]]:
    """Sizes that are tried, and where a batch is cut; with `main` those that the proved graph stands for."""
    known = {**program.params.dims, **program.proof.static}
    names = {n: None for e in program.inputs for dim in e.spec.dims for n in dim.names}
    free = [n for n in names if n not in known and n != name]
    for size, cut in (*_CUTS, *_LARGER):
        for some in itertools.islice(itertools.product(_SIZES, repeat=len(free)), _TRIES):
            sizes = {**known, **dict(zip(free, some, strict=True)), name: size}
            each = ({**sizes, name: n} for n in (size, cut, size - cut))
            if not main or all(c.holds(one) for one in each for c in program.proof.branch):
                yield sizes, cut


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


def _parts(program: Program, name: str, inputs: Sequence[Any], cut: int) -> list[list[Any]]:
    """A batch in two, along every axis that is named so."""
    parts: list[list[Any]] = [[], []]
    for entry, x in zip(program.inputs, inputs, strict=True):
        if not isinstance(x, Tensor):  # an optional one that is left out
            parts[0].append(x)
            parts[1].append(x)
            continue
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
    lengths = ((x, i) for e, x in shapes for i, dim in enumerate(e.spec.dims) if dim.text == name)
    return next(x.shape[i] for x, i in lengths if isinstance(x, Tensor))


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
    except ShapeError:  # ranks' batches together are none of the program's: it says nothing of them
        return None
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
        f'`lambda x, keep: keep.sum()`; or inside=["{name}"], with which all ranks are given whole batches and gather '
        "what an operation must see whole; or leave mesh out"
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
