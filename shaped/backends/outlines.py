"""A graph's outline: what is asked of a graph before the first batch was held, as data that another process reads."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, symbolic_trace

from shaped.backends.samples import FACTOR, CountGraph
from shaped.proof.whole import DEFINED_BY, named

_IN_GRAPHS = {
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
}  # names in a graph's code


def outline(graph: GraphModule) -> dict[str, Any]:
    """The inputs of a graph, the dtypes in it, and what values say of a batch's count."""
    values = [node.meta.get("val") for node in graph.graph.nodes]
    dtypes = {str(t.dtype).removeprefix("torch.") for v in values for t in (v if isinstance(v, tuple | list) else [v])
              if isinstance(t, Tensor) and t.is_floating_point()}  # fmt: skip
    inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
    counts = FACTOR in graph.meta and graph.meta[FACTOR] is None
    told = {"inputs": inputs, "dtypes": sorted(dtypes), "by_sizes": counts}
    return {**told, "factor": _spelled_out(graph.meta.get(FACTOR))}


def _spelled_out(factor: CountGraph | None) -> dict[str, Any] | None:
    """What values say of a batch's count, as Python; None where it names more than torch's operations."""
    if factor is None or factor.function is not None or any(n.op == "get_attr" for n in factor.graph.graph.nodes):
        return None
    code = factor.graph.graph.python_code("self")
    if "pytree" in code.src or not {*code.globals} <= {*_IN_GRAPHS, "torch", "pytree", "fx_pytree"}:
        return None
    return {"source": code.src.replace("forward(self, ", "forward(", 1), "share": factor.share}


def outlined(told: Mapping[str, Any]) -> GraphModule:
    """A graph of such an outline, which computes nothing."""
    graph = Graph()
    nodes = [graph.placeholder(f"input_{i}") for i in range(told["inputs"])]
    graph.output(())
    for node, dtype in zip(nodes, told["dtypes"], strict=False):
        node.meta["val"] = torch.empty(0, dtype=getattr(torch, dtype))
    made = GraphModule(torch.nn.Module(), graph)
    if told["by_sizes"]:
        made.meta[FACTOR] = None
    elif told["factor"]:
        space: dict[str, Any] = {"torch": torch, **_IN_GRAPHS}
        for name in named(told["factor"]["source"]):
            DEFINED_BY[name]()
        exec(compile(told["factor"]["source"], "<a kept program>", "exec"), space)
        traced = symbolic_trace(space["forward"])
        made.meta[FACTOR] = CountGraph(traced, None, told["factor"]["share"])
    return made
