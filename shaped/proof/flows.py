"""What each operation of a proved graph does with the axes of its operands.

A flow is a tensor's dimensions as rows of factors, and what it comes from: weights alone, rows looked up in weights, or
inputs. Where weights meet activations, an `Application` notes what each of their axes is there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import Node

from shaped.proof.axes import Application, AxisPart, Dim, bare, joined, plain, same_factors, size_of
from shaped.proof.symbolic import size_hint

Source = Literal["constant", "weight", "looked up", "activation"]
_SAME = {"clone", "alias", "detach", "_to_copy", "lift_fresh_copy", "lift_fresh", "contiguous", "positive", "neg"}
_LINEAR = {*_SAME, "add", "sub", "mul", "div"}
_SUMS = {"sum", "mean"}
_REDUCES = {*_SUMS, "amax", "amin", "max", "min", "prod", "any", "all", "argmax", "argmin", "logsumexp", "var", "std"}
_REDUCES |= {"linalg_vector_norm", "norm", "var_mean", "median"}
_ONE_HOT = {"one_hot", "eq", "scatter"}
_KEEPS_DISCRETE = {
    "_to_copy",
    "view",
    "_unsafe_view",
    "clone",
    "unsqueeze",
    "squeeze",
    "expand",
    "transpose",
    "permute",
}
_NORMS = {"native_layer_norm", "_fused_rms_norm", "native_group_norm", "native_batch_norm", "cudnn_batch_norm"}
_NORMS |= {"_native_batch_norm_legit_functional", "_native_batch_norm_legit", "_batch_norm_with_update"}
_MIXES = {"as_strided", "inverse", "linalg_inv_ex", "linalg_pinv", "cholesky", "take_along_dim"}
IN, OUT, BATCH, INDEX = "in", "out", "batch", "index"


@dataclass(frozen=True)
class Flow:
    """A tensor's axes, and what it comes from."""

    dims: tuple[Dim, ...]
    source: Source
    weights: frozenset[int] = frozenset()
    one_hot: bool = False

    @property
    def is_weight(self) -> bool:
        """Whether it comes from weights, perhaps by looking rows up."""
        return self.source in ("weight", "looked up")


@dataclass
class Notes:
    """What a walk has found."""

    applications: list[Application] = field(default_factory=list)
    first_guess: list[Application] = field(default_factory=list)  # where weights meet constants or other weights
    bonds: list[tuple[AxisPart, AxisPart]] = field(
        default_factory=list
    )  # contracted with each other, before activations
    looked_up: set[AxisPart] = field(default_factory=set)
    added: set[int] = field(default_factory=set)
    scaled: set[int] = field(default_factory=set)
    lost: dict[int, Node] = field(default_factory=dict)  # parameters that go through what is not understood


def name_of(node: Node) -> str:
    """An operation's name: `mm` for aten.mm.default, and for one that is in place."""
    packet = getattr(node.target, "overloadpacket", None)
    name = str(packet).removeprefix("aten.") if packet is not None else getattr(node.target, "__name__", "")
    return name.removesuffix("_") if not name.startswith("_") else name


def sizes_of(value: Any) -> list[tuple[int, Any]]:
    """The sizes of a tensor: at the size hints, and as expressions."""
    return [
        (size_hint(n), n.node.expr) if isinstance(n, SymInt) else (int(n), sympy.Integer(int(n))) for n in value.shape
    ]


def joint(flows: Iterable[Flow]) -> tuple[Source, frozenset[int]]:
    """What a result of these comes from."""
    some = [flow for flow in flows if flow.source != "constant"]
    if not some:
        return "constant", frozenset()
    if len(some) == 1 or all(flow.source == "weight" for flow in some):
        return some[0].source, frozenset().union(*(flow.weights for flow in some))
    return "activation", frozenset()


class Walk:
    """Follows one graph; `run` gives what it found."""

    def __init__(self) -> None:
        self.flows: dict[Node, Any] = {}
        self.notes = Notes()

    # -- operations ------------------------------------------------------------------------------------------------

    def follow(self, node: Node) -> None:
        """Give a call's result its flow."""
        value = node.meta.get("val")
        name = name_of(node)
        if name == "getitem":
            several: Any = node.args[0]
            index: Any = node.args[1]
            flow = self.flows.get(several)
            self.flows[node] = flow[index] if isinstance(flow, list) else flow
            return
        operands = [self.flows[n] for n in node.all_input_nodes if isinstance(self.flows.get(n), Flow)]
        handler = _HANDLERS.get(name)
        result = None
        if handler is not None and operands:
            result = handler(self, node, name)
        if result is None:
            result = self._by_shape(node, name, value, operands)
        self.flows[node] = result

    def flow(self, argument: Any) -> Flow:
        """The flow of an operand."""
        found = self.flows.get(argument) if isinstance(argument, Node) else None
        return found if isinstance(found, Flow) else Flow((), "constant")

    def lose(self, flows: Iterable[Flow], node: Node) -> None:
        """Weights go through something that is not understood."""
        for flow in flows:
            if flow.is_weight and sum(map(bool, flow.dims)) > 1:
                for weight in flow.weights:
                    self.notes.lost.setdefault(weight, node)

    def _by_shape(self, node: Node, name: str, value: Any, operands: Sequence[Flow]) -> Any:
        """An operation without a rule: entry by entry if shapes say so."""
        if isinstance(value, list | tuple):
            shapes = [part for part in value if isinstance(part, Tensor)]
            if name not in _NORMS:
                self.lose(operands, node)
            else:
                learnt = [flow for flow in operands if flow.is_weight]
                self.notes.scaled.update(*(flow.weights for flow in learnt[:1]))
                self.notes.added.update(*(flow.weights for flow in learnt[1:]))
            source, weights = joint(operands)
            return [Flow(tuple(plain(*s) for s in sizes_of(part)), source, weights) for part in shapes]
        if not isinstance(value, Tensor):
            return None
        if operands and name not in _MIXES and all(self._fits(flow, value) for flow in operands):
            return self.entrywise(node, name, value, operands)
        if name not in _NORMS:
            self.lose(operands, node)
        source, weights = joint(operands)
        return Flow(tuple(plain(*s) for s in sizes_of(value)), source, weights)

    @staticmethod
    def _fits(flow: Flow, value: Tensor) -> bool:
        sizes = [size for size, _ in sizes_of(value)]
        tail = sizes[len(sizes) - len(flow.dims) :] if flow.dims else []
        mine = list(map(size_of, flow.dims))
        return len(mine) <= len(sizes) and all(m in (1, n) for m, n in zip(mine, tail, strict=True))

    def entrywise(self, node: Node, name: str, value: Tensor, operands: Sequence[Flow]) -> Flow:
        """Operands broadcast against each other."""
        source, weights = joint(operands)
        self._meet(node, name, operands)
        others = [flow for flow in operands if not flow.is_weight and flow.source != "constant"]
        fresh = name in _LINEAR and (len(others) < 2 or (name in ("add", "sub") and all(map(_is_fresh, others))))
        rank = len(sizes_of(value))
        dims: list[Dim] = []
        application = self._scaling(node, name, operands)
        for i, (size, expr) in enumerate(sizes_of(value)):
            mine = [flow.dims[i - rank + len(flow.dims)] for flow in operands if i - rank + len(flow.dims) >= 0]
            keeps = fresh or source in ("weight", "looked up")
            dim = joined([dim for dim in mine if dim], keeps) if any(mine) else ()
            if dim is None or size_of(dim) != size:
                self.lose(operands, node)
                dim = plain(size, expr)
            dims.append(dim if keeps else bare(dim))
        flow = Flow(tuple(dims), source, weights, _one_hot(name, operands, value))
        return flow if application is None else self._scaled(flow, application, operands)

    def _meet(self, node: Node, name: str, operands: Sequence[Flow]) -> None:
        if any(flow.source in ("activation", "looked up") for flow in operands):
            for flow in operands:
                if flow.source == "weight":
                    (self.notes.scaled if name in ("mul", "div") else self.notes.added).update(flow.weights)

    def _scaling(self, node: Node, name: str, operands: Sequence[Flow]) -> Application | None:
        """A product of weights and activations; a sum over it makes it a contraction."""
        if name != "mul" or len(operands) != 2 or not any(flow.is_weight for flow in operands):
            return None
        a, b = operands
        meets = {a.source, b.source}
        if "activation" not in meets and meets != {"looked up"} and meets != {"looked up", "weight"}:
            return None
        return Application(node, entrywise=True)

    def _scaled(self, flow: Flow, application: Application, operands: Sequence[Flow]) -> Flow:
        rank = len(flow.dims)
        for mine, other in (operands, operands[::-1]):
            if not mine.is_weight or other.source == "weight":
                continue
            for i in range(rank):
                own = mine.dims[i - rank + len(mine.dims)] if i - rank + len(mine.dims) >= 0 else ()
                their = other.dims[i - rank + len(other.dims)] if i - rank + len(other.dims) >= 0 else ()
                self._pair(application, own, their, BATCH)
        self.notes.applications.append(application)
        dims = []
        for i, dim in enumerate(flow.dims):
            owns = [f.dims[i - rank + len(f.dims)] for f in operands if f.is_weight and i - rank + len(f.dims) >= 0]
            known = joined([d for d in owns if d], fresh=False) if any(owns) else None
            fits = known is not None and len(known) == len(dim)
            dims.append(_from(known if fits and known is not None else dim, application, dim))
        return replace(flow, dims=tuple(dims), source="activation", weights=frozenset())

    def _pair(self, application: Application, own: Dim, other: Dim, role: str) -> None:
        """Note weights' factors along a dimension that they share with the other operand, or do not."""
        if not other or not own:
            for factor in own:
                if not factor.wide:
                    application.note(factor.parts, OUT)
            return
        aligned = same_factors([own, other])
        if aligned is None:
            return
        for mine, their in zip(*aligned, strict=True):
            if not mine.wide:
                application.note(mine.parts, OUT if their.wide else role)

    # -- products --------------------------------------------------------------------------------------------------

    def product(
        self,
        node: Node,
        a: Flow,
        b: Flow,
        batch: Sequence[tuple[Dim, Dim]],
        inner: tuple[Dim, Dim],
        free: tuple[Dim, Dim],
    ) -> tuple[list[Dim], Dim, Dim, Source, frozenset[int]]:
        """A batch of matrix products: the dimensions of its result, and what it comes from."""
        aligned = same_factors(inner)
        if aligned is None:
            self.lose((a, b), node)
            aligned = [(), ()]
        shared = [same_factors(pair) if all(pair) else list(pair) for pair in batch]
        application = Application(node)
        met = False
        for mine, other, at in ((a, b, 0), (b, a, 1)):
            if not (mine.source == "weight" and other.source in ("activation", "looked up")) and not (
                mine.source == "looked up" and other.source in ("activation", "looked up")
            ):
                continue
            met = True
            for factor in aligned[at]:
                application.note(factor.parts, INDEX if other.one_hot else IN)
            for factor in free[at]:
                if not factor.wide:
                    application.note(factor.parts, OUT)
            for pair in shared:
                if pair is not None:
                    self._pair(application, pair[at], pair[1 - at], BATCH)
        if met:
            self.notes.applications.append(application)
        elif a.is_weight or b.is_weight:
            self._guess(node, (a, b), aligned, free)
        if a.source == b.source == "weight":
            for one, other_factor in zip(*aligned, strict=True):
                self.notes.bonds += [(p, q) for p in one.parts for q in other_factor.parts]
        source, weights = joint((a, b))
        if {a.source, b.source} == {"weight", "constant"} and any(inner):
            free = self._through_constant(a, b, aligned, free)
        outs = []
        for (left, right), pair in zip(batch, shared, strict=True):
            dim = (left or right) if pair is None else joined([d for d in pair if d], fresh=True) or ()
            outs.append(_from(dim, application, dim) if met else dim if source == "weight" else bare(dim))
        ends = [
            _from(dim, application, dim)
            if met and flow.is_weight
            else (dim if source in ("weight", "constant") else bare(dim))
            for flow, dim in zip((a, b), free, strict=True)
        ]
        if met and source != "activation":
            source, weights = "activation", frozenset()
        return outs, ends[0], ends[1], source, weights

    def _guess(self, node: Node, flows: Sequence[Flow], inner: Sequence[Dim], free: Sequence[Dim]) -> None:
        """What these weights are if they meet nothing else: the constants may be the data."""
        for flow, contracted, rest in zip(flows, inner, free, strict=True):
            if flow.is_weight:
                guess = Application(node)
                guess.note((part for factor in contracted for part in factor.parts), IN)
                guess.note((part for factor in rest for part in factor.parts), OUT)
                self.notes.first_guess.append(guess)

    @staticmethod
    def _through_constant(a: Flow, b: Flow, inner: Sequence[Dim], free: tuple[Dim, Dim]) -> tuple[Dim, Dim]:
        """A weight's axis in another basis is that axis still."""
        at = 0 if a.source == "weight" else 1
        parts = frozenset().union(*(factor.parts for factor in inner[at])) if inner[at] else frozenset()
        other = free[1 - at]
        image = tuple(replace(f, parts=parts if i == 0 else f.parts) for i, f in enumerate(other))
        return (free[0], image) if at == 0 else (image, free[1])


def _is_fresh(flow: Flow) -> bool:
    return any(factor.uses for dim in flow.dims for factor in dim)


def _one_hot(name: str, operands: Sequence[Flow], value: Tensor) -> bool:
    if name in _ONE_HOT and (value.dtype is torch.bool or not value.dtype.is_floating_point):
        return True
    return name in _KEEPS_DISCRETE and any(flow.one_hot for flow in operands)


def _from(dim: Dim, application: Application, shape: Dim) -> Dim:
    """A dimension of a product: what lies along it comes from this application."""
    return tuple(
        replace(size, parts=factor.parts, uses=frozenset({application}) if factor.parts else frozenset(), wide=False)
        for factor, size in zip(dim, shape, strict=True)
    )


Handler = Callable[[Walk, Node, str], Any]
_HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register the rule of some operations."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register
