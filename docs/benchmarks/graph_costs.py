"""Flops and bytes of a proved graph on one rank, in expressions of its sizes: what `cost_model.py` multiplies out.

Whatever a plan by name divides is counted as this rank's part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped import ScalarTrainer
from shaped.backends.placed import placed
from shaped.ranks.extents import extents, product
from shaped.ranks.naming import NamedAxis
from shaped.ranks.placements import Partial, Shard
from shaped.ranks.walk import PlacementWalk, operation

Size = Any  # a sympy expression of sizes, or a number
_VIEWS = {
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "t", "detach", "alias", "expand", "slice", "select"),
    *("split", "chunk", "unbind", "unsqueeze", "squeeze", "getitem", "sym_size", "sym_numel", "as_strided"),
}
_SIZES = {"sym_size", "sym_numel", "ones_like", "zeros_like", "new_zeros", "new_ones", "new_full", "new_empty"}
_PRODUCTS = {"mm": 2, "bmm": 2, "addmm": 2, "baddbmm": 2}


@dataclass(frozen=True)
class Operation:
    """One operation of a step on a rank, in expressions of sizes."""

    name: str
    flops: Size
    bytes: Size


@dataclass(frozen=True)
class Counted:
    """A program of one rank, counted; lengths are in entries of a dimension's name.

    Attributes:
        eager, fused: Its operations.
        sums: Bytes of each sum over the names' axis.
        saved: Bytes that the backward pass reads of what the forward pass computed.
        held: Entries of parameters that a rank has by name.
        layer: Of those, how many each has.
    """

    eager: list[Operation]
    fused: list[Operation]
    sums: list[Size]
    saved: Size
    held: Size
    layer: list[Size]


class Counter:
    """Counts one proved graph under a plan of names over an axis of `size` ranks."""

    def __init__(self, graph: GraphModule, walk: PlacementWalk | None, params: int, size: int) -> None:
        self._walk, self._size = walk, size
        self._nodes = [n for n in graph.graph.nodes if n.op in ("placeholder", "call_function")]
        self._params = set([n for n in self._nodes if n.op == "placeholder"][:params])

    def bytes(self, node: Node) -> Size:
        """Of a value on one rank."""
        value, held = node.meta.get("val"), self._walk.held.get(node) if self._walk is not None else None
        several = value if isinstance(value, tuple | list) else [value]
        each = held if isinstance(held, tuple) else [held] * len(several)
        total = sympy.Integer(0)
        for one, how in zip(several, each, strict=False):
            if isinstance(one, Tensor):
                share = self._size if isinstance(how, Shard) else 1
                total += product(extents(one)) * one.element_size() / share
        return total

    def flops(self, node: Node) -> Size:
        """Of a product or attention on one rank; others are bound by memory."""
        name, operands = operation(node), [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if name in _PRODUCTS:
            a, b = (n.meta["val"] for n in operands[-2:])
            found = 2 * product(extents(a)) * extents(b)[-1]
        elif "attention" in name:
            q = node.args[1 if "backward" in name else 0].meta["val"]  # type: ignore[union-attr]
            *_, length, _ = extents(q)
            found = (10 if "backward" in name else 4) * product(extents(q)) * length
        else:
            return sympy.Integer(0)
        parts = [n for n in (node, *operands) if self._parted(n)]
        return found / (self._size if parts else 1)

    def _parted(self, node: Node) -> bool:
        held = self._walk.held.get(node) if self._walk is not None else None
        return any(isinstance(one, Shard | Partial) for one in (held if isinstance(held, tuple) else [held]))

    def _works(self) -> Iterable[Node]:
        return (n for n in self._nodes if n.op == "call_function" and operation(n) not in _VIEWS and self.bytes(n) != 0)

    def source(self, node: Node) -> Node:
        """The value that a view is one of."""
        while node.op == "call_function" and operation(node) in _VIEWS and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    def eager(self) -> list[Operation]:
        """Each operation reads its operands and writes its results."""
        found = []
        for node in self._works():
            moved = self.bytes(node) + sum(map(self.bytes, node.all_input_nodes))
            found.append(Operation(operation(node), self.flops(node), moved))
        return found

    def fused(self) -> list[Operation]:
        """Products and attention; what lies between two of them is one operation."""
        level: dict[Node, int] = {}
        for node in self._nodes:
            before = [level[n] + (self.flops(n) != 0) for n in node.all_input_nodes if n in level]
            level[node] = max(before, default=0)
        between: dict[int, set[Node]] = {}
        found = []
        for node in self._works():
            inputs = {self.source(n) for n in node.all_input_nodes}
            if self.flops(node) != 0:
                moved = self.bytes(node) + sum(map(self.bytes, inputs))
                found.append(Operation(operation(node), self.flops(node), moved))
                continue
            mine = between.setdefault(level[node], set())
            mine |= {n for n in inputs if level[n] < level[node] or n.op == "placeholder" or self.flops(n) != 0}
            if any(level[user] > level[node] or self.flops(user) != 0 for user in self._users(node)):
                mine.add(node)
        return [*found, *(Operation("fused", sympy.Integer(0), sum(map(self.bytes, b))) for b in between.values())]

    def _users(self, node: Node) -> Iterable[Node]:
        for user in node.users:
            if user.op == "call_function" and operation(user) in _VIEWS:
                yield from self._users(user)
            elif user.op == "call_function":
                yield user

    def saved(self) -> Size:
        """Bytes of what the forward pass computed and the backward pass reads, beside inputs and parameters."""
        begins = next((i for i, n in enumerate(self._nodes) if operation(n) == "ones_like"), len(self._nodes))
        forward, backward = set(self._nodes[:begins]), set(self._nodes[begins:])
        kept = {
            self.source(n)
            for n in forward
            if any(user in backward and operation(user) not in _SIZES for user in n.users)
        }
        made = (n for n in kept if n.op == "call_function" and not self._cast(n))
        return sum(map(self.bytes, made), sympy.Integer(0))

    def _cast(self, node: Node) -> bool:
        """Whether a value is a parameter in another dtype, which is made again where it is read."""
        return operation(node) == "_to_copy" and self.source(node.all_input_nodes[0]) in self._params


def count(trainer: ScalarTrainer, names: Sequence[str] = (), size: int = 1) -> Counted:
    """Count a trainer's program on one rank of `size` that share `names` out."""
    program = trainer._program
    graph: GraphModule = program.proof.graph
    walk = placed(program, graph, program.inputs, NamedAxis("tp", size, tuple(names))).walk if size > 1 else None
    counter = Counter(graph, walk, len(program.tensors), size)
    places = [n for n in graph.graph.nodes if n.op == "placeholder"][: len(program.tensors)]
    held = [counter.bytes(n) / n.meta["val"].element_size() for n in places]
    sums = [] if walk is None else [c.bytes for c in walk.collectives]
    return Counted(counter.eager(), counter.fused(), sums, counter.saved(), sum(held), held)
