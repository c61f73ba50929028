"""One trace: run a function on symbolic tensors, with gradients; keep the graph, each step and each question asked."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import CodeType
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from shaped.errors import Goal, Unprovable
from shaped.proof.arithmetic import holds
from shaped.proof.broadcast import Broadcasts, Pairs
from shaped.proof.calls import (
    SPARSE,
    Call,
    ClaimMismatch,
    HiddenBroadcast,
    Mismatch,
    Misplaced,
    ResultMismatch,
    asks_for_sparse_gradient,
    contracts,
)
from shaped.proof.claims import Claims
from shaped.proof.counted import Counted
from shaped.proof.indices import Indices
from shaped.proof.isolation import follow, tracing
from shaped.proof.keeping import putting_back
from shaped.proof.limits import hold_limits
from shaped.proof.misplaced import VIEWS, Correction, Marks, order
from shaped.proof.reads import READS, Reads, is_traced
from shaped.proof.rewrites import Rewrites
from shaped.proof.setting import INNER, MORE, PLAIN, STEP, Setting, Step, checking
from shaped.proof.source import Place, place_of_caller
from shaped.proof.standing import Standing, real_of
from shaped.proof.symbolic import Question, World, expression
from shaped.proof.tracer import graph_of
from shaped.proof.watching import Watching
from shaped.shapes import Signature, TensorSpec, annotated_part, dtype_name
from shaped.strategies import Pass, refuse_shapes, run_backward

# Losses that torch broadcasts with no more than a warning: [batch, 1] against [batch] becomes [batch, batch].
_ALIKE = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "poisson_nll_loss"}
# Products whose operands must have one dtype; torch's shape functions do not check it, its kernels do.
_ONE_DTYPE = {"matmul", "mm", "bmm", "mv", "dot", "linear", "bilinear", "addmm", "baddbmm", "inner"}
_ONE_DTYPE |= {f"conv{n}d" for n in (1, 2, 3)} | {f"conv_transpose{n}d" for n in (1, 2, 3)}
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "grad", "layout", "size", "dim", "numel"}
_NAMES = {"T": "transpose", "mT": "transpose", "__matmul__": "matmul", "__rmatmul__": "matmul", "truediv": "div"}


@dataclass(frozen=True)
class Replacement:
    """Another operand for one call of a run, to try a hint."""

    number: int  # of the call
    index: int  # of the operand among the call's tensors
    apply: Callable[[Tensor, Sequence[Tensor]], Tensor]
    instead: Correction | None = None  # of the call as a whole, which is a view


class Recorder(TorchFunctionMode):
    """Sees each operation as it stands in the user's program, before torch takes it apart."""

    def __init__(self, world: World, replacement: Replacement | None = None) -> None:
        super().__init__()
        self.world = world
        self._replacement = replacement
        self.begin()

    def begin(self) -> None:
        """Forget a run that was broken off."""
        self.calls = 0
        self.differentiates = False  # whether the program differentiates within itself
        self.replaced = ""  # the shape of what a replacement put in
        self.steps: list[Step] = []
        self.call: Call | None = None  # the one under way, or the last
        self.returned = False  # the forward pass is over
        self.tensors: Sequence[Tensor] = ()  # what the function was called on
        self.indices = Indices({}, self.world.show)
        self.counted = Counted(self.world.show, self.world.asks)
        self.broadcasts = Broadcasts(expression)
        self.claims: Claims | None = None
        self.watching: Watching | None = None
        self._marks = Marks()
        self._mixing = set[CodeType]()  # code with a view that mixes axes on purpose

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation_name(func)
        self.differentiates = self.differentiates or func is torch.autograd.grad
        if name in _ATTRIBUTES or name.startswith(("sym_", "_sym_")):  # arithmetic on sizes: not the same in each run
            return func(*args, **(kwargs or {}))
        self.calls += 1
        hold_limits()
        replacement = self._replacement if self._replacement and self._replacement.number == self.calls else None
        if replacement is not None and replacement.instead is None:
            args, kwargs = self._with_replacement(args, kwargs or {}, replacement)
        self.call = call = Call(func, name, args, kwargs or {}, place_of_caller(), self.calls)
        if call.place is not None:
            self.hold_claims(call.place)
        operands = call.operands
        self._refuse(name, operands)
        watching = self.watching
        paused = watching is not None and watching.enters(name, operands, func)
        viewed: Any = None  # and as which sizes
        try:
            if replacement is not None and replacement.instead is not None:
                *viewed, result = replacement.instead(*args)
            else:
                result = func(*args, **(kwargs or {}))
                viewed = (args[0], result.shape) if name in VIEWS else None
        finally:
            if paused and watching is not None:
                watching.resume()
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self._marks.follow(name, operands, results, _sizes, self.world.symbols)
        if viewed is not None and call.place is not None:
            self._hold_order(call, viewed[0], viewed[1], result, replacement is not None)
        hidden = self.broadcasts.hidden(call, result)
        if hidden is not None:
            raise self._blame(hidden, name)
        self.indices.note(name, call.args, call.kwargs, result)
        self.counted.note(name, call.args, call.kwargs, result)
        if results:
            source = call.place.source() if call.place else None
            place = str(source) if source else "?"
            shown, known = (tuple(shape_text(t, self.world) for t in some) for some in (results, operands))
            self.steps.append(Step(name, known, ", ".join(shown), place, source))
            self._mark_nodes()
        return result

    def _mark_nodes(self) -> None:
        """Let the nodes of a graph that is made know which step they belong to."""
        mode = get_proxy_mode()
        for node in reversed(mode.tracer.graph.nodes) if mode is not None else ():
            if STEP in node.meta or node.op == "placeholder":
                return
            node.meta[STEP] = len(self.steps) - 1

    def _hold_order(self, call: Call, viewed: Tensor, sizes: Sequence[Any], result: Tensor, tried: bool) -> None:
        """Mark a view in which one axis has the place of another; refuse it at once where it is tried as a hint."""
        assert call.place is not None
        before, after = _sizes(viewed), [*map(expression, sizes)]
        found = order(before, after, self.world.symbols)
        code = call.place.frame.f_code
        if found == "mixed":
            self._mixing.add(code)
        elif found == "moved" and code not in self._mixing:
            shown = "[" + ", ".join(map(self.world.show, sizes)) + "]"
            error = Misplaced(call, shape_text(viewed, self.world), shown)
            if tried:
                raise error
            self._marks.add(result, before, error)

    def hold_order(self) -> None:
        """At the end: refuse results in which one axis has the place of another."""
        self._marks.end()

    def hold_claims(self, place: Place | None = None) -> None:
        """Hold what annotations claimed before a place against the shapes; at the end, all that is left."""
        if self.claims is None:
            return
        broken = self.claims.broken(place) if place is not None else self.claims.left()
        if broken is not None:
            raise ClaimMismatch(broken, shape_text(broken.tensor, self.world))

    def _with_replacement(self, args: Any, kwargs: dict[str, Any], replacement: Replacement) -> tuple[Any, Any]:
        leaves, tree = pytree.tree_flatten((args, kwargs))
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)][replacement.index]
        leaves[at] = replacement.apply(leaves[at], self.tensors)
        self.replaced = shape_text(leaves[at], self.world)
        args, kwargs = pytree.tree_unflatten(leaves, tree)
        return args, kwargs

    def _blame(self, hidden: Pairs, name: str) -> HiddenBroadcast:
        shapes = [shape_text(t, self.world) for t in hidden.operands]
        return HiddenBroadcast(hidden, shapes, f"[{', '.join(map(self.world.show, hidden.shape))}]", f"`{name}`")

    def _refuse(self, name: str, operands: Sequence[Tensor]) -> None:
        """Faults that torch's shape functions let pass: silent broadcasting in losses, and dtypes no kernel takes."""
        if name in _ALIKE and len(operands) > 1 and not same_shape(operands[0], operands[1], self.world):
            shapes = [shape_text(t, self.world) for t in operands[:2]]
            said = f"{name} would broadcast {shapes[0]} against {shapes[1]}"
            raise Mismatch(f"{shapes[0]} = {shapes[1]}", said, operands[:2])
        dtypes = [dtype_name(t.dtype) for t in operands]
        sums = name in _ONE_DTYPE or (name == "einsum" and contracts(self.call))
        if sums and len(set(dtypes)) > 1 and not torch.is_autocast_enabled(operands[0].device.type):
            first, other = dtypes[0], next(dtype for dtype in dtypes if dtype != dtypes[0])
            raise Mismatch(f"{first} = {other}", f"{name} needs operands of one dtype, got {' and '.join(dtypes)}")
        if self.call is not None and asks_for_sparse_gradient(self.call):
            source = self.call.place.source() if self.call.place else None
            hint = f"leave out {SPARSE[name][0]}=True: the gradient is the same, with its zeros"
            raise Unprovable(f"{name} makes a sparse gradient here, and an update takes a dense one.", source,
                             Goal(hint=hint))  # fmt: skip
        if name == "as_strided" and not (operands and operands[0].is_contiguous()):
            raise Mismatch("", "as_strided reads storage whatever the shape, so nothing is shown of it")
        if name in ("cross_entropy", "nll_loss") and len(operands) > 1:
            target = operands[1].dtype
            if not (target.is_floating_point or target in (torch.int64, torch.uint8)):
                raise Mismatch(f"{dtypes[1]} = int64", f"{name} takes class numbers as int64, got {dtypes[1]}")


@dataclass
class Trace:
    """What one successful trace found."""

    graph: GraphModule  # flat params ++ inputs -> (results, gradients of the wanted ones)
    steps: list[Step]
    questions: list[Question]
    world: World
    without_gradient: list[int]  # wanted, but the result does not depend on them
    values: tuple[str, ...]  # what is asked of the values of its inputs
    writes: list[int]  # parameters without a gradient that the program writes into: running statistics


def trace(setting: Setting, world: World, recorder: Recorder) -> Trace:
    """Trace forward and, for a loss, backward. Raises whatever the function raises; `recorder` knows where it was."""
    try:
        found: Trace = follow(partial(_trace, setting, world, recorder), partial(_begin, world, recorder))
        return found
    finally:
        world.mode.forget()


def _begin(world: World, recorder: Recorder | None) -> None:
    world.begin()
    if recorder is not None:
        recorder.begin()


def _trace(setting: Setting, world: World, recorder: Recorder) -> Trace:
    with tracing():  # out of the caller's inference mode
        tensors = world.tensors(setting.signature.entries, setting.dtypes, setting.mask, setting.device)
    missing: list[int] = []
    versions = [tensor._version for tensor in tensors]
    with putting_back(), setting.keeping():
        graph = _graph(setting, world, recorder, tensors, missing)
        reads: Reads = graph.meta[READS]
        if reads.changed:
            reads.settled = _settles(setting, world, graph)
    graph.meta[INNER] = recorder.differentiates
    graph.meta[MORE] = len(setting.signature.result) - 1 if setting.is_loss else 0
    _mark_plain_loss(graph, setting)
    changed = [i for i, version in enumerate(versions) if tensors[i]._version != version]
    refused = [setting.signature.entries[i].path for i in changed if not setting.may_write(i)]
    if refused:
        raise Mismatch("", f"the program writes into {', '.join(refused)}")
    return Trace(graph, recorder.steps, world.env.asked, world, missing, tuple(recorder.indices.values), changed)


def _graph(
    setting: Setting, world: World, recorder: Recorder, tensors: Sequence[Tensor], missing: list[int]
) -> GraphModule:
    """The operations of one run, with what it reads from outside; `missing` gets what has no gradient."""
    world_check, shown = partial(_check_within, world, {}), partial(shape_text, world=world)
    roots = (setting.signature.function, setting.strategy, *setting.roots)
    watching = recorder.watching = Watching(roots, setting.signature.name)

    def joint(*flat: Tensor) -> tuple[Any, ...]:
        recorder.tensors, standing = flat, Standing(setting.held, flat)
        inputs = {e.path: t for e, t in zip(setting.signature.entries, flat, strict=True)}
        recorder.indices = Indices(inputs, world.show)
        watching.given({name: tensor for name, tensor in inputs.items() if real_of(tensor) is tensor})
        with setting.around(), watching:
            return differentiated(standing, *flat)

    def differentiated(standing: Standing, *flat: Tensor) -> tuple[Any, ...]:
        with Rewrites(), recorder, checking(world_check, shown), standing:
            results, done = _results(setting, flat, world)
        recorder.hold_claims()
        recorder.hold_order()
        world.hold_sizes()
        world.hold_data()
        check_results(setting.signature, results, world)
        recorder.returned = True
        outputs = [tensor.detach() for tensor in results]
        if not setting.is_loss:
            return tuple(outputs)
        if done is not None:
            missing.extend(i for i in setting.wanted if done.gradients[i] is None)
            plain = [] if done.plain is done.value else [done.plain.detach()]
            return (*outputs, *(done.gradients[i] for i in setting.wanted), *plain)
        wanted = [flat[i] for i in setting.wanted]
        gradients: Sequence[Tensor | None] = [None] * len(wanted)
        if results[0].requires_grad:
            with Rewrites(), standing, watching.backward():  # checkpoints, hooks and the user's functions run within
                gradients = run_backward(results[0], wanted)
        missing.extend(i for i, gradient in zip(setting.wanted, gradients, strict=True) if gradient is None)
        return (outputs[0], *gradients, *outputs[1:])

    function = annotated_part(setting.signature.function)
    recorder.claims = Claims(world, getattr(function, "__code__", None))
    with tracing(), world.mode:  # beneath make_fx's own, for factories such as torch.ones(seq)
        graph = graph_of(joint, tensors)
    graph.meta[READS] = watching.reads(setting.is_loss)
    return graph


def _settles(setting: Setting, world: World, graph: GraphModule) -> bool:
    """Whether a program that changes what it reads is the same once more, after these changes."""
    other = World(world.names, world.plan)
    with tracing():
        tensors = other.tensors(setting.signature.entries, setting.dtypes, setting.mask, setting.device)
    try:
        again = _graph(setting, other, Recorder(other), tensors, [])
    except Exception:
        return False
    finally:
        other.mode.forget()
    if again.code != graph.code:
        return False
    constants = [(attrgetter(name)(graph), attrgetter(name)(again)) for name in _constants(graph)]
    return all(a is b or (not is_traced(a) and not is_traced(b) and torch.equal(a, b)) for a, b in constants)


def _constants(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]


def _results(setting: Setting, tensors: Sequence[Any], world: World) -> tuple[Sequence[Any], Pass | None]:
    """The results; under a strategy its loss, with the gradients, whose shapes are compared with the parameters'."""
    if setting.strategy is None or not setting.is_loss:
        return setting.run(tensors), None
    done = setting.differentiate(tensors)
    pairs = zip(setting.signature.entries, tensors, done.gradients, strict=False)
    refuse_shapes(
        setting.strategy,
        [
            (entry.path, shape_text(p, world), shape_text(gradient, world))
            for entry, p, gradient in pairs
            if gradient is not None and not (gradient.dtype == p.dtype and same_shape(gradient, p, world))
        ],
    )
    if done.plain is not done.value:
        check_results(setting.signature, [done.plain], world)
    return [done.value], done


def _mark_plain_loss(graph: GraphModule, setting: Setting) -> None:
    """Where a strategy reports another loss than the user's own, that one is the graph's last output: for `forward`."""
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    if setting.strategy is not None and len(outputs) > 1 + len(setting.wanted):
        graph.meta[PLAIN] = len(outputs) - 1


def run_forward(setting: Setting, world: World, recorder: Recorder | None = None) -> None:
    """The forward pass alone, checked against the declared result: to find a plan, and for branches not taken."""
    try:
        follow(partial(_run_forward, setting, world, recorder), partial(_begin, world, recorder))
    finally:
        world.mode.forget()


def _run_forward(setting: Setting, world: World, recorder: Recorder | None) -> None:
    with tracing():
        tensors = world.tensors(setting.signature.entries, setting.dtypes, setting.mask, setting.device)
    if recorder is not None:
        recorder.tensors = tensors
    with putting_back(), setting.keeping(), tracing(), world.mode:
        standing = Standing(setting.held, tensors)
        with Rewrites(), recorder or nullcontext(), checking(partial(_check_within, world, {})), standing:
            results, _ = _results(setting, tensors, world)
        if recorder is not None:
            recorder.hold_order()
        world.hold_sizes()
        world.hold_data()
        check_results(setting.signature, results, world)


def check_results(signature: Signature, results: Sequence[Any], world: World) -> None:
    """Compare results with the declared ones; names that only a result uses are fixed by it."""
    if len(results) != len(signature.result):
        kind = type(results[0]).__name__
        got = f"a {kind}" if len(results) == 1 else f"{len(results)} results"
        raise ResultMismatch(got, f"{len(signature.result)} results", "", "")
    own: dict[str, Any] = {}
    with disable_proxy_modes_tracing():  # arithmetic on declared sizes is no part of the program
        for actual, declared in zip(results, signature.result, strict=True):
            check_result(actual, declared, world, own)


def check_result(actual: Any, declared: TensorSpec, world: World, own: dict[str, Any]) -> None:
    """Compare one result with its spec; `own` collects the names that only results use."""
    wanted = "a scalar" if not declared.dims else f"{declared}"
    if not isinstance(actual, Tensor):
        raise ResultMismatch(f"a {type(actual).__name__}", wanted, "", "return a tensor")
    shown = shape_text(actual, world)
    hint = ".mean() or .sum() makes it one" if not declared.dims else ""
    if actual.dim() != len(declared.dims):
        raise ResultMismatch(shown, wanted, f"{shown} = {declared}", hint)
    for axis, (dim, size) in enumerate(zip(declared.dims, actual.shape, strict=True)):
        if dim.is_name and dim.text not in world.values:
            own.setdefault(dim.text, size)
        unknown = [name for name in dim.names if name not in world.values and name not in own]
        if unknown:
            hint = f"`{unknown[0]}` is no dimension of the arguments, and an expression does not fix it: name the axis"
            raise ResultMismatch(shown, wanted, f"{world.show(size)} = {dim}", hint)
        expected = dim.evaluate({**world.values, **own})
        if not world.same(expected, size) and not world.granted(expected, size):
            wanted_equal = sympy.Eq(expression(size), expression(expected), evaluate=False)
            world.env.answers.append((wanted_equal, False))  # other size hints may divide better
            raise ResultMismatch(shown, wanted, f"{world.show(size)} = {dim}", "", held=axis)
    if actual.dtype not in declared.dtypes:
        name = dtype_name(actual.dtype)
        raise ResultMismatch(f"{shown} of {name}", f"{wanted} of {declared.kind}", f"{name} is {declared.kind}", "")


def _check_within(world: World, own: dict[str, Any], value: Any, spec: TensorSpec) -> None:
    with disable_proxy_modes_tracing():
        check_result(value, spec, world, own)


def _sizes(tensor: Tensor) -> list[Any]:
    """A tensor's sizes as expressions."""
    return [*map(expression, tensor.shape)]


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for all values of their symbols, without asking (and so guarding)."""
    a, b = expression(a), expression(b)
    return bool(a == b) or bool(sympy.expand(a - b) == 0) or holds(sympy.Eq(a, b)) or bool(sympy.simplify(a - b) == 0)


def same_shape(a: Tensor, b: Tensor, world: World) -> bool:
    return a.dim() == b.dim() and all(same_size(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def shape_text(tensor: Tensor, world: World) -> str:
    """`[batch, 4*dim]`"""
    return "[" + ", ".join(world.show(size) for size in tensor.shape) + "]"


def operation_name(func: Callable[..., Any]) -> str:
    """The name users know: `matmul`, `transpose` for `.T`, `add` for `+`."""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    name = _NAMES.get(name, name)
    name = name.removeprefix("__").removesuffix("__")
    return _NAMES.get(name, name)
