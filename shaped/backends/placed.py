"""The walk of a plan over a program's graph, in the user's words: its placements, its collectives, and its refusals."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from torch.fx import GraphModule, Node

from shaped.backends.program import Program
from shaped.errors import Goal, ProofError
from shaped.proof.setting import STEP, Step
from shaped.ranks import layer_rules, rules, view_rules
from shaped.ranks.exchange import VECTOR
from shaped.ranks.extents import Extents, extent
from shaped.ranks.module_names import NamedEntries
from shaped.ranks.naming import NamedAxis
from shaped.ranks.placements import WHOLE, Held, Shard
from shaped.ranks.walk import Collective, PlacementWalk, Unplaced, operation
from shaped.shapes import Entry

_REGISTERED = rules, view_rules, layer_rules  # importing them registers what operations do with parts


@dataclass(frozen=True)
class PlacedGraph:
    """Where the values of a graph lie.

    Attributes:
        walk: What was found.
        starts: How each placeholder lies.
        ends: How each result does.
        cuts: Inputs that come whole, of which a rank takes its part.
    """

    walk: PlacementWalk
    starts: dict[Node, Held]
    ends: list[Held | None]
    cuts: set[Node]


def placed(
    program: Program, graph: GraphModule, inputs: Sequence[Entry], plan: NamedAxis, named: NamedEntries | None = None
) -> PlacedGraph:
    """PlacementWalk over a graph.

    Args:
        program: Whose graph it is.
        graph: One of a program's: the loss with gradients, or the loss alone.
        inputs: That it takes after the parameters.
        plan: The names.
        named: The parameters with the names of their axes; a ParamList's are its own.

    Raises:
        ProofError: It cannot be run in parts; at the user's line.
    """
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    outputs = next(node for node in reversed(graph.graph.nodes) if node.op == "output").args[0]
    wanted = len(program.trainable) if len(outputs) > 1 + program.more else 0
    named = named or NamedEntries(program.params.entries, program.params.dims)
    entries = [*named.entries, *inputs]
    names: dict[str, sympy.Expr] = {}
    for node, entry in zip(places, entries, strict=False):
        for dim, size in zip(entry.spec.dims, node.meta["val"].shape, strict=True):
            if dim.is_name:
                names.setdefault(dim.text, extent(size))
    known = {**named.sizes, **program.proof.static}
    for name, number in known.items():
        names.setdefault(name, sympy.Integer(number))
    sizes = Extents(names, known, [n for n in plan.names if n in names], plan.size, plan.axis)
    starts: dict[Node, Held] = dict.fromkeys(places, WHOLE)
    for node, entry in zip(places, entries, strict=False):
        shard = plan.shard(entry, names)
        if shard is not None:
            starts[node] = Shard(shard.axis, sizes.at(sympy.sympify(shard.before)))
    gradients = [starts[places[i]] for i in program.trainable[:wanted]]
    ends: list[Held | None] = [WHOLE, *gradients, *[WHOLE] * program.more]
    paths = [f"the gradient of {program.params.names[i]}" for i in program.trainable[:wanted]]
    results = ["the loss", *paths, *[entry.path for entry in program.signature.returns.entries[1:]]]
    try:
        walk = PlacementWalk(graph, starts, ends, sizes, plan.size, results, plan.gathers)
    except Unplaced as error:
        raise _refused(program, plan, sizes, error) from None
    cuts = {node for node in places[len(program.tensors) :] if isinstance(starts[node], Shard)}
    return PlacedGraph(walk, starts, ends, cuts)


def _refused(program: Program, plan: NamedAxis, sizes: Extents, error: Unplaced) -> ProofError:
    step, backward = _step(program.proof.steps, error.node)
    name = step.operation if step is not None else operation(error.node)
    operands = ", ".join(step.operands) if step is not None else ""
    shown = f"{operands} -> {step.result}" if step is not None else ""
    phase = ", in its backward pass" if backward else ""
    return ProofError(
        f"`{program.signature.name}` does not fit the plan: {plan}{phase}.",
        step.source if step is not None else None,
        Goal(operation=name, operands=shown, equation=error.goal, hint=error.hint),
    )


def _step(steps: Sequence[Step], node: Node) -> tuple[Step | None, bool]:
    """The operation of the user's that a node belongs to, or whose gradient it computes."""
    seen, waiting, backward = {node}, [node], False
    while waiting:
        found = waiting.pop(0)
        at = found.meta.get(STEP)
        if at is not None and at < len(steps):
            return steps[at], backward
        backward = True
        begins = operation(found) == "ones_like"  # the gradient of the loss, where the way back ends
        inputs = [n for n in found.all_input_nodes if n not in seen and not begins]
        seen.update(inputs)
        # what a backward operation kept of the forward pass is nearer to it than the gradient that comes in
        waiting = [n for n in inputs if STEP in n.meta] + waiting + [n for n in inputs if STEP not in n.meta]
    return None, backward


def said(
    entries: Sequence[Entry], found: PlacedGraph, plan: NamedAxis, batch: str, gradients: int
) -> list[tuple[str, str]]:
    """Lines of a statement: how parameters lie, and what a step sends.

    Args:
        entries: The parameters.
        batch: "batch over dp = 2"; empty where it is not shared out.
        gradients: Bytes of gradients that each rank gives to the ranks that share out the batch.
    """
    sizes, lies = found.walk.sizes, []
    for entry, start in zip(entries, found.starts.values(), strict=False):
        if isinstance(start, Shard):
            dims = [f"{d}/{plan.axis}" if i == start.axis else str(d) for i, d in enumerate(map(str, entry.spec.dims))]
            lies.append(f"{entry.path} [{', '.join(dims)}]")
    shown = lies if len(lies) <= 12 else [*lies[:6], f"... {len(lies) - 8} more ...", *lies[-2:]]
    whole = len(entries) - len(lies)
    lines = [("ranks", "; ".join(filter(None, [batch, str(plan)])))]
    lines.append(("a rank has", f"{', '.join(shown)}{f'; {whole} others whole' if whole else ''}"))
    for phase, backward in (("forward", False), ("backward", True)):
        told = _told(sizes, [c for c in found.walk.collectives if c.backward == backward])
        lines.append((phase, f"{told or 'nothing'} over {plan.axis}"))
    if gradients:
        lines.append(("update", f"gradients, {gradients:,} bytes, and one agreement of {VECTOR}"))
    else:
        lines.append(("update", f"one agreement of {VECTOR} bytes"))
    return lines


def _told(sizes: Extents, collectives: Sequence[Collective]) -> str:
    """`4 sums of [batch, seq, dim], 96*batch*seq bytes each`."""
    counted = Counter((c.kind, c.sizes, c.itemsize) for c in collectives)
    parts = []
    for (kind, shape, itemsize), count in counted.items():
        entries = sympy.Mul(itemsize, *map(sizes.at, shape))
        each = " each" if count > 1 else ""
        noun = {"max": "maximum", "min": "minimum"}.get(kind, kind) if count == 1 else f"{kind}s"
        noun = noun.replace("maxs", "maxima").replace("mins", "minima")
        parts.append(f"{count} {noun} of {sizes.shape(list(shape))}, {sizes.show(entries)} bytes{each}")
    return "; ".join(parts)
