"""What a graph would not do as the program does it: hooks, modes around a step, draws of a pass that is run again."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from shaped.backends.draws import draws
from shaped.backends.executors import CompileError
from shaped.backends.program import Program
from shaped.errors import listing

_functions, _dispatches = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack
_TORCH = "torch", "shaped"  # whose modes change no values: a default device, a count of operations


def refuse_hooks(program: Program) -> None:
    """Raise CompileError where a parameter has a hook on its gradient."""
    hooked = [name for name, t in zip(program.params.names, program.tensors, strict=True) if t._backward_hooks]
    if hooked:
        raise CompileError(
            f"{listing(hooked)} has a hook on its gradient, which a graph would not run: remove it, or use "
            "backend='eager'; a gradient strategy can do the same on both"
        )


def refuse_modes() -> None:
    """Raise CompileError where a TorchFunctionMode or a TorchDispatchMode of the user's is active around the step."""
    if not _functions() and not _dispatches():
        return
    modes = [torch._C._get_function_stack_at(i) for i in range(_functions())]
    modes += [torch._C._get_dispatch_stack_at(i) for i in range(_dispatches())]
    kinds = [type(mode) for mode in modes if type(mode).__module__.split(".")[0] not in _TORCH]
    if kinds:
        raise CompileError(
            f"{listing([kind.__name__ for kind in kinds])} is active around the step, which compiled code does not "
            "see: enter it within the loss, or use backend='eager'"
        )


def refuse_looks(loss: str, looks: str, inputs: Sequence[Tensor]) -> None:
    """Raise CompileError where a loss looks at how its inputs lie, and one is not as code takes it."""
    if any(x.requires_grad or not x.is_contiguous() or vars(x) for x in inputs):
        raise CompileError(
            f"`{loss}` reads {looks}, and a compiled step takes inputs as contiguous, without gradients or attributes, "
            "which one of these is not: pass what it reads as an input of its own, or use backend='eager'"
        )


def refuse_redrawn(program: Program, graph: GraphModule) -> None:
    """Activation checkpointing runs a random operation again, which in a graph draws anew."""
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    outputs = outputs[: len(outputs) - program.more]
    if program.strategy is None and _draws(outputs) > _draws(outputs[:1]):
        raise CompileError(
            "the backward pass draws at random (activation checkpointing around dropout?), and in a graph that draw is "
            "another than the forward pass's: use backend='eager', or leave random operations out of the checkpoint"
        )


def _draws(outputs: Sequence[Node | None]) -> int:
    """How many random operations these results are computed from."""
    seen: set[Node] = set()
    waiting = [node for node in outputs if node is not None]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return sum(map(draws, seen))
