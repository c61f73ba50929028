"""Lowering: one flat function of tensors to one compiled callable. Only this file, `kernels.py`,
`lowerings.py`, `ordering.py`, `sparing.py`, `surroundings.py`, `units.py` and `vectors.py` name Inductor.

The function is traced with Inductor's decompositions, at concrete sizes or with symbols for the free ones, made
functional (writes become copies at the end) and given to Inductor's inner compiler. What comes back is called
directly: no Dynamo guards, no autograd. The inner compiler looks into torch's on-disk cache first.
Read from torch 2.11, 2.13 and 2.15. Imports stand where they are used: Inductor brings Triton and seconds of import.
"""

import contextlib
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped.backends.draws import Draws, draws
from shaped.backends.executors import CompileError, Lowered, Run
from shaped.backends.kernels import driver_of
from shaped.backends.lowerings import MENDED, decompositions, mended
from shaped.backends.ordering import ORDERED, ordered
from shaped.backends.products import choose_products
from shaped.backends.sparing import NEIGHBOURS, spared
from shaped.backends.units import given, together
from shaped.backends.vectors import doubted, unasked
from shaped.errors import ShapedError, first_line
from shaped.garbage import young_collected

Flat = Callable[..., tuple[Any, ...]]
_METADATA = ("val", "tensor_meta", "original_aten", "seq_nr")  # of a node: what the compiler reads
_CHUNK = 2**14  # numbers of a loop for which a thread is woken; Inductor's 512 take it less time than waking does
_warned = False
_LOWERING = threading.RLock()  # Inductor's settings are the process's: one graph at a time


@dataclass(frozen=True)
class Free:
    """Sizes that stay free: their hints by name, and the shapes of the inputs for given values of them.

    A hint picks between ways of computing the same (one guard is read from each choice); it is no limit.
    """

    hints: Mapping[str, int]
    shapes: Callable[[Mapping[str, Any]], Sequence[Sequence[Any]]]


def lower(function: Flat, state: Sequence[Tensor], inputs: Sequence[Tensor], free: Free | None = None) -> Lowered:
    """Compile a function of flat tensors, `state` and then `inputs`.

    Args:
        function: Flat tensors in, a tuple of tensors out; it may write into its arguments.
        state: Tensors whose sizes, strides, dtypes and devices it is compiled for. Their values are not read.
        inputs: The same of a batch; where sizes are free, only dtypes and devices.
        free: Sizes to keep symbolic.

    Raises:
        CompileError: The compiler refused; the message has its words.
    """
    return prepare(function, state, inputs, free).compiled()


def prepare(function: Flat, state: Sequence[Tensor], inputs: Sequence[Tensor], free: Free | None = None) -> "Prepared":
    """Trace a function up to where the compiler takes it; the arguments are those of `lower`.

    Raises:
        CompileError: It cannot be traced.
    """
    with _refusing():
        return _prepared(function, state, inputs, free)


def _prepared(function: Flat, state: Sequence[Tensor], inputs: Sequence[Tensor], free: Free | None) -> "Prepared":
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env = ShapeEnv(duck_shape=False)
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    fakes: list[Any] = [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in state]
    sizes: dict[str, Any] = {}
    if free is None:
        fakes += [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in inputs]
    else:
        sizes = {name: _symbol(env, name, hint) for name, hint in free.hints.items()}
        with mode:
            fakes += [
                torch.empty(tuple(shape), dtype=x.dtype, device=x.device)
                for shape, x in zip(free.shapes(sizes), inputs, strict=True)
            ]
    graph = traced(function, fakes, mode, list(sizes.values()))
    bare = any(tensor.device.type == "cpu" for tensor in state) and not has_cpp_compiler()
    examples, region = [*sizes.values(), *fakes], None if free is None else partial(_region, env, sizes)
    drawing = None
    if not bare:
        from torch._inductor.fx_passes.joint_graph import joint_graph_passes

        with _tracing(mode):
            # The passes before lowering: constant folding, patterns, and random operations drawn from one seed.
            graph = joint_graph_passes(graph)
            drawing = _drawing(graph)
            choose_products(graph)
            graph = _apart(graph)
    return Prepared(graph, examples, mode, bare, region, drawing)


@dataclass(frozen=True)
class Prepared:
    """A graph as the compiler takes it.

    Attributes:
        graph: All of it.
        examples: Its arguments, without data.
        mode: What they are made in.
        bare: Whether there is no C++ compiler, so that its operations are run one by one.
        region: Where its sizes are free: makes what says whether code is right at others, once there is code.
        drawing: Its random operations by themselves, and how many it leaves to torch's kernels.
    """

    graph: GraphModule
    examples: list[Any]
    mode: Any
    bare: bool
    region: Callable[[], Callable[[Sequence[int]], bool]] | None
    drawing: tuple[GraphModule, int] | None

    def compiled(self) -> Lowered:
        """Compile it, or take what torch's on-disk cache has of it.

        Raises:
            CompileError: The compiler refused; the message has its words.
        """
        if self.bare:
            with _refusing():
                run = _interpreted(self.graph)
            _warn_once()
            return Lowered(run, "python", self.region and self.region())
        with _refusing(), _tracing(self.mode):
            compiled = _compiled(self.graph, self.examples)
        return Lowered(_run_of(compiled), "inductor", self.region and self.region(), self._draws(), code=compiled)

    def kept(self) -> Lowered | None:
        """What torch's on-disk cache has of it; None where it would have to be compiled."""
        try:
            with _only_kept():
                return self.compiled()
        except _Missing:
            return None

    def pickled(self) -> bytes:
        """It and Inductor's settings, for `compile_pickled` in another process.

        Raises:
            Exception: Something in it cannot go to another process, whatever pickle says of it.
        """
        from torch._inductor import config
        from torch.fx._graph_pickler import GraphPickler, Options

        options = Options(ops_filter=None, node_metadata_key_filter=lambda key: key in _METADATA)
        graphs = [self.graph, *(self.drawing or ())[:1]]
        with _LOWERING, torch.no_grad():
            return pickle.dumps((config.save_config(), GraphPickler.dumps((graphs, self.examples), options)))

    def _draws(self) -> Draws | None:
        if self.drawing is None:
            return None
        alone, own = self.drawing

        def make() -> tuple[Run, Any]:
            with _LOWERING, _settings(), _tracing(self.mode):
                compiled = _compiled(alone, self.examples)
                return _run_of(compiled), compiled

        return Draws(make, own, decomposed)


def compile_pickled(pickled: bytes) -> None:
    """Compile what `Prepared.pickled` gave, into torch's on-disk cache.

    Raises:
        CompileError: The compiler refused; the message has its words.
    """
    from torch._inductor import config
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx._graph_pickler import GraphPickler
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    settings, data = pickle.loads(pickled)
    config.load_config(settings)
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    read: Any = GraphPickler.loads(data, mode)
    graphs, examples = read
    for graph in graphs:
        Prepared(graph, examples, mode, bare=False, region=None, drawing=None).compiled()


def decomposed() -> dict[Any, Callable[..., Any]]:
    """What a graph is made of in place of other operations."""
    from torch._inductor.decomposition import select_decomp_table

    return select_decomp_table()


def keeps() -> bool:
    """Whether Inductor has its on-disk cache, in which other processes find what is compiled."""
    from torch._inductor import config

    return bool(config.fx_graph_cache and not config.force_disable_caches)


class _Missing(BaseException):
    """Something would have to be compiled; torch turns an Exception into one of its own."""


@contextlib.contextmanager
def _only_kept() -> Iterator[None]:
    """Within, this thread compiles nothing: it raises `_Missing` where the on-disk cache has no code."""
    from torch._inductor import compile_fx

    theirs, here = vars(compile_fx)["fx_codegen_and_compile"], threading.get_ident()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == here:
            raise _Missing
        return theirs(*args, **kwargs)

    with _LOWERING, patch.object(compile_fx, "fx_codegen_and_compile", refuse):
        yield


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """With Inductor to ourselves, as it is set here; whatever it says is a CompileError."""
    with _LOWERING, _settings():
        try:
            yield
        except ShapedError:
            raise
        except Exception as error:
            first = first_line(error)
            raise CompileError(
                f"the compiler refused the step: {first}. backend='eager' runs it, and backend='auto' goes on "
                "with it by itself"
            ) from error


def whole_graph(function: Flat, examples: Sequence[Tensor]) -> GraphModule:
    """The functional graph of a function at the sizes of its arguments: what `lower` hands to the compiler."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with _LOWERING, _settings():
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)  # as many entries as a mask keeps
        return traced(function, [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in examples], mode)


def traced(function: Flat, fakes: Sequence[Any], mode: Any, sizes: Sequence[Any] = ()) -> GraphModule:
    """The function as a functional graph of `sizes` and then `fakes`, with Inductor's decompositions."""
    import torch._inductor.lowering  # which torch's own decompositions name and do not import
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    count = len(sizes)
    functional = torch.func.functionalize(lambda *flat: function(*flat[count:]), remove="mutations")
    dispatcher = enable_python_dispatcher() if count else contextlib.nullcontext()  # keeps symbolic sizes symbolic
    with mode, dispatcher, torch.no_grad():
        graph = make_fx(
            functional,
            decomposition_table={**select_decomp_table(), **decompositions()},
            tracing_mode="real",
            _allow_non_fake_inputs=True,
        )(*sizes, *fakes)
    # A forward derivative leaves questions whose answers nobody reads (`is_same_size`); where the variable CI is set,
    # Inductor refuses those that it has no code for.
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _symbol(env: Any, name: str, hint: int) -> Any:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    source = ConstantSource(f"size_of_{name}")
    return env.create_symintnode(
        env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC), hint=hint, source=source
    )


def _region(env: Any, sizes: Mapping[str, Any]) -> Callable[[Sequence[int]], bool]:
    """Where code with free sizes is right: what the tracer and the compiler asked of them has the same answers."""
    symbols = [size.node._expr for size in sizes.values()]  # before any replacement
    facts = [guard.expr for guard in env.guards]
    replaced = {symbol: env.replacements[symbol] for symbol in symbols if symbol in env.replacements}
    ranges = [env.bound_sympy(symbol) for symbol in symbols]

    def holds(values: Sequence[int]) -> bool:
        known = dict(zip(symbols, values, strict=True))
        within = all(r.lower <= value <= r.upper for r, value in zip(ranges, values, strict=True))
        as_replaced = all(term.xreplace(known) == known[symbol] for symbol, term in replaced.items())
        return bool(within and as_replaced and all(fact.xreplace(known) == True for fact in facts))  # noqa: E712

    return holds


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Sizes were admitted at the door, so the generated code need not assert them again; warnings are torch's own."""
    from torch._inductor import config

    # Torch's on-disk cache goes by the settings too. This one has an entry for a function that there is not, so that no
    # code is found there that was made without what is mended here.
    cacheable = {**config.unsafe_marked_cacheable_functions, "shaped": f"{MENDED}; {ORDERED}"}
    less = {"max_fusion_buffer_group_pairwise_attempts": NEIGHBOURS, "cpp.min_chunk_size": _CHUNK}
    ours = config.patch({"size_asserts": False, "unsafe_marked_cacheable_functions": cacheable, **less})
    quiet = warnings.catch_warnings()
    with torch.no_grad(), quiet, young_collected(), ours, mended(), ordered(), spared(), unasked(), together():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _tracing(mode: Any) -> Iterator[None]:
    from torch._guards import TracingContext, tracing
    from torch._inductor.virtualized import V

    with tracing(TracingContext(mode)), V.set_fake_mode(mode):
        yield


def _compiled(graph: GraphModule, examples: Sequence[Any]) -> Any:
    from torch._inductor.compile_fx import compile_fx_inner

    copy = torch.fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))  # the compiler's passes change what they are given
    with given(examples):
        try:
            compiled = compile_fx_inner(graph, list(examples))
        except Exception as error:
            if not doubted(error):
                raise
            compiled = compile_fx_inner(GraphModule(graph, copy), list(examples))
    if isinstance(compiled, str):
        raise CompileError("the compiler returned a file instead of a callable: unset its ahead-of-time options")
    return compiled


def _run_of(compiled: Any) -> Run:
    driver = driver_of(compiled)
    if driver is None:

        def run(arguments: list[Any]) -> Any:
            return compiled(arguments)

        return run
    return driver.run


def _drawing(graph: GraphModule) -> tuple[GraphModule, int] | None:
    """The random operations of a graph by themselves, and how many torch's own kernels draw; None where it has none."""
    seeds = ("inductor_seed", "inductor_seeds")
    random = [n for n in graph.graph.nodes if draws(n)]
    own = [n for n in random if n.target._schema.name.removeprefix("prims::") not in seeds]
    named = ("prims::inductor_random", "prims::inductor_randint")
    if not random:
        return None
    alone = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    alone.graph_copy(graph.graph, copies)
    numbers = [copies[n] for n in graph.graph.nodes if str(getattr(n.target, "_schema", "")).split("(")[0] in named]
    alone.output(tuple(numbers))
    module = GraphModule(graph, alone)
    alone.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return module, len(own)


def _apart(graph: GraphModule) -> GraphModule:
    """Compute scalars once, into memory; Inductor writes them into each loop that reads them.

    A step would take `beta ** t` of AdamW in double for each vector of each parameter.
    """
    for node, reader in _scalars(graph):
        once = next((user for user in node.users if user.target is torch.ops._inductor_test.realize.default), None)
        if once is None:
            with graph.graph.inserting_after(node):
                once = graph.graph.call_function(torch.ops._inductor_test.realize.default, (node,))
            once.meta = dict(node.meta)
        reader.replace_input_with(node, once)
    graph.graph.lint()
    graph.recompile()
    return graph


def _scalars(graph: GraphModule) -> list[tuple[Node, Node]]:
    """0-dim tensors that are computed from others, each once, and the operations on larger tensors that read them."""
    known: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or not _is_scalar(node) or not node.all_input_nodes:
            continue
        if node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        if all(map(_is_scalar, node.all_input_nodes)):
            same = known.setdefault((node.target, str(node.args), str(node.kwargs)), node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.graph.erase_node(node)
    return [(node, user) for node in known.values() for user in node.users if not _is_scalar(user)]


def _is_scalar(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0


def _interpreted(graph: GraphModule) -> Run:
    def run(arguments: list[Any]) -> Any:
        with torch.no_grad():
            return graph(*arguments)

    return run


def has_cpp_compiler() -> bool:
    """Whether Inductor finds a C++ compiler for CPU code."""
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "no C++ compiler: the compiled backend runs the traced step operation by operation. Install g++ or clang, "
            "or set CXX",
            RuntimeWarning,
            stacklevel=3,
        )
