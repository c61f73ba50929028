"""Functions of TorchScript, whose interpreter makes plain numbers of sizes without a word."""

from collections.abc import Iterator
from typing import Any

import torch

# Nodes of a script's graph by which it makes a number of a tensor's size.
_SIZES = {"aten::size", "aten::len", "aten::numel", "aten::stride", "prim::shape", "prim::NumToTensor"}


def asks_sizes(function: Any) -> bool:
    """Whether a function, a method or a module is TorchScript, and its code reads sizes of tensors."""
    if not isinstance(function, torch.jit.ScriptFunction | torch.jit.ScriptModule | torch.ScriptMethod):
        return False
    graph = getattr(function, "inlined_graph", None) or getattr(function, "graph", None)
    return graph is None or any(node.kind() in _SIZES for node in _nodes(graph))


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
