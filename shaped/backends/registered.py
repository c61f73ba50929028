"""Kernels that operations were given in Python (`torch.library`), which neither a graph nor its compiled code shows."""

import re
import types
from collections.abc import Iterator

import torch
from torch._library.custom_ops import OPDEFS
from torch.fx import GraphModule

from shaped.backends.bytecode import is_of_project

_FILE = re.compile(r"registered at (.+?\.py):\d+")
_COMPUTES = ("CPU", "Autograd", "Composite")  # of dispatch keys; torch's own Python gives its operations others


def replaced() -> list[str]:
    """The kernels of torch's own operations on a CPU that were exchanged, as `aten/sin/CPU`."""
    return sorted(
        name
        for name in torch.library._impls
        if name.startswith("aten/") and name.rpartition("/")[2].startswith(_COMPUTES)
    )


def own_operation(graph: GraphModule) -> str | None:
    """An operation of a graph with a kernel of the project's, with its file; None where there is none."""
    for target in {node.target for node in graph.graph.nodes}:
        if isinstance(target, torch._ops.OpOverload):
            for file in _files(target):
                if is_of_project(file):
                    return f"`{target}`, of which a kernel stands in {file}"
    return None


def _files(operation: torch._ops.OpOverload) -> Iterator[str]:
    """Files of Python that gave an operation a kernel."""
    yield from _FILE.findall(torch._C._dispatch_dump(operation.name()))
    made = OPDEFS.get(f"{operation.namespace}::{operation._opname}")
    for value in vars(made).values() if made else ():
        for kernel in value.values() if isinstance(value, dict) else (value,):
            if isinstance(kernel, types.FunctionType):
                yield kernel.__code__.co_filename
