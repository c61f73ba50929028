"""A plan by name with zero=3: parts along the axes that it names, and of those even flat parts over the batch's ranks.

    shard={"batch": "dp", "hidden": "tp"}, zero=3

A parameter is cut by its names, and a rank keeps an even part of what is its own by them. It is gathered along `dp`
where it is read, let go and gathered again, as `zero=3` does (`gathering.py`), and what is gathered is the part that a
run by name works on (`local.py`). The order of collectives along each axis is the same on the ranks that share it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped.backends.agreed import Passed
from shaped.backends.gathering import FORWARD, GATHER, Gathering, GatherPlan, Turn
from shaped.backends.local import Across, LocalRun
from shaped.backends.parts import Parts
from shaped.backends.placed import PlacedGraph
from shaped.backends.planned import Planned
from shaped.backends.stating import turns_told
from shaped.backends.together import Together
from shaped.backends.values import Checked, Runs
from shaped.ranks.exchange import VECTOR
from shaped.ranks.layout import Placement
from shaped.ranks.pieces import Box
from shaped.ranks.placements import AxisPlacement, Held


@dataclass(frozen=True)
class NestedPlacement:
    """How one tensor lies over two axes of a mesh.

    Attributes:
        axis: Over the names' axis.
        flat: What a rank has by that, over the batch's axis; None where it has all of it.
    """

    axis: AxisPlacement
    flat: Placement | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return self.axis.shape

    @property
    def local(self) -> tuple[int, ...]:
        """The shape of what a rank keeps."""
        return self.axis.local if self.flat is None else (self.flat.length,)

    @property
    def shard(self) -> Any:
        """Where it is cut by name; None where it is not."""
        return self.axis.shard

    @property
    def numel(self) -> int:
        """Entries that a rank keeps."""
        return math.prod(self.local)

    def cut(self, whole: Tensor, place: tuple[int, int]) -> Tensor:
        """What a rank keeps, by its place along the names' axis and the batch's."""
        across, column = place
        part = self.axis.cut(whole, across)
        return part if self.flat is None else self.flat.cut(part, column)

    def boxes(self, part: Tensor, place: tuple[int, int]) -> Iterator[Box]:
        """What a rank keeps as blocks of the whole."""
        across, column = place
        if self.flat is None:
            return self.axis.boxes(part, across)
        return chain.from_iterable(self.axis.moved(block, across) for block in self.flat.boxes(part, column))


class LocalGathering(Gathering, LocalRun):
    """One run of a graph on parts by name of parameters that lie in flat parts of those.

    Args:
        found: Where the values of the graph lie.
        across: The ranks along the names' axis.
        plan, order, samples: As for `Gathering`.
        layouts: How parameters lie.
    """

    def __init__(
        self,
        found: PlacedGraph,
        across: Across,
        plan: GatherPlan,
        order: Sequence[Turn],
        samples: Tensor,
        layouts: dict[int, NestedPlacement],
    ) -> None:
        LocalRun.__init__(self, found.walk, found.starts, found.ends, across, found.cuts)
        self._layouts = layouts
        self._inside: Tensor | None = None  # the parameter whose views are being computed
        self._begin(plan, order, samples)
        self._spent = set()  # what is run in an operation's place may give its argument

    def _placed(self, n: Node, value: Any) -> Any:
        if n not in self._plan.views:
            return super()._placed(n, value)
        self._learn(n, self._layouts[self._plan.views[n]].shape)
        return value

    def _of(self, node: Node, by: Node) -> Any:
        return self._value(node, by)

    def _value(self, node: Node, by: Node) -> Any:
        if node in self._plan.views and by in self._plan.views and self._inside is not None:
            return self._viewed(node, self._inside)
        return super()._value(node, by)

    def _viewed(self, node: Node, whole: Tensor) -> Any:
        if node.op == "placeholder":
            return whole
        before, self._inside = self._inside, whole
        try:
            return LocalRun.run_node(self, node)
        finally:
            self._inside = before

    def _gradient(self, n: Node, i: int, value: Tensor) -> Tensor:
        """A sum that is due is taken for what is sent alone: other operations may read its terms."""
        end: Held | None = self._ends[1 + self._sharing.trainable.index(i)]
        if self._walk.is_due(n):
            return self._at_end(n, end, self._across.total(value))
        return self._at_end(n, end, value)

    def _finished(self, n: Node) -> list[Any]:
        task = self._walk.tasks.get(n)
        sent = {self._plan.outputs[row] for row in self._plan.rows.values()}
        self._sum(node for node in (task.sums if task is not None else ()) if node not in sent)
        found = super()._finished(n)
        for row, end in enumerate(self._ends):
            node = self._plan.outputs[row]
            if row not in self._plan.rows.values() and isinstance(node, Node):
                found[row] = self._at_end(node, end, found[row])
        return found


class PlannedParts(Planned):
    """How the ranks of a mesh run one program under a plan by name, with flat parts over the batch's axis.

    Args: as for `Planned`; the batch is shared out.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        assert self.columns is not None
        for i, layout in self.layouts.items():
            flat = Placement(layout.local, self.columns.size) if i in self._program.used else None
            self.layouts[i] = NestedPlacement(layout, flat)
        self.units = self._units()
        self.unit_of = {i: at for at, members in enumerate(self.units) for i in members}
        self.statement = replace(self.statement, plan=tuple(self._stated(list(self.statement.plan))))

    def _stated(self, lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The lines of a plan by name, with what is gathered along the batch's axis."""
        sums = self._placed[self._graph].walk.collectives
        held = sum(self.layouts[i].numel * self.widths(i)[0].itemsize for i in self._program.used)
        made = []
        for what, said in lines:
            if what == "a rank has":
                said = f"1/{self.summing.size} over {self._axis} of: {said}; {held:,} bytes of those that are trained"
            elif what in ("forward", "backward"):
                gathers = f"{turns_told(self, what)} over {self._axis}"
                named = any(c.backward == (what == "backward") for c in sums)
                said = f"{said}; {gathers}" if named else gathers
            elif what == "update":
                said = f"one agreement of {VECTOR} bytes"
            made.append((what, said))
        return made

    @property
    def zero(self) -> int:
        """3: a rank has flat parts."""
        return 3

    @property
    def place(self) -> Any:
        """This rank's place along the names' axis and the batch's."""
        return self.across.rank, self.summing.rank

    def flat(self, index: int) -> Placement:
        """How what a rank has of a parameter by name lies over the batch's axis."""
        return self.layouts[index].flat  # type: ignore[no-any-return]

    def is_part(self, index: int, value: Any) -> bool:
        """As of a plan by name: of what is cut along either axis."""
        layout = self.layouts.get(index)
        if layout is None or not isinstance(value, Tensor) or (layout.shard is None and layout.flat is None):
            return False
        return tuple(value.shape) == layout.local

    def whole(self, index: int, part: Tensor) -> Tensor:
        """A whole tensor of an entry's layout from this rank's part. Collective."""
        layout: NestedPlacement = self.layouts[index]
        with torch.no_grad():
            if layout.flat is not None:
                part = layout.flat.whole(self.summing.gather(part.detach())).clone()
            if layout.shard is None:
                return part
            return layout.axis.joined(self.across.gather(part.detach().reshape(-1))).clone()

    def wholes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All parameters as a run by name takes them, at once."""
        return Parts.wholes(self, tensors)

    # -- a pass ------------------------------------------------------------------------------------------------------

    def gathering(self, graph: GraphModule, samples: Tensor | None = None, forward: bool = False) -> Gathering:
        """A run of a graph on parts of parts; `forward` where it is that of the loss alone."""
        order = [turn for turn in self.order if (turn.kind, turn.phase) == (GATHER, FORWARD)] if forward else self.order
        weight = torch.zeros_like(self.exchange.said[0]) if samples is None else samples
        return LocalGathering(self._lies(graph), self.across, self.plan(graph), order, weight, self.layouts)

    def begin_parts(
        self, graph: GraphModule, inputs: Sequence[Tensor], samples: Tensor | None = None, forward: bool = False
    ) -> Checked:
        """Meet, and give what runs a pass op by op."""
        made = self.gathering(graph, samples, forward).hold(self._program.plain)
        self.begin(inputs, forward)
        return made

    def run_parts(
        self, gathering: Checked, tensors: Sequence[Tensor], inputs: Sequence[Tensor], samples: Tensor | None = None
    ) -> Passed:
        """Run a graph, gathering on the way."""
        return Together.run_parts(self, gathering, tensors, inputs, samples)

    def run(
        self, made: Runs, graph: GraphModule, tensors: Sequence[Tensor], inputs: Sequence[Tensor], samples: Tensor
    ) -> Passed:
        """Run what computes a graph, and sum gradients over the ranks that share out the batch."""
        if isinstance(made, Checked):
            return self.run_parts(self.gathering(graph, samples), tensors, inputs, samples)
        return self.passed(made.run(*self.wholes(tensors), *inputs), made.right(), samples)

    def _answers(self, index: int) -> bool:
        return self.across.rank == 0 or self.layouts[index].shard is not None
