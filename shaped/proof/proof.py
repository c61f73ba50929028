"""The checked statement, its derivation, and the graph that it is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch.fx import Graph, GraphModule, Node

from shaped.arguments import checked
from shaped.errors import ShapeError, listing
from shaped.proof.conditions import Condition
from shaped.proof.setting import INNER, MORE, PLAIN, Setting, Step
from shaped.roles import Roles
from shaped.strategies import strategy_name

# Nodes that compute nothing: they name, alias or measure a tensor.
_BOOKKEEPING = ("detach", "alias", "sym_", "getitem", "lift_fresh", "_assert")


@dataclass(frozen=True, repr=False)
class Proof:
    """For all sizes that satisfy the conditions, the function is well-shaped and gives what its signature declares.

    Attributes:
        conditions: What it needed to assume about sizes, in the user's names.
        steps: The derivation: each operation with its shapes in names and its source line.
        dims: Every dimension name, in the order of the statement.
        operations: How many operations the forward and backward graphs have (backward: losses only).
        seconds: How long the proof took.
        graph: The traced program over flat params ++ inputs: loss and gradients. It is what the compiled backend runs.
        here: Sizes that are known (a trainer's parameters').
        ranks: For `*batch` axes: the proof for each number of axes; the other attributes are those of one axis.
        unused: Parameters that ask for a gradient and do not influence the result.
        writes: Parameters without a gradient that the program writes into, such as running statistics.
        values: What integer inputs that index something must lie between: `0 <= ids < vocab`. A step checks them.
        demands: Lines at which the program raises unless its data are as it wants. A step checks that, too.
        without: The proof where optional inputs are None, of a function that has any.
        plan: Of a trainer whose values lie over ranks by name: how, and what a step sends.
        divided: What that assumes of sizes, which is part of the conditions.
    """

    setting: Setting
    side_conditions: tuple[Condition, ...]
    steps: tuple[Step, ...]
    dims: tuple[str, ...]
    operations: Mapping[str, int]
    seconds: float
    graph: GraphModule
    unused: tuple[str, ...]
    writes: tuple[str, ...]
    static: Mapping[str, int]
    lengths: Mapping[str, int]
    here: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[tuple[int, ...], "Proof"] = field(default_factory=dict)  # for `*batch`: a proof for each rank
    per_size: tuple[str, ...] = ()  # static names whose every size is proved as it comes
    without: "Proof | None" = None
    values: tuple[str, ...] = ()
    demands: tuple[str, ...] = ()
    plan: tuple[tuple[str, str], ...] = ()  # of a trainer on several ranks by name: lines of the statement
    divided: tuple[str, ...] = ()  # what a plan assumes of sizes
    _region: tuple[Condition, ...] = ()  # where the traced graph itself is valid; outside, a branch apart is traced

    @property
    def conditions(self) -> tuple[str, ...]:
        """What it needed to assume about sizes, in the user's names."""
        return (*map(str, self.side_conditions), *self.divided)

    @cached_property
    def roles(self) -> Roles:
        """What each parameter does in the program: weights and how they are read as matrices, embeddings, biases.

        Raises:
            ShapeError: The parameters' sizes are not known; they are in a trainer's proof.
        """
        from shaped.proof.roles import read_roles

        arguments = self.setting.signature.arguments
        entries = [entry for a in arguments if a.kind == "parameters" for entry in a.entries]
        sizes = {**self.static, **self.here}
        missing = {name for entry in entries for dim in entry.spec.dims for name in dim.names} - set(sizes)
        if missing:
            raise ShapeError(f"roles are read at known sizes, and {', '.join(sorted(missing))} is not: "
                             "ask a trainer's proof, or proof.at({...})")  # fmt: skip
        shapes = [tuple(int(dim.evaluate(sizes)) for dim in entry.spec.dims) for entry in entries]
        names = [entry.path for entry in entries]
        return read_roles(forward_graph(self.graph), names, shapes, inner=bool(self.graph.meta.get(INNER)))

    def __repr__(self) -> str:
        return f"<Proof of {self.setting.signature}; conditions: {', '.join(self.conditions) or 'none'}>"

    @property
    def _by(self) -> str:
        """` by OneStep`; nothing where it is full backpropagation."""
        return f" by {strategy_name(self.setting.strategy)}" if self.setting.strategy is not None else ""

    @checked
    def at(self, sizes: Mapping[str, int]) -> "Proof":
        """The same proof, with sizes that have become known; they are checked against the conditions.

        Raises:
            ShapeError: A condition is false at these sizes.
        """
        self.check(sizes)
        return replace(self, here=dict(sizes))

    @checked
    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise ShapeError if a condition whose names are all in `sizes` is false, or a size is below 1."""
        wrong = [f"{name} = {size} is below 1" for name, size in sizes.items() if size < 1 and name in self.dims]
        wrong += [
            f"{condition.with_sizes(sizes)}{f'   (from {condition.source})' if condition.source else ''}"
            for condition in self.side_conditions
            if not condition.where and set(condition.names) <= set(sizes) and not condition.holds(sizes)
        ]
        if wrong:
            raise ShapeError(f"`{self.setting.signature.name}` is proved only where\n  " + "\n  ".join(wrong))

    @property
    def branch(self) -> tuple[Condition, ...]:
        """Relations that hold where `graph` is the program; elsewhere it takes another branch, which is proved too."""
        return self._region

    @checked
    def graph_at(self, sizes: Mapping[str, int]) -> GraphModule:
        """The graph to run at these sizes.

        The traced graph stands for all sizes of at least 2 that take the branches it took. A size of 1, or two sizes
        that happen to be equal where the program asked, may take another branch, so those sizes are traced apart.

        Raises:
            ShapeError: `sizes` lacks a name, or the program fails at them.
        """
        if missing := [name for name in self.dims if name not in sizes]:
            raise ShapeError(f"sizes lacks {listing(missing)}")
        if all(condition.holds(sizes) for condition in self._region):
            return self.graph
        from shaped.proof.explain import explain
        from shaped.proof.keeping import keeping
        from shaped.proof.symbolic import Plan, World
        from shaped.proof.trace import Recorder, trace

        world = World(self.dims, Plan({}, constants={name: sizes[name] for name in self.dims}))
        recorder = Recorder(world)
        try:
            with keeping(self.setting.signature.function, self.setting.call, self.setting.strategy):
                return trace(self.setting, world, recorder).graph
        except Exception as error:
            raise explain(error, self.setting, world, recorder) from None

    @property
    def _domain(self) -> str:
        """The sizes that it is proved for."""
        free = [n for n in self.dims if n not in self.static and n not in self.per_size]
        if free:
            return f"proved for all {', '.join(free)} >= 1"
        return "proved for these sizes" if self.dims else "proved"

    def __str__(self) -> str:
        signature = self.setting.signature
        owners = [a.structure.name for a in signature.arguments if a.structure is not None and a.kind == "parameters"]
        counts = ", ".join(f"{count} {phase}" for phase, count in self.operations.items())
        counts = counts.replace(" forward", " operations forward", 1)
        left = [
            str(signature),
            f"{self._domain}{', of 0 to 3 axes' if self.ranks else ''}",
        ]
        right = [
            f"gradients : {', '.join(owners)}{self._by}" if "backward" in self.operations else "",
            f"{counts}, {self.seconds:.1f} s",
        ]
        pad = max(map(len, left)) + 3
        lines = [f"{a:<{pad}}{b}".rstrip() for a, b in zip(left, right, strict=True)]
        lines.append(f"conditions   {', '.join(self.conditions) or 'none'}")
        if self.without is not None:
            absent = listing([a.name for a in self.setting.signature.arguments if a.optional])
            lines.append(f"without      {absent}: conditions {', '.join(self.without.conditions) or 'none'}")
        if self.writes:
            lines.append(f"writes       {', '.join(self.writes)}")
        if self.demands:
            lines.append(f"data         values that are refused at {', '.join(self.demands)} are left out")
        fixed = {**self.here, **self.static}
        notes = [", ".join(f"{name} = {size}" for name, size in fixed.items() if name in self.dims)]
        free = [name for name in self.dims if name not in fixed and name not in self.per_size]
        if self.here and free:
            notes.append(f"{', '.join(free)} {'is' if len(free) == 1 else 'are'} free")
        notes += [f"{name} is proved at each size as it comes" for name in self.per_size if name not in fixed]
        notes += [f"{path} has {length} entries" for path, length in self.lengths.items()]
        if any(notes):
            lines.append(f"here         {'; '.join(filter(None, notes))}")
        lines += [f"{label:<12} {text}" for label, text in self.plan]
        return "\n".join(lines)


def forward_graph(graph: GraphModule, results: int = 1) -> GraphModule:
    """The part of a joint graph that computes its results, or the loss without what a strategy adds."""
    copy = Graph()
    mapping: dict[Node, Node] = {}
    outputs = copy.graph_copy(graph.graph, mapping)
    assert isinstance(outputs, tuple | list)
    plain, more = graph.meta.get(PLAIN), graph.meta.get(MORE, 0)
    first = [*outputs[:1], *outputs[-more:]] if more else outputs[:results]
    copy.output(tuple(first if plain is None else [outputs[plain]]))
    copy.eliminate_dead_code()
    return GraphModule(graph, copy)


def count_operations(graph: GraphModule) -> int:
    """Nodes that compute something."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    return sum(not str(getattr(node.target, "__name__", node.target)).startswith(_BOOKKEEPING) for node in nodes)
