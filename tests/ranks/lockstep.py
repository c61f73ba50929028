"""All ranks of an axis in one process: threads that run a graph on their parts and meet at each sum."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shaped import ScalarTrainer
from shaped.backends.local import LocalRun
from shaped.backends.placed import PlacedGraph, placed
from shaped.ranks.naming import NamedAxis


class Meeting:
    """One rank of several; as `Exchange` for what a pass on parts asks."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._table = rank, size, barrier, table
        self.sums = 0

    def _all(self, t: Tensor) -> Tensor:
        self.sums += 1
        self._table[self.rank] = t
        self._barrier.wait()
        found = torch.stack(self._table)
        self._barrier.wait()
        return found

    def total(self, t: Tensor) -> Tensor:
        return self._all(t).sum(0)

    def extreme(self, t: Tensor, kind: str) -> Tensor:
        found = self._all(t)
        return found.amax(0) if kind == "max" else found.amin(0)


def walked(trainer: ScalarTrainer, names: Sequence[str], size: int = 2) -> PlacedGraph:
    """Where the values of a proved graph lie under a plan."""
    program, plan = trainer._program, NamedAxis("tp", size, tuple(names))
    plan.hold_even(program.params.dims)
    return placed(program, program.proof.graph, program.inputs, plan)


def on_parts(trainer: ScalarTrainer, batch: Sequence[Tensor], names: Sequence[str], size: int = 2) -> list[Tensor]:
    """Loss and gradients of a batch from runs on parts, put together; holds ranks to the same of what is whole."""
    program, plan = trainer._program, NamedAxis("tp", size, tuple(names))
    case = program.admit(batch)
    found = placed(program, case.graph, case.entries, plan)
    layouts = plan.layouts(program.params.entries, program.params.dims)
    barrier, table = threading.Barrier(size, timeout=30), [None] * size
    results: list[Any] = [None] * size

    def work(rank: int) -> None:
        meeting = Meeting(rank, size, barrier, table)
        run = LocalRun(found.walk, found.starts, found.ends, meeting, found.cuts)
        try:
            with torch.no_grad():
                parts = [layouts[i].cut(t.detach(), rank) for i, t in enumerate(program.params)]
                results[rank] = run.run(*parts, *batch)
            right = run.right()
            assert right is None or bool(right), run.first_wrong()
            assert meeting.sums == len(found.walk.collectives)
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the cause, and not that another one left the barrier
    return [together([r[at] for r in results], layouts, at, program.trainable) for at in range(len(results[0]))]


def together(parts: Sequence[Tensor], layouts: dict[int, Any], at: int, trainable: Sequence[int]) -> Tensor:
    """The whole of one result."""
    layout = layouts[trainable[at - 1]] if 0 < at <= len(trainable) else None
    if layout is None or layout.shard is None:
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]
    whole: Tensor = layout.joined(torch.cat([part.reshape(-1) for part in parts]))
    return whole
