"""What a graph would not do as the program does it: hooks on gradients, and draws of a pass that is run again."""

from collections.abc import Sequence

from torch.fx import GraphModule, Node

from shaped.backends.draws import draws
from shaped.backends.executors import CompileError
from shaped.backends.program import Program
from shaped.errors import listing


def refuse_hooks(program: Program) -> None:
    """Raise CompileError where a parameter has a hook on its gradient."""
    hooked = [name for name, t in zip(program.params.names, program.tensors, strict=True) if t._backward_hooks]
    if hooked:
        raise CompileError(
            f"{listing(hooked)} has a hook on its gradient, which a graph would not run: remove it, or use "
            "backend='eager'; a gradient strategy can do the same on both"
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
