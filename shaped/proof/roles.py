"""What each parameter does in a proved program, read from its graph.

An axis that is contracted with activations is fan-in, one that stays is fan-out, one that both sides have counts
matrices, one that is looked up makes an embedding. A matrix after which no other weights come is an unembedding: only
the loss reads what it makes. In what layout a weight is written does not matter: axes are followed through views.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from shaped.proof import contractions  # noqa: F401  # its rules
from shaped.proof.axes import Application, AxisPart, Dim, Factor
from shaped.proof.flows import BATCH, IN, INDEX, OUT, Flow, Notes, Walk, name_of, sizes_of
from shaped.proof.motions import write
from shaped.roles import Role, Roles
from shaped_kernels.matrices import Axes


def read_roles(graph: GraphModule, names: Sequence[str], shapes: Sequence[Sequence[int]], *, inner: bool) -> Roles:
    """The roles of a forward graph's first inputs; `inner` says that the program differentiates within itself."""
    walk = Walk()
    roots: list[list[AxisPart]] = []
    for i, node in enumerate(node for node in graph.graph.nodes if node.op == "placeholder"):
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        if i < len(names):
            parts = [AxisPart(i, *size) for size in sizes_of(value)]
            roots.append(parts)
            dims: tuple[Dim, ...] = tuple(
                (Factor(part.size, part.expr, frozenset({part})),) if part.size > 1 else () for part in parts
            )
            walk.flows[node] = Flow(dims, "weight", frozenset({i}))
        else:
            walk.flows[node] = Flow(tuple(_plain(value)), "activation")
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            held = node.meta.get("val")
            walk.flows[node] = Flow(tuple(_plain(held)), "constant") if isinstance(held, Tensor) else None
        elif node.op == "call_function":
            walk.follow(node)
            packet = str(getattr(node.target, "overloadpacket", "")).removeprefix("aten.")
            if packet.endswith("_") and not packet.startswith("_"):
                write(walk, node, packet)
    sizes = _real_sizes(roots, shapes)
    verdict = _Verdict(walk, graph, inner, sizes)
    return Roles(verdict.role(i, name, tuple(shapes[i]), roots[i]) for i, name in enumerate(names))


def _plain(value: Tensor) -> list[Dim]:
    return [() if size == 1 else (Factor(size, expr),) for size, expr in sizes_of(value)]


def _real_sizes(roots: Sequence[Sequence[AxisPart]], shapes: Sequence[Sequence[int]]) -> dict[Any, int]:
    """What each symbol is at the parameters' sizes."""
    known: dict[Any, int] = {}
    facts = [(part.expr, int(size)) for parts, shape in zip(roots, shapes, strict=True)
             for part, size in zip(parts, shape, strict=True)]  # fmt: skip
    for _ in range(3):
        for expr, size in facts:
            left = sympy.sympify(expr).xreplace(known)
            if len(left.free_symbols) != 1:
                continue
            (symbol,) = left.free_symbols
            solution = [size] if left == symbol else sympy.solve(left - size, symbol) if left.is_polynomial() else []
            whole = [int(n) for n in solution if n == int(n) and n > 0]
            if whole:
                known[symbol] = sympy.Integer(whole[0])
    return known


class _Verdict:
    """From what a walk noted to roles."""

    def __init__(self, walk: Walk, graph: GraphModule, inner: bool, sizes: dict[Any, int]) -> None:
        self._walk, self._notes, self._inner, self._sizes = walk, walk.notes, inner, sizes
        self._uses = self._settled(walk.notes)
        self._before = self._before_weights(graph)

    def _settled(self, notes: Notes) -> list[Application]:
        """The applications, and what weights are that meet only constants or other weights."""
        uses = list(notes.applications)
        self._bind(notes, uses)
        known = {part.parameter for use in uses for part, role in use.roles.items() if role in (IN, INDEX)}
        for guess in notes.first_guess:
            mine = {part.parameter for part in guess.roles}
            if mine and not mine & known:
                uses.append(guess)
                known |= mine
        return uses

    @staticmethod
    def _bind(notes: Notes, uses: list[Application]) -> None:
        """Weights that are contracted with each other: what meets activations by another axis hands on by this one."""
        waiting = [(p, q) for p, q in notes.bonds if p.parameter != q.parameter]
        bound = Application(None)
        uses.append(bound)
        while waiting:
            into = {part.parameter for use in uses for part, role in use.roles.items() if role in (IN, INDEX)}
            out = {part.parameter for use in uses for part, role in use.roles.items() if role == OUT}
            ready = [
                pair
                for pair in waiting
                if (pair[0].parameter in into) != (pair[1].parameter in into)
                or (pair[0].parameter in out) != (pair[1].parameter in out)
            ]
            if not ready:
                return
            for p, q in ready[:1]:
                first = p.parameter in into or (q.parameter in out and q.parameter not in into)
                bound.roles.setdefault(p, OUT if first else IN)
                bound.roles.setdefault(q, IN if first else OUT)
                waiting.remove((p, q))

    def _before_weights(self, graph: GraphModule) -> set[Node]:
        """Calls whose result goes on to weights that are matrices."""
        matrices = {use.node for use in self._uses if use.node is not None and {IN, OUT} <= set(use.roles.values())}
        found: set[Node] = set()
        for node in reversed(graph.graph.nodes):
            if any(user in found or (user in matrices and self._is_fed(user, node)) for user in node.users):
                found.add(node)
        return found

    def _is_fed(self, product: Node, node: Node) -> bool:
        flow = self._walk.flows.get(node)
        if any(guess.node is product for guess in self._notes.first_guess):
            return True
        return not (isinstance(flow, Flow) and flow.source == "weight")

    def role(self, index: int, name: str, shape: tuple[int, ...], roots: Sequence[AxisPart]) -> Role:
        """One parameter's."""
        everything = [[*root.everything()] for root in roots]
        mine = {part for parts in everything for part in parts}
        uses = [use for use in self._uses if mine & set(use.roles)]
        contracting = [use for use in uses if any(use.roles.get(part) in (IN, INDEX) for part in mine)]
        if contracting:  # beside these it may be in a penalty, or multiply a first state that is zero
            uses = [use for use in uses if use in contracting or not use.entrywise]
        if self._inner:
            uses = self._forward(uses, roots)
        said = [self._of_axis(root, parts, uses) for root, parts in zip(roots, everything, strict=True)]
        looked_up = [bool(set(parts) & self._notes.looked_up) for parts in everything]
        looked_up = [up or INDEX in roles for up, roles in zip(looked_up, said, strict=True)]
        into, out = (any(role in roles for roles in said) for role in (IN, OUT))
        tied = any(up and roles & {IN, OUT} for up, roles in zip(looked_up, said, strict=True))
        if any(looked_up) and (tied or not (into and out)):
            axes = ", ".join(str(i) for i, up in enumerate(looked_up) if up)
            also = ", and contracted with activations elsewhere" if tied else ""
            return Role(name, shape, "embedding", None, f"looked up by axis {axes}{also}")
        if index in self._notes.lost and len([n for n in shape if n > 1]) > 1 and not (into and out):
            node = self._notes.lost[index]
            return Role(name, shape, "ambiguous", None, f"its axes are not followed through `{name_of(node)}`")
        return self._of_matrix(index, name, shape, roots, said, uses)

    def _forward(self, uses: Sequence[Application], roots: Sequence[AxisPart]) -> list[Application]:
        """Where the program differentiates within itself, products with a transposed weight are of its gradients."""
        first = next((use for use in uses if IN in use.roles.values()), None)
        if first is None:
            return list(uses)
        return [use for use in uses if not self._turned(first, use, roots)]

    @staticmethod
    def _turned(first: Application, other: Application, roots: Sequence[AxisPart]) -> bool:
        pairs = [(first.roles.get(root), other.roles.get(root)) for root in roots]
        return any({a, b} == {IN, OUT} for a, b in pairs)

    def _of_axis(self, root: AxisPart, parts: Iterable[AxisPart], uses: Sequence[Application]) -> set[str]:
        """Every role that some part of an axis has."""
        return {use.roles[part] for use in uses for part in parts if part in use.roles}

    def _of_matrix(
        self,
        index: int,
        name: str,
        shape: tuple[int, ...],
        roots: Sequence[AxisPart],
        said: Sequence[set[str]],
        uses: Sequence[Application],
    ) -> Role:
        factors: list[tuple[tuple[int, str], ...]] = []
        cut: tuple[int, tuple[int, ...]] | None = None
        outs = sum(OUT in roles for roles in said)
        for i, (root, size) in enumerate(zip(roots, shape, strict=True)):
            found = self._factors(root, size, uses, among=outs > 1)
            if isinstance(found, str):
                both = len(shape) == 2 and all({IN, OUT} <= roles for roles in said)  # read either way, the same matrix
                way = Axes(shape, (((shape[0], OUT),), ((shape[1], IN),))) if both else None
                return Role(name, shape, "ambiguous", way, f"axis {i} {found}")
            mine, lengths = found
            factors.append(mine)
            if lengths:
                cut = cut or (i, lengths)
        roles = {role for some in factors for size, role in some if size > 1}
        into, out = IN in roles, OUT in roles
        if not (into and out):
            return Role(name, shape, *self._other(index, into, out and sum(n > 1 for n in shape) > 1))
        if any({IN, OUT} <= {role for _, role in some} for some in factors):
            cut = None
        axes = Axes(shape, tuple(factors), cut)
        last = all(use.node is None or use.node not in self._before for use in uses if IN in use.roles.values())
        why = f"fan-in {axes.size(IN)}, fan-out {axes.size(OUT)}"
        why += f", {axes.size(BATCH)} of them" if axes.size(BATCH) > 1 else ""
        if last:
            return Role(name, shape, "unembedding", axes, f"{why}; no other weights come after it")
        return Role(name, shape, "matrix", axes, why)

    def _other(self, index: int, into: bool, out: bool) -> Any:
        """Kind, axes and reason of what is no matrix."""
        if into:
            return "vector", None, "contracted with activations to one number"
        if out:
            return "vector", None, "multiplied with one number"
        if index in self._notes.scaled:
            return "scale", None, "multiplied with activations"
        if index in self._notes.added:
            return "bias", None, "added to activations, or used with them entry by entry"
        return "scale", None, "used entry by entry"

    def _factors(
        self, root: AxisPart, size: int, uses: Sequence[Application], among: bool
    ) -> "tuple[tuple[tuple[int, str], ...], tuple[int, ...]] | str":
        """An axis as factors with roles, and where it is cut into unequal parts; or what is ambiguous of it."""
        leaves = [(leaf, self._role_of(root, leaf, uses)) for leaf in root.leaves()]
        for _, roles in leaves:
            if {IN, OUT} <= roles:
                return "is contracted with activations in one place and left over in another"
            if BATCH in roles and roles & {IN, OUT}:
                return f"is {'contracted' if IN in roles else 'left over'} in one place and counts matrices in another"
        made: list[tuple[int, str]] = []
        for i, (leaf, roles) in enumerate(leaves):
            role = next(iter(roles & {IN, OUT}), BATCH)
            apart = len(leaf.picked) == leaf.size  # each entry goes a way of its own: q, k and v
            if role == OUT and apart and (i < len(leaves) - 1 or (among and len(leaves) == 1)):
                role = BATCH
            number = self._at(leaf.expr)
            if number is None and len(leaves) > 1:
                return "is split into factors whose sizes do not follow from the parameters"
            made.append((size if len(leaves) == 1 else number or 0, role))
        made = _merged(made)
        if len(made) == 1 and made[0][1] in (IN, OUT):
            lengths = self._lengths(root, size)
            if lengths and len(set(lengths)) == 1:
                return ((len(lengths), BATCH), (lengths[0], made[0][1])), ()
            return tuple(made), lengths
        return tuple(made), ()

    def _role_of(self, root: AxisPart, leaf: AxisPart, uses: Sequence[Application]) -> set[str]:
        """The roles of a factor: in each use its own, or that of what it is a factor of, or of a stretch of that."""
        above = _path(root, leaf)
        found: set[str] = set()
        for use in uses:
            own = next((use.roles[part] for part in reversed(above) if part in use.roles), None)
            if own is not None:
                found.add(own)
            elif leaf is root or len(above) == 1:
                found |= {use.roles[part] for part in root.everything() if part in use.roles}
        return found - {INDEX}

    def _lengths(self, root: AxisPart, size: int) -> tuple[int, ...]:
        """The lengths of parts that an axis is cut into without rest; () where there are none."""
        ends = [*root.cuts.values(), *root.ends.values()]
        places = {(self._at(a), self._at(b)) for a, b in ends}
        spans = sorted((a, b) for a, b in places if a is not None and b is not None)
        if len(spans) < len(places):
            return ()
        at, lengths = 0, []
        for start, stop in spans:
            if start != at:
                return ()
            lengths.append(stop - start)
            at = stop
        return tuple(lengths) if at == size and len(lengths) > 1 else ()

    def _at(self, expr: Any) -> int | None:
        value = sympy.sympify(expr.node.expr if isinstance(expr, SymInt) else expr).xreplace(self._sizes)
        return int(value) if value.is_Integer else None


def _path(root: AxisPart, leaf: AxisPart) -> list[AxisPart]:
    """From an axis down to one of its factors."""
    if root is leaf:
        return [root]
    for part in root.factors or ():
        below = _path(part, leaf)
        if below:
            return [root, *below]
    return []


def _merged(factors: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Neighbours of one role as one."""
    made: list[tuple[int, str]] = []
    for size, role in factors:
        if made and made[-1][1] == role:
            made[-1] = (made[-1][0] * size, role)
        else:
            made.append((size, role))
    return made
