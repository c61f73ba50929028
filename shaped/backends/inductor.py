"""Lowering: one flat function of tensors to one compiled callable. The only file that names Inductor.

The function is traced at concrete sizes with Inductor's decompositions, made functional (writes become copies at the
end) and given to Inductor's inner compiler. What comes back is called directly: no Dynamo guards, no autograd.
Facts read from torch 2.11, 2.13 and 2.15; the same calls work in all three. They are imported where they are used:
Inductor brings Triton and seconds of import that an eager user need not take.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.errors import ExecutorError

Flat = Callable[..., tuple[Any, ...]]
_warned = False
_LOWERING = threading.RLock()  # Inductor's settings are the process's: one graph at a time


def lower(function: Flat, examples: Sequence[Tensor]) -> tuple[Callable[[list[Tensor]], Sequence[Any]], str]:
    """Compile a function of flat tensors at the sizes of `examples`.

    Args:
        function: Flat tensors in, a tuple of tensors out; it may write into its arguments.
        examples: Tensors whose sizes, strides, dtypes and devices it is compiled for. Their values are not read.

    Returns:
        A callable that takes a list of tensors and may empty it, and "inductor", or "python" where there is no C++
        compiler (with one warning): then the traced operations run one by one, without autograd.
    """
    with _LOWERING:
        return _lower(function, examples)


def _lower(function: Flat, examples: Sequence[Tensor]) -> tuple[Callable[[list[Tensor]], Sequence[Any]], str]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in examples]
    graph = _concrete_graph(function, fakes, mode)
    if any(tensor.device.type == "cpu" for tensor in examples) and not has_cpp_compiler():
        _warn_once()
        return _interpreted(graph), "python"
    return _compiled(graph, fakes, mode), "inductor"


def _concrete_graph(function: Flat, fakes: Sequence[Tensor], mode: Any) -> GraphModule:
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    functional = torch.func.functionalize(function, remove="mutations")
    with mode, torch.no_grad():
        return make_fx(
            functional, decomposition_table=select_decomp_table(), tracing_mode="real", _allow_non_fake_inputs=True
        )(*fakes)


def _compiled(graph: GraphModule, fakes: Sequence[Tensor], mode: Any) -> Callable[[list[Tensor]], Any]:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.virtualized import V

    # Sizes were admitted at the door, so the generated code need not assert them again.
    settings = (tracing(TracingContext(mode)), V.set_fake_mode(mode), config.patch(size_asserts=False))
    with contextlib.ExitStack() as stack, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for setting in settings:
            stack.enter_context(setting)
        try:
            # The passes before lowering: constant folding, patterns, and random operations drawn from one seed.
            compiled = compile_fx_inner(joint_graph_passes(graph), list(fakes))
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExecutorError(f"the compiler refused the step: {first}. backend='eager' runs it") from error
    if isinstance(compiled, str):
        raise ExecutorError("the compiler returned a file instead of a callable: unset its ahead-of-time options")

    def run(arguments: list[Tensor]) -> Any:
        return compiled(arguments)

    return run


def _interpreted(graph: GraphModule) -> Callable[[list[Tensor]], Any]:
    def run(arguments: list[Tensor]) -> Any:
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
            stacklevel=2,
        )
