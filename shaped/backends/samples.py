"""How many samples a batch has: what it weighs where several make one update, or one mean.

    None           what the loss divides by (what its mask keeps, the targets that it does not ignore); without such a
                   divisor the dimension that leads the first input
    "batch*seq"    these sizes, of which the loss's own divisor says the share that counts
    a function     its value: `lambda x, y, keep: keep.sum()`

The count of a batch is `Case.samples`, a number that sizes tell, times a factor that values tell. Where there is a
factor, its graph stands in the meta of the loss's graph, so that a compiled step computes it within.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from shaped.backends.counts import counting_graph, divisors
from shaped.backends.draws import draws
from shaped.backends.outside import PROOFS, OutsideValues, keep, lift
from shaped.errors import ShapeError, SignatureError, listing
from shaped.proof import Proof, Setting, prove_setting
from shaped.proof.reads import READS, Reads
from shaped.shapes import Dim, Entry, Signature, read_container

FACTOR = "factor"  # in a graph's meta: a Factor, where values tell how many samples a batch has

Given = str | Callable[..., Any] | None
# What a batch has beside its sizes: axes by name, sizes of static dimensions, and the inputs that it leaves out.
Form = tuple[Mapping[str, int], Mapping[str, int], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class CountGraph:
    """What a batch's values say about its count, as a graph.

    Attributes:
        graph: Over flat params ++ inputs, or over inputs alone where a function was given. Gives a count, or what is
            counted and of how many.
        function: The function, flat; None where the loss itself says.
        share: Whether sizes say how many there are, and this only which share of them counts.
    """

    graph: GraphModule
    function: Callable[..., Any] | None
    share: bool

    def arguments(self, params: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """What the graph runs on; `inputs` may go on with what the loss reads from outside."""
        taken = sum(node.op == "placeholder" for node in self.graph.graph.nodes)
        return ([*inputs] if self.function is not None else [*params, *inputs])[:taken]

    def of(self, params: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The factor of a batch, computed apart from its loss."""
        with torch.no_grad():
            if self.function is not None:
                found: Tensor = self.function(inputs)
                return found
            return self.value(self.graph(*self.arguments(params, inputs)))

    def value(self, outputs: Sequence[Any]) -> Tensor:
        """The factor, float64 and 0-dim, from what the graph gives."""
        counted: Tensor = outputs[0]
        return counted.double() / outputs[1] if self.share else counted.double()


def checked_count(count: Tensor | float) -> float:
    """A count as a number of the host.

    Raises:
        ValueError: It is negative or not finite.
    """
    value = float(count)
    if not 0 <= value < math.inf:
        raise ValueError(f"samples gives {value:g} for this batch; a count is a number from 0 on. Nothing has changed")
    return value


class Samples:
    """Counts the samples of batches.

    Args:
        given: As for `ScalarTrainer(samples=...)`.
        signature: Of the loss.
        inputs: Its inputs.
        known: Dimensions that the parameters fix.

    Attributes:
        strict: A loss of several counts, of whose batches no mean is that of their union, is an error.

    Raises:
        SignatureError: The expression is none over the dimensions, or the function does not take a batch.
    """

    def __init__(self, given: Given, signature: Signature, inputs: Sequence[Entry], known: Mapping[str, int]) -> None:
        self._given, self._loss = given, signature.name
        always = {e.path for a in signature.arguments if not a.optional for e in a.entries}
        first = next((entry for entry in inputs if entry.path in always), None)
        self._first = first.spec if first is not None else None
        self._path = first.path if first is not None else ""
        self._dims: tuple[Dim, ...] = ()
        self._counting: Signature | None = None
        self._proofs: dict[Any, Proof] = {}
        self.strict = self._several = self._warned = False
        if callable(given):
            self._counting = _of_batches(given, signature)
        elif given is not None:
            self._dims = (_expression(given, inputs, known),)
        elif self._first is not None and self._first.axes is None:
            leading = self._first.dims[:1]
            self._dims = leading if leading and leading[0].is_name and leading[0].text not in known else ()

    def __str__(self) -> str:
        return "a function" if self._counting is not None else repr(self._given)

    @property
    def graphs(self) -> list[GraphModule]:
        """Of a function, as far as it was proved."""
        return [proof.graph for proof in self._proofs.values()]

    def by_sizes(self, entries: Sequence[Entry], sizes: Mapping[str, int]) -> float:
        """The count as far as sizes tell it; 1 where values alone do.

        Raises:
            ShapeError: An expression is not above 0.
        """
        dims = self._dims
        if self._given is None and self._first is not None and self._first.axes and self._first.dims[0].is_axes:
            first = next(entry.spec.dims for entry in entries if entry.path == self._path)
            dims = first[: len(first) - len(self._first.dims) + 1]
        count = float(math.prod(dim.evaluate(sizes) for dim in dims))
        if count <= 0:
            raise ShapeError(f"The batch has {count:g} samples ({self._given or dims[0]}); a mean needs at least one")
        return count

    def by_values(self, graph: GraphModule, trained: Sequence[int], inputs: int) -> CountGraph | None:
        """What the loss's own divisor says; None where it has none, or a function was given.

        Raises:
            SignatureError: It has several, and batches are to be accumulated.
        """
        if self._counting is not None:
            return None
        found = divisors(graph, trained, inputs)
        if found.mixed and self.strict:
            raise SignatureError(
                f"{self._mixed}: no count makes accumulated batches the step of their union. {_REMEDY}"
            )
        if found.mixed:
            self._several = True
        return CountGraph(counting_graph(graph, found.one), None, self._given is not None) if found.one else None

    @property
    def _mixed(self) -> str:
        return f"`{self._loss}` divides by several counts (masks, ignored targets, and plain means beside them)"

    def warn_of_several(self) -> None:
        """Say once that a mean over batches is not that of their union."""
        if self._several and not self._warned:
            self._warned = True
            said = f"{self._mixed}, so a mean over batches depends on how they were cut. {_REMEDY}"
            warnings.warn(said, stacklevel=3)

    def by_function(
        self,
        sizes: Mapping[str, int],
        dtypes: tuple[torch.dtype, ...],
        form: Form,
        device: torch.device,
        world: OutsideValues,
    ) -> tuple[CountGraph, bool] | None:
        """What a function says of batches of these dtypes; and whether its graph is for these sizes alone.

        Raises:
            ProofError, Unprovable: The function is not well-shaped. ShapeError: It is not, at these sizes.
            SignatureError: It reads a tensor from outside.
        """
        proof = self.prove_function(dtypes, form, device, world)
        if proof is None:
            return None
        own = {name: size for name, size in sizes.items() if name in proof.dims}
        proof.check(own)
        graph = proof.graph_at(own)
        _refuse_tensors(graph, world.add(graph))
        function = proof.setting.signature.call
        return CountGraph(graph, function, False), graph is not proof.graph

    def prove_function(
        self,
        dtypes: tuple[torch.dtype, ...],
        form: Form,
        device: torch.device,
        world: OutsideValues,
    ) -> Proof | None:
        """Prove that a function gives one number for batches of these dtypes; None where there is no function."""
        if self._counting is None:
            return None
        ranks, static, absent = form
        key = (world.number, dtypes, tuple(sorted(static.items())), str(ranks), absent)
        if key not in self._proofs:
            counting = self._counting.without(absent)
            counting = counting.at_ranks(ranks) if ranks else counting
            setting = Setting(counting, dtypes, (False,) * len(dtypes), device, roots=(self._given,))
            names = {name for entry in counting.entries for dim in entry.spec.dims for name in dim.names}
            proof = prove_setting(setting, (), {n: s for n, s in static.items() if n in names})
            _refuse_draws(proof.graph)
            _refuse_tensors(proof.graph, world.add(proof.graph))
            keep(self._proofs, key, proof, PROOFS)
        return self._proofs[key]


_REMEDY = "Pass samples= a function of the batch, such as `lambda x, y, keep: keep.sum()`"


def _refuse_tensors(graph: GraphModule, reads: Reads) -> None:
    """Raise SignatureError where a function counts by a tensor that is no part of the batch."""
    lifted = lift(graph, reads, set())
    if lifted.reads or lifted.refusal:
        said = lifted.refusal or f"reads `{lifted.reads[0].text}` from outside"
        raise SignatureError(f"samples {said}: make the tensor an input of the loss, or count by numbers")


def _refuse_draws(graph: GraphModule) -> None:
    """Raise SignatureError where a function counts by chance or by the clock: each backend would count otherwise."""
    drawn = graph.meta[READS].drawn or next(("random numbers" for node in graph.graph.nodes if draws(node)), "")
    if drawn:
        raise SignatureError(
            f"samples reads {drawn}: a count is the batch's own. Draw outside, and pass it as an input"
        )


def _expression(given: Any, inputs: Sequence[Entry], known: Mapping[str, int]) -> Dim:
    if not isinstance(given, str):
        raise SignatureError(
            f'samples is {given!r}; it is an expression over dimension names, such as "batch*seq", or a function of '
            "the batch"
        )
    dim = Dim.parse(given)
    names = {name for entry in inputs for part in entry.spec.dims for name in part.names} | {*known}
    if unknown := sorted(set(dim.names) - names):
        raise SignatureError(f"samples={given!r}: {listing(unknown)} is no dimension of the inputs")
    return dim


def _of_batches(function: Callable[..., Any], loss: Signature) -> Signature:
    """The signature of a function that takes what the loss takes, without the parameters."""
    arguments = tuple(a for a in loss.arguments if a.kind in ("tensor", "container"))
    positional = [a.name for a in arguments if not a.keyword]
    try:
        inspect.signature(function).bind(*positional, **{a.name: a.name for a in arguments if a.keyword})
    except TypeError as error:
        batch = ", ".join(a.name for a in arguments)
        raise SignatureError(f"samples does not take a batch of `{loss.name}`, which is ({batch}): {error}") from None
    except ValueError:
        pass  # built in, and says nothing of what it takes

    def samples(*batch: Any, **named: Any) -> Any:
        value = function(*batch, **named)
        if isinstance(value, Tensor):
            return value if value.is_complex() else value.detach().double()
        if isinstance(value, bool | int | float | torch.SymInt | torch.SymFloat):
            leaves = pytree.tree_leaves((batch, named))
            device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), None)
            return torch.full((), cast(float, value), dtype=torch.float64, device=device)
        return value

    return Signature("samples", samples, arguments, read_container(Float64[Tensor, ""], "result", "`samples`"))
