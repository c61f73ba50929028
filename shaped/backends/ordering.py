"""In which order compiled code runs: that of the trace, where it holds less memory than any of Inductor's.

A step is one graph of forward, backward and update. What is computed again for the backward pass (activation
checkpointing) depends on nothing but the forward pass, so an order by dependencies alone may take it up at once, and
then holds what it was to save; torch.compile is spared that, since its two passes are two graphs. Inductor tries three
orders and takes the one whose peak it estimates least. Here it tries a fourth.
"""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any
from unittest.mock import patch

# Part of the key of torch's on-disk cache: another text, another cache.
ORDERED = "the order of the trace is tried"


@contextmanager
def ordered() -> Iterator[None]:
    """Within, the order of the trace is one of those among which Inductor looks for the least peak of memory."""
    from torch._inductor import memory

    theirs = memory.reorder_for_peak_memory
    methods = signature(theirs).parameters["methods"].default
    with patch.object(memory, "reorder_for_peak_memory", partial(theirs, methods=[*methods, in_order_of_trace])):
        yield


def in_order_of_trace(nodes: Sequence[Any]) -> list[Any]:
    """Of the nodes of Inductor's schedule that may run, always the one that was traced first.

    Args:
        nodes: Whose dependencies Inductor has noted (`mpi_node`); several that were fused stand where the first did.
    """
    waits = {node: len(node.mpi_node.pred_nodes) for node in nodes}
    ready = [(node.min_order, at, node) for at, node in enumerate(nodes) if not waits[node]]
    places = {node: at for at, node in enumerate(nodes)}
    heapq.heapify(ready)
    found = []
    while ready:
        _, _, node = heapq.heappop(ready)
        found.append(node)
        for after in node.mpi_node.succ_nodes:
            waits[after] -= 1
            if not waits[after]:
                heapq.heappush(ready, (after.min_order, places[after], after))
    return found
