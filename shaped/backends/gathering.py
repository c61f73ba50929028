"""Runs a proved graph on parts of parameters: gathers where one is read, scatters where a gradient is made.

A parameter that is read in the forward pass is let go after it and gathered again for the backward pass, so that at no
time more than a unit of them (`ranks.units`) and what is being computed is there. What only views or casts a parameter
is computed where it is read.

The order of all gathers and scatters is that of the symbolic graph that was proved first, whatever graph runs: a rank
whose sizes take a branch of their own (a batch of 1) must meet the others. A gather comes early where its turn comes
before it is read; a gradient whose turn has come is computed then.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from shaped.backends.executors import CompileError
from shaped.backends.values import Checked

GATHER, SCATTER = "gather", "scatter"
FORWARD, BACKWARD = "forward", "backward"
# What gives a parameter in another view or dtype.
_VIEWS = (
    *("detach", "alias", "_to_copy", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "permute", "transpose"),
    *("t", "expand", "slice", "select", "split", "unbind", "chunk", "getitem"),
)
_OF_SIZE = ("sym_size", "sym_numel", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
            "full_like", "empty_like")  # fmt: skip


class Turn(NamedTuple):
    """A collective of a pass: of which unit, and for a gather in which phase."""

    kind: str
    unit: int
    phase: str = ""


class ShardMap(Protocol):
    """What knows how parameters lie over the ranks."""

    units: list[list[int]]
    unit_of: dict[int, int]
    more: int
    trainable: list[int]

    def gathered(self, unit: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """The whole parameters of a unit."""

    def weighed(self, gradient: Tensor, samples: Tensor, spent: bool = False) -> Tensor:
        """A gradient as it is summed; in its own memory where it is spent."""

    def scattered(self, unit: int, weighed: Sequence[Tensor]) -> list[Tensor]:
        """This rank's parts of the sums of their gradients."""

    def hollow(self, index: int, part: Tensor) -> Tensor:
        """A tensor of the whole's shape without values."""


@dataclass
class GatherPlan:
    """Where a graph reads parameters that lie in parts, and where it makes their gradients.

    Attributes:
        views: Nodes that are such a parameter, or only views of one: which one.
        forward: Nodes that the loss is computed from.
        reads: How often each is read in each phase.
        rows: Which outputs are their gradients.
        made: By node, the parameters whose gradient it is.
        spent: Parameters whose gradient nothing else reads.
    """

    graph: GraphModule
    sharing: ShardMap
    views: dict[Node, int] = field(default_factory=dict)
    forward: set[Node] = field(default_factory=set)
    reads: Counter[tuple[int, str]] = field(default_factory=Counter)
    rows: dict[int, int] = field(default_factory=dict)
    made: dict[Node, list[int]] = field(default_factory=dict)
    spent: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = list(self.graph.graph.nodes)
        places = [node for node in nodes if node.op == "placeholder"]
        self.outputs: Sequence[Any] = nodes[-1].args[0]
        self.views = {places[i]: i for i in self.sharing.unit_of}
        for node in nodes:
            tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor | tuple | list)]
            if node.op == "call_function" and _name(node) in _VIEWS and len(tensors) == 1 and tensors[0] in self.views:
                self.views[node] = self.views[tensors[0]]
        results = [self.outputs[0], *self.outputs[len(self.outputs) - self.sharing.more :]]
        self.forward = _ancestors([n for n in results if isinstance(n, Node)])
        differentiated = len(self.outputs) > 1 + self.sharing.more
        self.rows = {i: 1 + self.sharing.trainable.index(i) for i in self.sharing.unit_of if differentiated}
        for i, row in self.rows.items():
            if isinstance(self.outputs[row], Node):
                self.made.setdefault(self.outputs[row], []).append(i)
        self.mutates = any(_mutates(node) for node in nodes)
        self.spent = {of[0] for node, of in self.made.items() if len(of) == 1 and _is_alone(node)}
        for node in nodes:
            for i, phase in self.read_by(node):
                self.reads[i, phase] += 1

    def phase(self, node: Node) -> str:
        """The phase that a node is computed in."""
        return FORWARD if node in self.forward else BACKWARD

    def read_by(self, node: Node) -> Iterator[tuple[int, str]]:
        """The parameters whose values a node reads, each as often as it does."""
        if node not in self.views and _name(node) not in _OF_SIZE:
            found: list[Node] = []
            map_arg((node.args, node.kwargs), found.append)
            yield from ((self.views[n], self.phase(node)) for n in found if n in self.views)

    def order(self) -> list[Turn]:
        """The collectives of a pass in the order in which the graph comes to them."""
        turns: dict[Turn, None] = {}
        ready: set[int] = set()

        def scatter(unit: int) -> None:
            if ready.issuperset(self.sharing.units[unit]):
                turns.setdefault(Turn(SCATTER, unit))

        for node in self.graph.graph.nodes:
            for i, phase in self.read_by(node):
                turns.setdefault(Turn(GATHER, self.sharing.unit_of[i], phase))
            for i in self.made.get(node, ()):
                ready.add(i)
                scatter(self.sharing.unit_of[i])
        ready |= set(self.rows)
        for unit in range(len(self.sharing.units)):
            scatter(unit)
        return list(turns)


class Gathering(Checked):
    """One run of a graph on parts: on tensors, or while it is traced.

    Args:
        plan: Of the graph.
        order: The collectives, in the order that all ranks keep.
        samples: What this rank's gradients are weighed by; float64, 0-dim.

    Attributes:
        fine: Whether this rank's own gradients were finite as they are sent; None before there was one.
    """

    def __init__(self, plan: GatherPlan, order: Sequence[Turn], samples: Tensor) -> None:
        super().__init__(plan.graph)
        self._begin(plan, order, samples)

    def _begin(self, plan: GatherPlan, order: Sequence[Turn], samples: Tensor) -> None:
        self._plan, self._sharing, self._samples = plan, plan.sharing, samples
        self._turns = deque(order)
        self._parts: dict[int, Tensor] = {}
        self._wholes: dict[tuple[int, str], Tensor] = {}
        self._known = set(order)
        self._left: Counter[tuple[int, str]] = Counter()
        for (i, phase), count in plan.reads.items():
            self._left[i, self._phase(i, phase)] += count
        self._ready: dict[int, Tensor] = {}
        self._scattered: dict[int, Tensor] = {}
        self._making = False
        self._runs = False  # on tensors, and is not traced
        self._spent = plan.spent
        self.fine: Tensor | None = None
        for node in plan.views:  # their sizes are wanted where they are read, which is later
            self.user_to_last_uses.pop(node, None)

    def finish(self) -> None:
        """Take the turns that are left with nothing to give, so that no other rank waits."""
        while self._turns:
            turn = self._turns.popleft()
            members = self._sharing.units[turn.unit]
            if turn.kind == GATHER:
                self._sharing.gathered(turn.unit, [self._parts[i] for i in members])
            else:
                none = torch.zeros_like(self._samples)
                nothing = [self._sharing.weighed(self._sharing.hollow(i, self._parts[i]), none) for i in members]
                self._sharing.scattered(turn.unit, nothing)

    def hold(self, tensors: Sequence[Tensor]) -> "Gathering":
        """Take the parts before a run on tensors, for a `finish` without one."""
        self._runs = True
        self._parts = {i: tensors[i] for i in self._sharing.unit_of}
        return self

    # -- the run ---------------------------------------------------------------------------------------------------

    def run_node(self, n: Node) -> Any:
        """Run one node; a parameter is left in parts until it is read, a gradient is scattered as soon as it may be."""
        if n.op == "output":
            return self._finished(n)
        if n.op == "placeholder":
            value = super().run_node(n)
            if n in self._plan.views:
                self._parts[self._plan.views[n]] = value
            return value
        if n in self._plan.views:
            return None
        result = super().run_node(n)
        made = self._plan.made.get(n)
        if not made:
            return result
        for i in made:
            self._ready[i] = self._gradient(n, i, result)
        self._scatter_ready()
        return None if len(n.users) == 1 else result  # the output alone

    def _gradient(self, n: Node, i: int, value: Tensor) -> Tensor:
        """The gradient of a parameter as it is scattered."""
        return value

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        """The arguments of a node; parameters among them whole."""
        return map_arg((n.args, n.kwargs), lambda node: self._value(node, n))

    def _value(self, node: Node, by: Node) -> Any:
        if node not in self._plan.views:
            return self._env(node)
        i = self._plan.views[node]
        of_size = _name(by) in _OF_SIZE
        whole = self._sharing.hollow(i, self._parts[i]) if of_size else self._whole(i, self._plan.phase(by))
        return self._viewed(node, whole)

    def _env(self, node: Node) -> Any:
        if node not in self.env and self._making:
            self._compute(node)
        return self.env[node]

    def _viewed(self, node: Node, whole: Tensor) -> Any:
        """What a node is of a whole parameter."""
        if node.op == "placeholder":
            return whole
        args, kwargs = map_arg(
            (node.args, node.kwargs),
            lambda each: self._viewed(each, whole) if each in self._plan.views else self._env(each),
        )
        return super().call_function(node.target, args, kwargs)

    def _phase(self, i: int, phase: str) -> str:
        """The phase whose gather serves a read: its own, or the other where the order has none for it."""
        own = Turn(GATHER, self._sharing.unit_of[i], phase) in self._known
        return phase if own else FORWARD if phase == BACKWARD else BACKWARD

    def _whole(self, i: int, phase: str) -> Tensor:
        key = i, self._phase(i, phase)
        if key not in self._wholes:
            self._take(Turn(GATHER, self._sharing.unit_of[i], key[1]))
        whole = self._wholes[key]
        self._left[key] -= 1
        if not self._left[key]:
            del self._wholes[key]
        return whole

    def _take(self, last: Turn) -> None:
        """Take every turn up to this one."""
        if self._making or last not in self._turns:
            raise CompileError(
                "these sizes take a branch in which gradients come in another order than the other ranks' make them: "
                "give each rank at least 2 samples, or use zero=0"
            )
        while True:
            turn = self._turns[0]
            if turn.kind == GATHER:
                self._gather(turn)
            else:
                self._make(turn.unit)
                self._scatter(turn.unit)
            self._turns.popleft()
            if turn == last:
                return

    def _gather(self, turn: Turn) -> None:
        members = self._sharing.units[turn.unit]
        wholes = self._sharing.gathered(turn.unit, [self._parts[i] for i in members])
        for i, whole in zip(members, wholes, strict=True):
            if self._left[i, turn.phase]:
                self._wholes[i, turn.phase] = whole

    def _make(self, unit: int) -> None:
        """Compute the gradients of a unit that are not there yet."""
        missing = [i for i in self._sharing.units[unit] if i not in self._ready]
        if missing and self._plan.mutates:
            raise CompileError("a program that writes into tensors keeps no other order of gradients: use zero=0")
        for i in missing:
            node = self._plan.outputs[self._plan.rows[i]]
            self._making = True
            try:
                self._compute(node)
            finally:
                self._making = False

    def _compute(self, node: Node) -> None:
        """Run a node before its time, with what it needs."""
        for needed in node.all_input_nodes:
            if needed not in self.env and needed not in self._plan.views:
                self._compute(needed)
        self.env[node] = self.run_node(node)

    def _scatter_ready(self) -> None:
        if self._making:
            return
        while self._turns and self._turns[0].kind == SCATTER:
            unit = self._turns[0].unit
            if not self._ready.keys() >= set(self._sharing.units[unit]):
                return
            self._scatter(unit)
            self._turns.popleft()

    def _scatter(self, unit: int) -> None:
        members = self._sharing.units[unit]
        # What is looked at is what is sent: a gradient that nothing else reads gives its memory to it.
        weighed = [self._sharing.weighed(self._ready.pop(i), self._samples, i in self._spent) for i in members]
        for gradient in weighed:
            fine = _is_finite(gradient) if self._runs else torch.isfinite(gradient).all()
            self.fine = fine if self.fine is None else self.fine & fine
        for i, part in zip(members, self._sharing.scattered(unit, weighed), strict=True):
            self._scattered[i] = part

    def _finished(self, n: Node) -> list[Any]:
        outs: list[Any] = []
        of_row = {row: i for i, row in self._plan.rows.items()}
        for row, node in enumerate(self._plan.outputs):
            if row in of_row and of_row[row] not in self._ready and of_row[row] not in self._scattered:
                given = self._value(node, n)  # a parameter's own view, or of several
                self._ready[of_row[row]] = self._gradient(node, of_row[row], given)
        while self._turns:
            self._take(self._turns[-1])
        for row, node in enumerate(self._plan.outputs):
            if row in of_row:
                outs.append(self._scattered[of_row[row]])
            else:
                outs.append(self._value(node, n) if isinstance(node, Node) else node)
        return outs


def _name(node: Node) -> str:
    target: str | Callable[..., Any] = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return str(getattr(target, "__name__", target))


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


# What is another's memory without saying so in its schema.
_ALIASES = ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "_reshape_alias", "reshape")


def _is_alone(node: Node) -> bool:
    """Whether the memory of a result is its own, and nothing else in the graph looks at it."""
    while node.op == "call_function" and len(node.users) == 1:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.name.startswith("aten::"):
            return False
        views = any(r.alias_info for r in schema.returns) or _name(node) in _ALIASES
        if not views:
            return isinstance(node.meta.get("val"), Tensor)
        if schema.is_mutable or _name(node) in ("expand", "as_strided") or not isinstance(node.args[0], Node):
            return False
        node = node.args[0]
    return False


def _is_finite(t: Tensor) -> Tensor:
    """Whether every entry is, without a tensor as large as it."""
    if t.is_complex() or not t.numel():
        return torch.isfinite(t).all()
    return torch.isfinite(torch.linalg.vector_norm(t, torch.inf))


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    seen: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return seen
