"""The order of compiled code: what a checkpoint computes again waits for the backward pass."""

import logging
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shaped import ScalarTrainer
from shaped.backends.ordering import in_order_of_trace


@dataclass(eq=False)
class Node:
    """A node of a schedule: when it was traced, and as `mpi_node` what it waits for and what waits for it."""

    min_order: int
    pred_nodes: set["Node"] = field(default_factory=set)
    succ_nodes: set["Node"] = field(default_factory=set)

    @property
    def mpi_node(self) -> "Node":
        return self


@pytest.mark.parametrize("seed", range(20))
def test_of_what_may_run_the_first_in_the_trace_runs(seed: int) -> None:
    drawn = random.Random(seed)
    nodes = [Node(drawn.randrange(10)) for _ in range(drawn.randrange(1, 30))]
    for at, node in enumerate(nodes):
        for before in drawn.sample(nodes[:at], min(at, drawn.randrange(4))):
            node.pred_nodes.add(before)
            before.succ_nodes.add(node)
    shuffled = drawn.sample(nodes, len(nodes))
    order = in_order_of_trace(shuffled)

    assert sorted(map(id, order)) == sorted(map(id, nodes))
    for at, node in enumerate(order):
        able = [other for other in order[at:] if not other.pred_nodes - set(order[:at])]
        assert node in able
        assert node.min_order == min(other.min_order for other in able)


class Chain(nn.Module):
    """Blocks under checkpoints; none computes an activation that the next one does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x


def loss(net: Chain, x: Float[Tensor, "rows 4"]) -> Float[Tensor, ""]:
    return net(x).square().mean()


@pytest.mark.slow
def test_checkpoints_save_memory_in_a_compiled_step() -> None:
    peaks: dict[str, int] = {}

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            values: Any = record.args
            if "peak memory: %d" in record.msg and len(values) == 2:
                peaks[values[0]] = values[1]

    log, told = logging.getLogger("torch._inductor.memory"), Told()
    before = log.level
    log.setLevel(logging.INFO)  # a level that is set otherwise is not seen where it was asked for before
    log.addHandler(told)
    trainer = ScalarTrainer(loss, Chain(), backend="compiled")
    try:
        with torch._inductor.config.patch(force_disable_caches=True):  # type: ignore[no-untyped-call]
            trainer.step(torch.randn(256, 4), lr=0.1)
    finally:
        log.removeHandler(told)
        log.setLevel(before)
    mine = peaks.pop("in_order_of_trace")

    assert len(peaks) == 3
    assert mine < 0.7 * min(peaks.values())
