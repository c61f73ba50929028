"""What a loss reads from outside while it is trained: tensors that become inputs, values that are watched.

A proof stands for the values that its trace read. A `World` is one such set of values, with the proofs and batches that
hold in it. Each step asks whether they are still there, which costs about 40 ns for each. Where one has changed the
loss is proved and traced anew; where it changes back, the earlier world goes on.

Tensors are followed, written in place or replaced: the graph takes them as inputs that are read at each call.
"""

import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from shaped.errors import ShapeError, listing
from shaped.proof.reads import (
    ATTRIBUTE,
    CELL,
    ITEM,
    MISSING,
    PLAIN,
    READS,
    WHOLE,
    Read,
    Reads,
    is_node,
    is_traced,
    same,
)
from shaped.shapes import describe

PROOFS = 256  # that are kept, of other dtypes and static sizes
WORLDS = 16  # sets of values that are proved; one more is refused
_FLOATS = 2  # of these, those in which an eager step differs in nothing but floats
_get, _MISSINGS = dict.get, repeat(MISSING)
_content: Callable[[Any], Any] = attrgetter("cell_contents")
_kind: Callable[[Tensor], Any] = attrgetter("shape", "dtype", "device")


@dataclass
class Difference:
    """What is not as it was when the loss was proved.

    Attributes:
        changed: Values, with what they were and what they are.
        misfits: Tensors of another shape, dtype or device.
        floats: Whether all that changed are floats.
    """

    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.misfits)

    @property
    def floats(self) -> bool:
        """Whether all that changed are floats."""
        return all(type(old) is float and type(new) is float for old, new in self.changed.values())


@dataclass(frozen=True)
class _Place:
    """A read of any of a world's graphs, and whether it is compared at each step."""

    read: Read
    watched: bool


class OutsideValues:
    """The values that proofs were made under, and all that holds only there.

    Args:
        number: Of the world, a part of the executors' keys.
        own: Ids of the program's own tensors, whose shapes are looked at elsewhere.
    """

    def __init__(self, number: int = 0, own: frozenset[int] = frozenset()) -> None:
        self.number, self._own = number, own
        self.proofs: dict[Any, Any] = {}
        self.cases: dict[Any, Any] = {}
        self.codes: set[tuple[types.CodeType, str]] = set()  # that the traces ran, each with its module
        self._reads: list[_Place] = []  # each place once, however many graphs read it; after what it lies in
        self._calls: dict[Hashable, Read] = {}  # functions of libraries, each by its place
        self._known: dict[Hashable, int] = {}
        self._lifted: dict[GraphModule, tuple[set[int], Lifted]] = {}
        self._gather()

    def add(self, graph: GraphModule) -> Reads:
        """Take over what the trace of a graph read."""
        reads: Reads = graph.meta.get(READS) or Reads()
        before = len(self._reads) + len(self._calls)
        self._places(reads)
        self._calls |= {(id(read.owner), read.key): read for read in reads.calls}
        self.codes |= reads.codes
        if len(self._reads) + len(self._calls) > before:
            self._gather()
        return reads

    def places(self) -> list[tuple[Read, bool]]:
        """Each read, and whether it is compared at each step."""
        return [(place.read, place.watched) for place in self._reads]

    def restore(self, reads: Sequence[tuple[Read, bool]]) -> None:
        """Take over what the trace of another process read, with what is there now."""
        for read, watched in reads:
            place = (read.parent, read.kind, read.key, read.own, watched, id(read.owner) if read.parent < 0 else 0)
            self._known[place] = len(self._reads)
            self._reads.append(_Place(read, watched))
        self._gather()

    def _places(self, reads: Reads) -> dict[Read, Read]:
        """For each read of a trace the one that stands for it here, a new one where there is none."""
        at: list[int] = []
        for read, watched in zip(reads.found, _are_watched(reads), strict=True):
            parent = at[read.parent] if read.parent >= 0 else -1
            place = (parent, read.kind, read.key, read.own, watched, id(read.owner) if parent < 0 else 0)
            known = self._known.get(place)
            if known is None or not _alike(self._reads[known].read, read):
                known = self._known[place] = len(self._reads)
                self._reads.append(_Place(replace(read, parent=parent), watched))
            at.append(known)
        return {read: self._reads[i].read for read, i in zip(reads.found, at, strict=True)}

    def lifted(self, graph: GraphModule, storages: set[int], apart: bool = False) -> "Lifted":
        """A graph with inputs for what it reads from outside: one for all batches, while storages stay.

        Args:
            graph: Of a proof, or of sizes that are traced apart, which no other batch has.
            storages: The memory of the parameters.
            apart: Whether it is the second.
        """
        known = self._lifted.get(graph)
        if known is None or known[0] is not storages:
            lifted = lift(graph, self.add(graph), storages)
            places = self._places(graph.meta.get(READS) or Reads())
            known = storages, replace(lifted, reads=tuple(places[read] for read in lifted.reads))
            if not apart:
                keep(self._lifted, graph, known, PROOFS)
        return known[1]

    def holds(self) -> bool:
        """Whether everything is what it was, as far as a comparison of identities tells."""
        if self._owners and not all(map(is_, map(_get, self._owners, self._keys, _MISSINGS), self._held)):
            return False
        if self._cells and not all(map(is_, map(_content, self._cells), self._cell_values)):
            return False
        if self._found and not all(map(is_, map(getattr, self._found, self._names, _MISSINGS), self._there)):
            return False
        if self._tables and list(map(tuple, self._tables)) != self._columns:
            return False
        if self._tensors and list(map(_kind, self._tensors)) != self._kinds:
            return False
        return not self._others or all(same(read.value, read.now()) for read in self._others)

    def follow(self) -> Difference:
        """Look everything up along its path; where only objects and tensors were replaced, go on with those."""
        difference = Difference()
        now = _looked_up(self._reads, difference)
        for read in self._calls.values():
            if (value := read.now()) is not read.value:
                difference.changed.setdefault(read.text, (read.value, value))
        if not difference:
            for place, (owner, value) in zip(self._reads, now, strict=True):
                place.read.owner, place.read.value = owner, value
            self._gather()
        return difference

    def _gather(self) -> None:
        """All reads once, ordered for `holds`."""
        once = {(id(p.read.owner), p.read.kind, p.read.key): p.read for p in self._reads if p.watched}
        sorts: dict[str, list[Read]] = {sort: [] for sort in (PLAIN, CELL, ATTRIBUTE, WHOLE, "")}
        sorts[PLAIN] += self._calls.values()
        for read in once.values():
            sorts[_sort(read)].append(read)
        self._owners, self._keys = [r.owner for r in sorts[PLAIN]], [r.key for r in sorts[PLAIN]]
        self._held = [r.value for r in sorts[PLAIN]]
        self._cells, self._cell_values = [r.owner for r in sorts[CELL]], [r.value for r in sorts[CELL]]
        self._found, self._names = [r.owner for r in sorts[ATTRIBUTE]], [r.key for r in sorts[ATTRIBUTE]]
        self._there = [r.value for r in sorts[ATTRIBUTE]]
        self._tables, self._columns = [r.owner for r in sorts[WHOLE]], [r.value for r in sorts[WHOLE]]
        self._others = sorts[""]
        tensors = (r.value for r in once.values() if isinstance(r.value, Tensor))
        self._tensors = [t for t in tensors if id(t) not in self._own]
        self._kinds = list(map(_kind, self._tensors))
        self.watched = len(once)


def _sort(read: Read) -> str:
    """As what a read is compared, many at once in C; the others are looked up one by one."""
    if read.kind in (PLAIN, CELL):
        return read.kind
    if type(read.owner) in (dict, OrderedDict):
        if read.kind == ITEM:
            return PLAIN
        if read.kind == WHOLE and isinstance(read.value, tuple) and all(type(k) in (str, int) for k in read.value):
            return WHOLE
    if read.kind == ATTRIBUTE and read.now() is read.value:  # a method is made anew at each look
        return ATTRIBUTE
    return ""


def _are_watched(reads: Reads) -> list[bool]:
    """Which are compared: no modules, nothing that the program itself changes, nor what is in that."""
    left: list[bool] = []
    changed = set(map(id, reads.changed))
    for read in reads.found:
        left.append(id(read) in changed or (read.parent >= 0 and left[read.parent]))
    pairs = zip(reads.found, left, strict=True)
    return [not gone and not isinstance(read.value, types.ModuleType) for read, gone in pairs]


def _alike(known: Read, read: Read) -> bool:
    """Whether two looks at one place saw the same, as far as a later look tells it."""
    if isinstance(known.value, Tensor) and isinstance(read.value, Tensor):
        return (known.proved or _kind(known.value)) == (read.proved or _kind(read.value))
    return same(known.value, read.value) or (is_node(known) and type(known.value) is type(read.value))


def _looked_up(places: Sequence[_Place], difference: Difference) -> list[tuple[Any, Any]]:
    """The owner and the value of each read as they are now."""
    now: list[tuple[Any, Any]] = []
    parents = {place.read.parent for place in places}
    for i, (read, watched) in enumerate((place.read, place.watched) for place in places):
        owner = read.owner
        if read.parent >= 0:
            above = now[read.parent][1]
            owner = getattr(above, "__dict__", {}) if read.own else above
        value = Read(read.kind, owner, read.key, None).now() if owner is not MISSING else MISSING
        now.append((owner, value))
        if not watched or same(read.value, value):
            fits = not isinstance(value, Tensor) or _fits(read, value, difference)
        elif isinstance(read.value, Tensor) and isinstance(value, Tensor):
            fits = _fits(read, value, difference)
        else:
            fits = is_node(read) and type(value) is type(read.value) and i in parents
        if not fits and watched:
            difference.changed.setdefault(read.text, (read.value, value))
    return now


def _fits(read: Read, new: Tensor, difference: Difference) -> bool:
    """Whether a tensor is of the kind that was proved; it is noted where it is not."""
    proved = read.proved or _kind(read.value)
    if is_traced(new) or _kind(new) == proved:
        return True
    shape, dtype, device = proved
    was = f"{str(dtype).removeprefix('torch.')} {tuple(shape)} on {device}"
    difference.misfits.append(f"{read.text}: {was} when it was proved, {describe(new)} on {new.device} now")
    return True


@dataclass(frozen=True)
class Lifted:
    """A proved graph that takes what it reads from outside as inputs, after all others.

    Attributes:
        graph: The graph; the proved one itself where it reads no tensor from outside.
        reads: Where these tensors lie, in order.
        refusal: Why it cannot be compiled, if so.
        looks: What the loss reads of an input beside its values.
    """

    graph: GraphModule
    reads: tuple[Read, ...] = ()
    refusal: str = ""
    looks: str = ""


def lift(graph: GraphModule, reads: Reads, storages: set[int]) -> Lifted:
    """Make inputs of the tensors that a trace took from outside.

    Args:
        graph: What was traced; it stays as it is.
        reads: What was read on the way.
        storages: The memory of the parameters.
    """
    refusal = _refusal(graph, reads)
    found: dict[str, Read] = {}
    for node in graph.graph.nodes:
        if node.op != "get_attr" or refusal or _is_made_within(node):
            continue
        tensor = attrgetter(str(node.target))(graph)
        read = reads.of_tensor(tensor)
        if tensor.untyped_storage().data_ptr() in storages and tensor.numel():
            which = f"`{read.text}`" if read is not None else f"a tensor of shape {list(tensor.shape)}"
            refusal = f"reads {which} from outside, which lies in a parameter's memory: take the parameter itself"
        elif read is None:
            refusal = (
                f"reads a tensor of shape {list(tensor.shape)} from outside, and it is not known where it will be "
                "found again: pass it as an input"
            )
        else:
            found[str(node.target)] = read
    if refusal or not found:
        return Lifted(graph, (), refusal, reads.looks)
    return Lifted(_with_inputs(graph, found), tuple(dict.fromkeys(found.values())), looks=reads.looks)


def _with_inputs(graph: GraphModule, found: dict[str, Read]) -> GraphModule:
    made = Graph()
    mapping: dict[Node, Node] = {}
    made.output(made.graph_copy(graph.graph, mapping))
    last = [node for node in made.nodes if node.op == "placeholder"][-1]
    inputs: dict[Read, Node] = {}
    for node in list(made.nodes):
        if node.op == "get_attr" and str(node.target) in found:
            read = found[str(node.target)]
            if read not in inputs:
                with made.inserting_after(last):
                    last = inputs[read] = made.placeholder(f"outside_{len(inputs)}")
                last.meta = dict(node.meta)
            node.replace_all_uses_with(inputs[read])
            made.erase_node(node)
    lifted = GraphModule(graph, made)
    lifted.meta.update(graph.meta)
    return lifted


def _is_made_within(node: Node) -> bool:
    """Whether a constant is the program's own: torch.tensor(2.0) is lifted into the graph."""
    return bool(node.users) and all("lift_fresh" in str(user.target) for user in node.users)


def _refusal(graph: GraphModule, reads: Reads) -> str:
    if reads.depends:
        return f"changes {listing(reads.depends)}, which it reads, and a compiled step would not: pass it as an input"
    if reads.beyond:
        return f"reads `{reads.beyond}` from outside, which holds too much to be watched: pass it as an input"
    if reads.hidden:
        return f"reads {reads.hidden} from outside, and what that holds cannot be watched: pass it as an input"
    for node in graph.graph.nodes:
        held = [attrgetter(str(node.target))(graph)] if node.op == "get_attr" else []
        if any(isinstance(leaf, torch.Generator) for leaf in pytree.tree_leaves((node.args, node.kwargs, held))):
            return "draws from a generator of its own: draw outside and pass it as an input, or use torch's default one"
    return ""


class Outside:
    """The worlds of a program, and which of them is now.

    Args:
        name: Of the loss.
        own: The program's own tensors.
    """

    def __init__(self, name: str, own: Sequence[Tensor] = ()) -> None:
        self._name, self._own = name, frozenset(map(id, own))
        self.now = OutsideValues(own=self._own)
        self._worlds = [self.now]
        self._before = self.now  # where to go back to, if the new one is not proved
        self._made = self._floats = 0
        self._warned = False
        self.beyond = ""  # why no other world is proved
        self.moves = 0  # how often a look found something changed

    def is_as_it_was(self) -> bool:
        """Whether the values of the world that is now are those that are there."""
        return self.now.holds() or not self.now.follow()

    def look(self, eager: bool) -> None:
        """Go to the world whose values are there now, a new one if they are new.

        Raises:
            ShapeError: A tensor is of another shape, dtype or device than was proved.
        """
        if not (self.now.proofs or self.now.cases) and self.now is not self._before:
            self._worlds.remove(self.now)
            self.now = self._before
        if self.now.holds():
            self.beyond = ""
            return
        self.moves += 1
        difference = self.now.follow()
        if not difference:
            self.beyond = ""
            return
        if not difference.changed:
            raise ShapeError(
                f"`{self._name}` was proved for other tensors from outside; make a new trainer for these.\n  "
                + "\n  ".join(difference.misfits)
            )
        known = next((world for world in self._worlds if world is not self.now and not world.follow()), None)
        if known is not None:
            self.now, self.beyond = known, ""
        elif eager and difference.floats and self._floats >= _FLOATS:
            pass  # an eager step follows it, and what was proved for other floats twice holds
        elif len(self._worlds) >= WORLDS:
            names = listing(list(difference.changed))
            self.beyond = (
                f"{names} changed again, and `{self._name}` was proved for {WORLDS} values of what it reads from "
                "outside: keep it in a tensor (a number in one of shape ()), which is read at each step, or pass it "
                "as an input"
            )
        else:
            self._floats += difference.floats
            self._made += 1
            self._before, self.now, self.beyond = self.now, OutsideValues(self._made, self._own), ""
            self._worlds.append(self.now)
        if eager and self.beyond and not self._warned:
            self._warned = True
            warnings.warn(f"the proof is not renewed any more: {self.beyond}", RuntimeWarning, stacklevel=2)


def keep(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Put a value in, and let the oldest go where there are as many as may be."""
    if len(kept) >= most and key not in kept:
        del kept[next(iter(kept))]
    kept[key] = value


def tensors_of(reads: Sequence[Read]) -> list[Tensor]:
    """What lies there now."""
    return [read.value.detach() for read in reads]
