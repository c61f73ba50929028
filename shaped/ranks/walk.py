"""The walk over a proved graph that places every value along one axis of a mesh, forward and backward.

Parameters and inputs begin as the names of their axes say; each operation has a rule that says what it gives for what
it takes. Two invariants hold all along, and make the parts on the ranks the program:

    Shard      the ranks' parts, put together, are the value of the proved graph
    Partial    their sum is; it is taken before anything but a linear operation reads it

An operation without a rule takes and gives whole values. Where it would take parts, the plan is refused. At the end the
loss is whole and every gradient lies as its parameter does: no gradient is left pending a reduction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped.ranks.extents import Extents, computable, extents, product
from shaped.ranks.placements import PENDING, WHOLE, Held, Partial, Replicate, Shard


class Unplaced(Exception):
    """An operation cannot be run on parts.

    Attributes:
        node: Which one.
        goal: What would have to hold.
        hint: What to do.
        operands: Which of its operands would have to be whole; none where it is any of them.
    """

    def __init__(self, node: Node, goal: str, hint: str = "", operands: Sequence[Node] = ()) -> None:
        super().__init__(goal)
        self.node, self.goal, self.hint, self.operands = node, goal, hint, operands


@dataclass
class Task:
    """What is done at a node on parts beside running it.

    Attributes:
        sums: Values whose sum over the ranks is taken before.
        gathers: Values that are made whole before, with how they lay until then.
        cuts: Whole values of which this rank takes its part, for this node alone.
        sizes: Arguments that are sizes of the whole, and are divided by the number of ranks: position, and index in it.
        how: What is run in the operation's place.
        ways: What that is told.
    """

    sums: list[Node] = field(default_factory=list)
    gathers: dict[Node, Shard] = field(default_factory=dict)
    cuts: dict[Node, Shard] = field(default_factory=dict)
    sizes: list[tuple[int, int | None]] = field(default_factory=list)
    how: str = ""
    ways: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Collective:
    """A collective of a pass.

    Attributes:
        kind: "sum", "max", "min" or "gather".
        sizes: Of what each rank gives.
        itemsize: Bytes of an entry.
        what: The operation, or the parameter whose gradient it is.
        backward: Whether it belongs to the backward pass.
    """

    kind: str
    sizes: tuple[sympy.Expr, ...]
    itemsize: int
    what: str
    backward: bool

    @property
    def bytes(self) -> sympy.Expr:
        """How many each rank gives."""
        return self.itemsize * product(list(self.sizes))


Rule = Callable[["PlacementWalk", Node], Held | tuple[Held, ...]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operations, by their names in aten."""

    def registered(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return registered


class PlacementWalk:
    """One graph under a plan.

    Args:
        graph: The proved one, or the part of it that gives the loss.
        starts: How each placeholder lies.
        ends: How each result should; None for what is no tensor.
        sizes: What is known of sizes.
        size: How many ranks the axis has.
        names: Of the results, for messages.
        gathers: Whether a value in parts is made whole where an operation must see it so; otherwise that is refused.

    Attributes:
        held: How each value lies: for one with several results, of each.
        tasks: What is done at some nodes.
        collectives: In their order.

    Raises:
        Unplaced: An operation cannot be run on parts.
    """

    def __init__(
        self,
        graph: GraphModule,
        starts: Mapping[Node, Held],
        ends: Sequence[Held | None],
        sizes: Extents,
        size: int,
        names: Sequence[str],
        gathers: bool = False,
    ) -> None:
        self.graph, self.sizes, self.size, self._gathers = graph, sizes, size, gathers
        self.held: dict[Node, Held | tuple[Held, ...]] = dict(starts)
        self.tasks: dict[Node, Task] = {}
        self.collectives: list[Collective] = []
        self._pending: set[Node] = set()  # what has been a sum to be taken
        nodes = list(graph.graph.nodes)
        self._written = {n for node in nodes for target in written_by(node) for n in sharing(target)}
        self._forward = _ancestors(nodes[-1].args[0][:1])
        for node in nodes:
            if node.op in ("placeholder", "get_attr"):
                self.held.setdefault(node, WHOLE)
            elif node.op == "call_function":
                found = self.held[node] = self._placed(node)
                if PENDING in (found if isinstance(found, tuple) else (found,)):
                    self._pending.add(node)
            elif node.op == "output":
                self._end(node, ends, names)

    # -- what rules ask ----------------------------------------------------------------------------------------------

    def of(self, node: Any) -> Held:
        """How one value lies; what is no tensor is whole."""
        found = self.held.get(node, WHOLE) if isinstance(node, Node) else WHOLE
        return found if not isinstance(found, tuple) else WHOLE

    def parts(self, axis: int, before: Any = 1) -> Shard:
        """Parts along an axis, with sizes that are known as numbers."""
        return Shard(axis, self.sizes.at(sympy.sympify(before)))

    def shape(self, node: Node) -> list[sympy.Expr]:
        """The sizes of one value, of the whole."""
        return extents(node.meta["val"])

    def task(self, node: Node) -> Task:
        """What is done at a node."""
        return self.tasks.setdefault(node, Task())

    def settle(self, node: Node, *operands: Any) -> None:
        """Have sums that some operands are taken before a node runs."""
        for operand in operands:
            if isinstance(operand, Node) and isinstance(self.of(operand), Partial):
                self.task(node).sums.append(operand)
                self.held[operand] = WHOLE
                self.count("sum", node, operand.meta["val"])

    def count(
        self, kind: str, node: Node, value: Tensor, what: str = "", divided: int | None = None, times: int = 1
    ) -> None:
        """Note a collective of a value's shape, with an axis in parts or left out, and `times` as many bytes."""
        backward = node not in self._forward
        sizes = extents(value)
        if divided is not None:
            sizes[divided] = sympy.Integer(1)
        itemsize = times * value.element_size()
        self.collectives.append(Collective(kind, tuple(sizes), itemsize, what or operation(node), backward))

    def cut(self, node: Node, operand: Node, shard: Shard) -> None:
        """Have a node take this rank's part of an operand: the whole is cut, parts must be cut so already."""
        self.settle(node, operand)
        held = self.of(operand)
        if isinstance(held, Replicate):
            if not computable(shard.before):
                self.whole(node, *[n for n in node.all_input_nodes if isinstance(self.of(n), Shard)])
            self.task(node).cuts[operand] = shard
        elif held != shard:
            raise self.clash(node, operand, held)

    def clash(self, node: Node, operand: Node, held: Held) -> Unplaced:
        """Of an operand whose parts are along another axis than the operation's."""
        shape = self.sizes.shape(self.shape(operand))
        return Unplaced(
            node,
            f"one axis in parts, and an operand {shape} has parts along another ({held})",
            "two names of one value lie over one axis of the mesh: leave one of them out of shard",
            [operand],
        )

    def whole(self, node: Node, *operands: Any, hint: str = "") -> None:
        """Hold some operands to be whole."""
        self.settle(node, *operands)
        for operand in operands:
            held = self.of(operand)
            if isinstance(held, Shard):
                shape = self.shape(operand)
                name = self.sizes.show(shape[held.axis])
                raise Unplaced(
                    node,
                    f"{name} whole, and a rank has a part of it in {self.sizes.shape(shape)}",
                    hint
                    or f"leave {name} out of shard; or write the operation so that each part is computed by itself",
                    [operand],
                )

    def is_due(self, node: Node) -> bool:
        """Whether a value is a sum that is yet to be taken where it is made."""
        return node in self._pending

    # -- the walk ----------------------------------------------------------------------------------------------------

    def _placed(self, node: Node) -> Held | tuple[Held, ...]:
        """How a node's result lies; what it must see whole is gathered first, where that is asked for."""
        while True:
            try:
                return self._by_rule(node)
            except Unplaced as error:
                if not self._made_whole(node, error):
                    raise

    def _made_whole(self, node: Node, error: Unplaced) -> bool:
        """Gather what an operation must see whole, for it and all that come after; False where that cannot be."""
        operands = [n for n in error.operands or node.all_input_nodes if isinstance(self.of(n), Shard)]
        if not self._gathers or not operands or _mutates(node) or not self._written.isdisjoint(operands):
            return False
        for operand in operands:
            shard = self.held[operand]
            assert isinstance(shard, Shard)
            if not computable(shard.before):
                return False
            sizes = extents(operand.meta["val"])
            sizes[shard.axis] = sizes[shard.axis] / self.size
            task = self.task(node)
            task.gathers[operand], self.held[operand] = shard, WHOLE
            task.cuts, task.sizes, task.how = {}, [], ""
            backward = node not in self._forward
            self.collectives.append(
                Collective("gather", tuple(sizes), operand.meta["val"].element_size(), operation(node), backward)
            )
        return True

    def _by_rule(self, node: Node) -> Held | tuple[Held, ...]:
        name = operation(node)
        if name == "getitem":
            several, at = args_of(node)
            found_at = self.held.get(several)
            if isinstance(found_at, tuple):
                return found_at[at]
        if not _is_tensors(node.meta.get("val")):
            return self._number(node, name)
        operands = [n for n in node.all_input_nodes if _is_tensors(n.meta.get("val"))]
        self._hold_written(node)
        if all(self.held[n] == WHOLE or _all_whole(self.held[n]) for n in operands):
            return self._all(node, WHOLE)
        found = RULES.get(name)
        if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            found = RULES["pointwise"]
        if found is None or (_mutates(node) and found is not RULES["masked_fill_"]):
            self.settle(node, *operands)
            if any(not _all_whole(self.held[n]) for n in operands):
                operand = next(n for n in operands if not _all_whole(self.held[n]))
                shape = self.sizes.shape(self.shape(operand)) if isinstance(operand.meta["val"], Tensor) else "values"
                raise Unplaced(
                    node,
                    f"a rule for `{name}` on parts, and {shape} is in parts there",
                    "there is none as yet: leave the name of that axis out of shard, or write it with operations that "
                    "have one",
                )
            return self._all(node, WHOLE)
        return found(self, node)

    def _hold_written(self, node: Node) -> None:
        """Refuse to write into a sum of parts: once it is taken, what else looks at that memory has the part."""
        for target in written_by(node):
            if any(n in self._pending for n in sharing(target)):
                raise Unplaced(
                    node,
                    f"`{operation(node)}` to write into values that each rank has, and there are sums of parts",
                    "write it without the trailing underscore or the assignment, such as torch.where",
                )

    def _number(self, node: Node, name: str) -> Held:
        """Of a size, or a number that is read from a value."""
        measures = name in ("sym_size", "sym_numel")
        for operand in node.all_input_nodes:
            if _is_tensors(operand.meta.get("val")) and not measures:
                self.whole(node, operand)
        return WHOLE

    def _all(self, node: Node, held: Held) -> Held | tuple[Held, ...]:
        value = node.meta["val"]
        return tuple(held for _ in value) if isinstance(value, tuple | list) else held

    def _end(self, node: Node, ends: Sequence[Held | None], names: Sequence[str]) -> None:
        for result, end, name in zip(args_of(node)[0], ends, names, strict=True):
            if end is None or not isinstance(result, Node):
                continue
            held = self.of(result)
            if isinstance(held, Partial):
                self.task(node).sums.append(result)
                self.held[result] = held = WHOLE
                self.count("sum", result, result.meta["val"], name)
            if isinstance(held, Shard) and held != end:
                error = Unplaced(
                    result,
                    f"{name} {end}, and it comes out with {held}",
                    "leave that name out of shard, or give the parameter's axis the name",
                    [result],
                )
                if not self._made_whole(node, error):
                    raise error


def operation(node: Node) -> str:
    """An operation's name, without its overload."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return str(getattr(target, "__name__", target))


def args_of(node: Node) -> Any:
    """The positional arguments of a node."""
    return node.args


def _is_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_is_tensors, value))
    return isinstance(value, Tensor)


def _all_whole(held: Any) -> bool:
    return all(one == WHOLE for one in held) if isinstance(held, tuple) else held == WHOLE


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def written_by(node: Node) -> list[Node]:
    """What an operation writes into."""
    if not _mutates(node):
        return []
    arguments = zip(node.target._schema.arguments, args_of(node), strict=False)  # type: ignore[union-attr]
    found = [given for argument, given in arguments if argument.alias_info and argument.alias_info.is_write]
    return [n for one in found for n in (one if isinstance(one, list | tuple) else [one]) if isinstance(n, Node)]


def sharing(node: Node) -> list[Node]:
    """All values of a graph that may look at the memory of one: what it is a view of, and the views of that."""
    while (base := _viewed(node)) is not None:
        node = base
    found = [node]
    for one in found:  # grows as it goes
        found.extend(user for user in one.users if _viewed(user) is one)
    return found


def _viewed(node: Node) -> Node | None:
    """What an operation's result is a view of."""
    if operation(node) == "getitem" or (
        isinstance(node.target, torch._ops.OpOverload) and any(r.alias_info for r in node.target._schema.returns)
    ):
        base = args_of(node)[0] if node.args else None
        return base if isinstance(base, Node) else None
    return None


def _ancestors(nodes: Sequence[Any]) -> set[Node]:
    seen: set[Node] = set()
    waiting = [n for n in nodes if isinstance(n, Node)]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return seen
