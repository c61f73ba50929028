"""What is done to a graph before Inductor takes it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends import inductor
from shaped.backends.rounding import rounding_moves

ROOT = Path(__file__).parents[2]


def graph_of(function: Callable[..., tuple[Tensor, ...]], *examples: Tensor) -> GraphModule:
    return inductor._apart(inductor.whole_graph(function, examples))


def targets(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def decayed(p: Tensor, q: Tensor, beta: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    return tuple(x * (1 - beta**step).float() for x in (p, q))


def test_a_scalar_is_computed_once_and_read_from_memory_by_every_loop():
    numbers = (torch.tensor(0.9, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    tensors = (torch.rand(4), torch.rand(3, 5))
    graph = graph_of(decayed, *tensors, *numbers)
    found = targets(graph)

    assert sum("pow" in target for target in found) == 1
    assert sum("realize" in target for target in found) == 1
    for mine, right in zip(graph(*tensors, *numbers), decayed(*tensors, *numbers), strict=True):
        torch.testing.assert_close(mine, right)


def test_random_scalars_are_drawn_apart():
    def drawn(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * torch.rand_like(x.sum()), y * torch.rand_like(x.sum())

    found = targets(graph_of(drawn, torch.rand(3), torch.rand(4)))

    assert sum("rand" in target for target in found) == 2


@pytest.mark.smoke
def test_what_nobody_reads_is_not_in_the_graph():
    """A forward derivative asks `is_same_size`, which Inductor refuses to call where the variable CI is set."""

    def changes(x: Tensor) -> tuple[Tensor]:
        return (torch.func.jvp(torch.tanh, (x,), (x.square(),))[1],)

    x = torch.rand(3)
    graph = inductor.whole_graph(changes, [x])

    assert all(node.users or node.op in ("placeholder", "output") for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x)[0], changes(x)[0])


def test_rounding_is_bounded_where_data_decides_how_many_entries_there_are():
    def kept(x: Tensor) -> tuple[Tensor]:
        return ((x[x > 0] * 3).sum(),)

    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    (move,), _ = rounding_moves(inductor.whole_graph(kept, [x]), [x], 0)

    assert 0 < move < 1e-3


TWICE = """
import torch
from torch import Tensor
from shaped.backends.inductor import lower

def added(table: Tensor, values: Tensor) -> tuple[Tensor]:
    distance = torch.arange(50)[None] - torch.arange(9)[:, None]
    return (table.index_put((distance.clamp(-16, 15) + 16,), values.permute(1, 2, 0), accumulate=True),)

torch.manual_seed(0)
table, values = torch.randn(32, 80), torch.randn(80, 9, 50)
(found,), (right,) = lower(added, [table, values], []).run([table.clone(), values.clone()]), added(table, values)
torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_with_several_threads_what_is_added_lands_where_its_index_says():
    # its own process: the number of threads is compiled in
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


POOLED = """
import torch
from torch.nn.functional import max_pool2d
from shaped.backends.inductor import lower
x = torch.rand(2, 3, 8, 8)
lower(lambda x: (max_pool2d(x, 2),), [x], [])
"""


@pytest.mark.slow
def test_the_first_thing_compiled_in_a_process_may_be_a_pooling():
    done = subprocess.run(
        [sys.executable, "-c", POOLED],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr


def test_the_table_of_dtypes_is_filled_once_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler

    theirs, filled = DtypePropagationOpsHandler.__init__, list[object]()

    def counted(self: DtypePropagationOpsHandler) -> None:
        filled.append(self)
        theirs(self)

    monkeypatch.setattr(DtypePropagationOpsHandler, "__init__", counted)
    x = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    (found,) = inductor.lower(lambda x: (x.sin() * 2 + x.exp().sum(1, keepdim=True),), [x], []).run([x])

    torch.testing.assert_close(found, x.sin() * 2 + x.exp().sum(1, keepdim=True))
    assert len(filled) == 1
