"""All ranks of an axis in one process: threads that run a graph on their parts and meet at each sum."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shaped import ScalarTrainer
from shaped.backends.local import LocalRun
from shaped.backends.placed import PlacedGraph, placed, said
from shaped.backends.planned_parts import PlannedParts
from shaped.backends.values import Checked
from shaped.ranks.module_names import NamedEntries
from shaped.ranks.naming import NamedAxis


class Meeting:
    """One rank of several; as `Exchange` for what a pass on parts asks."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._table = rank, size, barrier, table
        self.sums, self.group = 0, self
        self.said = torch.tensor([1.0, 0.0], dtype=torch.float64)

    @classmethod
    def of(cls, size: int) -> "list[Meeting]":
        """All ranks of a group."""
        barrier, table = threading.Barrier(size, timeout=30), [None] * size
        return [cls(rank, size, barrier, table) for rank in range(size)]

    def abort(self) -> None:
        self._barrier.abort()

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

    def gather(self, part: Tensor) -> Tensor:
        return self._all(part).reshape(-1)

    def scatter(self, flat: Tensor) -> Tensor:
        return self._all(flat).sum(0).view(self.size, -1)[self.rank]


def walked(trainer: ScalarTrainer, names: Sequence[str], size: int = 2) -> PlacedGraph:
    """Where the values of a proved graph lie under a plan."""
    program, plan = trainer._program, NamedAxis("tp", size, tuple(names))
    plan.hold_even(program.params.dims)
    return placed(program, program.proof.graph, program.inputs, plan)


def on_parts(
    trainer: ScalarTrainer,
    batch: Sequence[Tensor],
    names: Sequence[str],
    size: int = 2,
    columns: int = 0,
    inside: bool = False,
) -> list[Tensor]:
    """Loss and gradients of a batch from runs on parts, put together; holds ranks to the same of what is whole.

    Args:
        trainer, batch, names: What is run, and the plan.
        size: Ranks along the names' axis.
        columns: Ranks along the batch's, over which what a rank has lies in flat parts, as with zero=3; each is given
            the batch. 0 for none.
        inside: Whether what an operation must see whole is gathered.
    """
    program, plan = trainer._program, NamedAxis("tp", size, tuple(names), inside)
    case = program.admit(batch)
    named = NamedEntries(program.params.entries, program.params.dims)
    found = placed(program, case.graph, case.entries, plan)
    layouts = plan.layouts(named.entries, [tuple(t.shape) for t in program.params], named.sizes)
    across = [Meeting.of(size) for _ in range(max(columns, 1))]
    down = [Meeting.of(columns) for _ in range(size)] if columns else []
    results: list[Any] = [None] * size

    def work(rank: int, column: int) -> None:
        meeting = across[column][rank]
        try:
            parts = [layouts[i].cut(t.detach(), rank) for i, t in enumerate(program.params)]
            if columns:
                proof = replace(program.proof, plan=tuple(said(named.entries, found, plan, "", 0)))
                of = down[rank][column], meeting, plan, "batch", named, found, proof, "dp"
                run, one = PlannedParts(program, meeting, *of), torch.ones((), dtype=torch.float64)
                made: Checked = run.gathering(case.graph, one)
                flat = [run.layouts[i].cut(t.detach(), (rank, column)) for i, t in enumerate(program.params)]
                with torch.no_grad():
                    loss, *own = made.run(*flat, *batch)
                    sums = [run.layouts[i].flat for i in program.used]
                    parts = [f.whole(run.summing.gather(g)).clone() / columns for f, g in zip(sums, own, strict=True)]
                outputs = [loss, *parts]
            else:
                made = LocalRun(found.walk, found.starts, found.ends, meeting, found.cuts)
                with torch.no_grad():
                    outputs = made.run(*parts, *batch)
                assert meeting.sums == len(found.walk.collectives)
            right = made.right()
            assert right is None or bool(right), made.first_wrong()
            results[rank] = outputs if column == 0 else results[rank]
        except BaseException as error:
            results[rank] = error
            for meet in (*across, *down):
                meet[0].abort()

    in_threads([partial(work, r, c) for r in range(size) for c in range(max(columns, 1))], results)
    return [together([r[at] for r in results], layouts, at, program.trainable) for at in range(len(results[0]))]


def in_threads(works: Sequence[Callable[[], None]], results: list[Any]) -> None:
    """Run all of them at once, and raise what one left in the results."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the cause, and not that another one left the barrier


def together(parts: Sequence[Tensor], layouts: dict[int, Any], at: int, trainable: Sequence[int]) -> Tensor:
    """The whole of one result."""
    layout = layouts[trainable[at - 1]] if 0 < at <= len(trainable) else None
    if layout is None or layout.shard is None:
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]
    whole: Tensor = layout.joined(torch.cat([part.reshape(-1) for part in parts]))
    return whole
