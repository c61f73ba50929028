"""Several ranks by name: parameters, gradients and moments in parts along the axes that a plan names.

    shard={"batch": "dp", "hidden": "tp"}

The batch is shared out as without a plan: each row of ranks along `dp` is one rank of `Together`, and sums gradients
with the others in its column. Along `tp` a rank runs the proved graph on its parts of the values (`local.py`), placed
by the walk over that graph before the first step. All ranks agree on a step in one sum, in which what several have the
same of is counted once.

Ranks along `tp` must have one batch: before the first collective of a pass all ranks meet on the host with a checksum
of theirs, and with what any of them failed with until then. So an error is raised on all, before anything has changed.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped.backends.agreed import Passed
from shaped.backends.cases import AdmittedCase
from shaped.backends.local import LocalRun
from shaped.backends.parts import refuse_whole
from shaped.backends.placed import PlacedGraph, placed
from shaped.backends.program import Program
from shaped.backends.together import EagerAt, EagerResult, Together
from shaped.backends.turns import lost
from shaped.backends.values import Checked, Runs
from shaped.errors import RankError
from shaped.optim import FusedOptimizer
from shaped.proof import Proof
from shaped.ranks.exchange import Exchange
from shaped.ranks.module_names import NamedEntries
from shaped.ranks.naming import NamedAxis
from shaped.ranks.peers import peers_of, together
from shaped.shapes import Entry


class Planned(Together):
    """How the ranks of a mesh run one program under a plan by name.

    Args:
        program: Its tensors are cut in place.
        everyone: All ranks of the mesh.
        columns: The ranks that share out the batch; None where it is not shared out.
        across: The ranks that share names out.
        plan: Which names.
        name: The dimension of the batch that is shared out.
        named: The parameters with the names of their axes.
        found: Where the values of the graph lie that was proved first.
        proof: The statement, with the plan in it.
        axis: Of the mesh, over which the batch lies.
    """

    def __init__(
        self,
        program: Program,
        everyone: Exchange,
        columns: Exchange | None,
        across: Exchange,
        plan: NamedAxis,
        name: str,
        named: NamedEntries,
        found: PlacedGraph,
        proof: Proof,
        axis: str = "",
    ) -> None:
        super().__init__(program, everyone, False, name, axis)
        self.columns, self.across, self.over = columns, across, plan
        self._whole = program
        self._named = named
        self.layouts: dict[int, Any] = plan.layouts(named.entries, [t.shape for t in program.tensors], named.sizes)
        self._placed = {program.proof.graph: found}
        self._entries: dict[GraphModule, Sequence[Entry]] = {program.proof.graph: program.inputs}
        self._met = False
        self.statement = proof

    @property
    def parted(self) -> bool:
        """Whether a rank has parts of some parameters."""
        return True

    @property
    def place(self) -> Any:
        """Which of the parts are this rank's."""
        return self.across.rank

    @property
    def speaks(self) -> bool:
        """Whether this rank's samples count: those of one along the names' axis do."""
        return self.across.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Which share of a batch is this rank's, and of how many."""
        return (0, 1) if self.columns is None else (self.columns.rank, self.columns.size)

    def is_alike(self, index: int) -> bool:
        """Whether all ranks have the same of a tensor."""
        layout = self.layouts.get(index)
        return layout is None or tuple(layout.local) == tuple(layout.shape)

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape in which a gradient is summed."""
        return self.layouts[index].local  # type: ignore[no-any-return]

    # -- parts -------------------------------------------------------------------------------------------------------

    def is_part(self, index: int, value: Any) -> bool:
        """Whether a value is this rank's part of something of a parameter's shape."""
        layout = self.layouts.get(index)
        if layout is None or layout.shard is None or not isinstance(value, Tensor):
            return False
        return tuple(value.shape) == layout.local

    def whole(self, index: int, part: Tensor) -> Tensor:
        """A whole tensor of an entry's layout from this rank's part; itself where there are no parts. Collective."""
        layout = self.layouts[index]
        if layout.shard is None:
            return part
        with torch.no_grad():
            return layout.joined(self.across.gather(part.detach().reshape(-1))).clone()  # type: ignore[no-any-return]

    def wholes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The parameters as what stands in for a graph takes them: in parts, as they lie."""
        return list(tensors)

    def refuse(self, optimizer: FusedOptimizer) -> None:
        """Refuse an optimizer that cannot step parameters as they lie.

        Raises:
            ValueError: Naming what it does, and what to do.
        """
        name, options, axis = type(optimizer).__name__, optimizer.options, self.over.axis
        parts = f"with {', '.join(self.over.names)} over {axis} a rank has parts of them"
        refuse_whole(optimizer, parts, "leave those names out of shard")
        odd = [f"moments={options.moments!r}"] if options.moments == "8bit" else []
        odd += [f"store={options.store!r}"] if options.store == "stochastic" else []
        if odd:
            raise ValueError(
                f"{name} was made with {odd[0]}, which would round a parameter that ranks have the same of otherwise "
                "on each, or scale across the parts: leave it out"
            )

    # -- a pass ------------------------------------------------------------------------------------------------------

    def admit(self, case: AdmittedCase) -> None:
        """Hold a batch that is new to the plan.

        Raises:
            ShapeError: A size is not divided by the axis. ProofError: The branch that these sizes take does not fit.
        """
        self.over.hold_even(case.sizes)
        self._entries.setdefault(case.graph, case.entries)
        self._lies(case.graph)

    def alone(self, graph: GraphModule) -> GraphModule:
        """The part of a graph that gives the loss."""
        made = super().alone(graph)
        self._entries.setdefault(made, self._entries[graph])
        return made

    def _lies(self, graph: GraphModule) -> PlacedGraph:
        """Where the values of a graph lie."""
        if graph not in self._placed:
            self._placed[graph] = placed(self._whole, graph, self._entries[graph], self.over, self._named)
        return self._placed[graph]

    def local(self, graph: GraphModule) -> LocalRun:
        """A run of a graph on this rank's parts."""
        found = self._lies(graph)
        return LocalRun(found.walk, found.starts, found.ends, self.across, found.cuts)

    def run(
        self, made: Runs, graph: GraphModule, tensors: Sequence[Tensor], inputs: Sequence[Tensor], samples: Tensor
    ) -> Passed:
        """Run what computes a graph, and sum gradients over the ranks that share out the batch."""
        if isinstance(made, Checked) and not isinstance(made, LocalRun):
            made = self.local(graph)
        return self.passed(made.run(*tensors, *inputs), made.right(), samples)

    def summed(self, gradients: list[Tensor], samples: Tensor, in_place: bool = False) -> list[Tensor]:
        """samples*gradient summed over the ranks that share out the batch."""
        if self.columns is None:
            return [self.weighed(g, samples) for g in gradients]
        return super().summed(gradients, samples, in_place)

    @property
    def summing(self) -> Exchange:
        """The ranks that gradients are summed over."""
        return self.exchange if self.columns is None else self.columns

    def run_parts(
        self, gathering: Checked, tensors: Sequence[Tensor], inputs: Sequence[Tensor], samples: Tensor | None = None
    ) -> Passed:
        """Run a graph on parts."""
        assert samples is not None
        assert isinstance(gathering.module, GraphModule)
        return self.run(gathering, gathering.module, tensors, inputs, samples)

    def gathering(self, graph: GraphModule, samples: Tensor | None = None, forward: bool = False) -> Any:
        """A run of a graph on parts."""
        return self.local(graph)

    def beside(self, at: EagerAt, graph: GraphModule, flat: Sequence[Tensor], inputs: Sequence[Tensor]) -> EagerResult:
        """What an executor is held against: the same graph on parts, op by op."""
        with torch.no_grad():
            loss, *others = self.local(graph).run(*flat)
        self._whole.keep(loss, others[len(others) - self.more :])
        gradients = [others[self.trainable.index(i)] for i in self._program.used] if len(others) > self.more else []
        return loss, gradients, []

    def _squares(
        self, gradients: Sequence[Tensor], waiting: tuple[Sequence[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Squares that this rank answers for: of its parts, and of what all have the same of on the first alone."""
        used = self._program.used
        mine = [at for at, i in enumerate(used) if self._answers(i)]
        if not mine:
            zero = torch.zeros((), dtype=torch.float64, device=gradients[0].device)
            return zero, zero
        kept = None if waiting is None else ([waiting[0][at] for at in mine], waiting[1])
        return super()._squares([gradients[at] for at in mine], kept)

    def _answers(self, index: int) -> bool:
        """Whether the squares of a gradient are this rank's to give."""
        return self.share[0] == 0 and (self.across.rank == 0 or self.layouts[index].shard is not None)

    def in_graph(self, mode: str) -> bool:
        """Whether executors of a mode have collectives in them."""
        return True

    @contextmanager
    def trial(self) -> Iterator[None]:
        """For as long as something is tried on this rank alone."""
        groups = {str(one.name): one for one in (self.exchange, self.columns, self.across) if one is not None}
        with ExitStack() as stack:
            for exchange in groups.values():
                stack.enter_context(exchange.alone())
            yield

    # -- meetings ----------------------------------------------------------------------------------------------------

    def begin(self, inputs: Sequence[Tensor] = (), forward: bool = False) -> None:
        """Meet before the collectives of a pass, with a checksum of the batch.

        What is drawn at random in it is drawn by the first rank's number: ranks that have parts of one value must draw
        alike, and their default generators need not be.

        Raises:
            RankError: Ranks that have parts of one batch were given others. What any rank failed with until here.
        """
        row, _ = self.share
        flags = row, _checksum(inputs), int(self.exchange.weight)
        met = peers_of(self.exchange).meet("a loss" if forward else "a step", *flags, self._seed)
        every = [found[:3] for found in met]
        by: dict[int, tuple[int, tuple[int, ...]]] = {}
        for rank, found in enumerate(every):
            first, other = by.setdefault(found[0], (rank, found))
            if other != found:
                raise self.agreed(
                    RankError(
                        f"ranks {first} and {rank} have parts of one batch along {self.over.axis}, and were given "
                        "different ones: give all ranks along it the same rows, such as Batches(..., seed=0) in a Loop"
                    )
                )
        if self._seed:
            self._seeded(met[0][3])
        self._met = True

    def begin_parts(
        self, graph: GraphModule, inputs: Sequence[Tensor], samples: Tensor | None = None, forward: bool = False
    ) -> Checked:
        """The same, and what runs a pass op by op on parts."""
        made = self.local(graph)
        self.begin(inputs, forward)
        return made

    def meet(self, place: str, failed: Exception | None) -> None:
        """As of ranks without a plan."""
        super().meet(place, failed)
        self._met = True

    def ended(self) -> None:
        """Say that all ranks are through."""
        super().ended()
        self._met = False

    @contextmanager
    def guard(self, forward: bool = False) -> Iterator[None]:
        """Around what all ranks call: until they have met, an error of this rank is raised on all of them."""
        self._met = False
        try:
            yield
        except Exception as error:
            met, self._met = self._met, False
            if together(error) or (met and forward and not lost(error)):
                raise
            if met:
                self._end(error)
            peers_of(self.exchange).meet("a loss" if forward else "a step", 0, 0, 0, 0, failed=error)
            raise


def _checksum(tensors: Sequence[Tensor]) -> int:
    """Of shapes, dtypes and values."""
    found = 0
    for t in tensors:
        found = zlib.crc32(f"{tuple(t.shape)} {t.dtype}".encode(), found)
        content = t.detach().cpu().contiguous().view(-1)
        found = zlib.crc32(content.view(torch.uint8).numpy().data if content.numel() else b"", found)
    return found


def counts_by_parts(program: Program, layouts: Mapping[int, Any]) -> list[str]:
    """Parameters in parts that say how many samples a batch has."""
    from shaped.backends.samples import FACTOR

    factor = program.proof.graph.meta.get(FACTOR)
    if factor is None or factor.function is not None:
        return []
    places: list[Node] = [n for n in factor.graph.graph.nodes if n.op == "placeholder"]
    read = [i for i, n in enumerate(places[: len(program.tensors)]) if n.users]
    return [program.params.names[i] for i in read if layouts[i].shard is not None]
