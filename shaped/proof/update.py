"""The update in a proof: one AdamW step on each distinct parameter signature keeps shapes and dtypes."""

from collections.abc import Sequence
from typing import Any

import torch

from shaped.proof.isolation import tracing
from shaped.proof.proof import count_operations
from shaped.proof.setting import Setting
from shaped.proof.symbolic import Plan, World
from shaped.proof.tracer import graph_of
from shaped.shapes import TensorSpec
from shaped_kernels import adam_reference


def update_operations(setting: Setting, names: Sequence[str], plan: Plan) -> int:
    """Trace AdamW on each distinct parameter signature: new parameter and moments keep it. Returns all operations.

    SGD and Adam are parts of the same elementwise rule.
    """
    counts: dict[tuple[TensorSpec, torch.dtype], int] = {}
    entries, dtypes = setting.signature.entries, setting.dtypes
    total = 0
    for i in setting.wanted:
        key = (entries[i].spec, dtypes[i])
        if key not in counts:
            counts[key] = _trace_update(setting, names, i, plan)
        total += counts[key]
    return total


def _trace_update(setting: Setting, names: Sequence[str], index: int, plan: Plan) -> int:
    world = World(names, plan)
    entry, dtype = setting.signature.entries[index], setting.dtypes[index]
    p, g, m, v = world.tensors([entry] * 4, [dtype] * 4, [False] * 4, setting.device)

    def update(p: Any, g: Any, m: Any, v: Any) -> tuple[Any, ...]:
        new = adam_reference(
            p, g, m, v, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, step=1, decoupled=True
        )
        return new[:3]

    with tracing(), torch.no_grad():
        graph = graph_of(update, (p, g, m, v))
    world.mode.forget()
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    for result in outputs:
        value = result.meta["val"]
        if value.shape != p.shape or value.dtype != dtype:
            raise AssertionError(f"the update changes the signature of {entry.path}")
    return count_operations(graph)
