"""What ranks exchange: functional collectives, which run as they stand in an eager pass and in a graph.

    whole    <- gather(part)
    g        <- scatter(samples*g), or total(samples*g)       summed over the ranks
    totals   <- total([samples, samples*loss, ...])           one small sum a step; see `Totals`

Only this file names torch's collectives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from shaped.ranks.join import patience, post, whereabouts

_ops = torch.ops._c10d_functional
_groups: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()  # of ours, by the default group


@dataclass(frozen=True)
class Totals:
    """What the ranks agreed on in a step: sums over them, read once.

    Attributes:
        samples: In the batches of all ranks.
        loss: samples*loss.
        not_finite: Ranks where a sum of gradients, the loss or the count is not finite.
        wrong: Ranks whose batch is none, or has a value that an operation cannot take.
        stop: Ranks that were asked to stop.
        culprits: Ranks whose own loss or gradients are not finite.
        culprit: The sum of their numbers: where it is one, its number.
        squares, kept: Squares of the gradients that an update would take, with this batch and without it.
        marks, squared: Of what each rank steps by (`Exchange.mark`), and their squares.
        ranks: How many there are; one where a step is tried on a rank alone.
    """

    samples: float
    loss: float
    not_finite: float
    wrong: float
    stop: float
    culprits: float
    culprit: float
    squares: float
    kept: float
    marks: float
    squared: float
    ranks: float

    @property
    def unlike(self) -> bool:
        """Whether ranks step by different updates."""
        return self.ranks * self.squared != self.marks**2

    @property
    def where(self) -> str:
        """` on rank 2`, where one rank alone is to blame for what is not finite; ` on 3 ranks`; or nothing."""
        if not self.culprits:
            return ""
        return f" on rank {int(self.culprit)}" if self.culprits == 1 else f" on {int(self.culprits)} ranks"


NOT_FINITE, WRONG = 2, 3  # where these stand in the vector
SAMPLES, LOSS, SQUARES, KEPT, MARKS, SQUARED, RANKS = 0, 1, 7, 8, 9, 10, 11
VECTOR = 96  # bytes of it
MARK = 2**20  # so that sums of their squares are exact on 8,192 ranks


class Exchange:
    """The ranks along one axis of a mesh, or all of its ranks.

    Args:
        mesh: torch's mesh.
        axis: One of its axes; None for all of its ranks.

    Attributes:
        rank, size: This process among those of the axis.
        stop: Set it to ask all ranks to stop.
        stopping: Whether any rank had asked when the last step was taken; alike on all ranks.
        said: What this rank says of itself in each step, on the device: how its batch weighs (1, or 0 where it has
            none), whether it asks to stop, and a mark of what it steps by, with its square.
    """

    def __init__(self, mesh: DeviceMesh, axis: str | None) -> None:
        # It tells fake tensors what these operations give; imported here, since no process alone needs it.
        import torch.distributed._functional_collectives

        every = mesh.mesh.flatten().tolist()
        members = every if axis is None else dist.get_process_group_ranks(mesh.get_group(axis))
        self.rank, self.size = members.index(dist.get_rank()), len(members)
        self.group = _own(tuple(members))
        self.name: Any = self.group.group_name
        device = torch.device(mesh.device_type)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        self.said = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64, device=device)
        self.stopping = False
        self.last: Totals | None = None  # of the last step
        self.agreements = 0  # that were read
        self._weight, self._stop, self._mark = 1.0, False, 0
        self._device = device

    # -- in a pass, eager or traced --------------------------------------------------------------------------------

    def total(self, t: Tensor) -> Tensor:
        """The sum over the ranks, on all of them."""
        return _ops.wait_tensor(_ops.all_reduce(t.contiguous(), "sum", self.name))  # type: ignore[no-any-return]

    def totals(self, tensors: list[Tensor], in_place: bool = False) -> list[Tensor]:
        """The same of several, all under way at once; in the memory that they have, or in other."""
        reduce = _ops.all_reduce_ if in_place else _ops.all_reduce
        begun = [reduce(t, "sum", self.name) for t in tensors]
        return [_ops.wait_tensor(t) for t in begun]

    def extreme(self, t: Tensor, kind: str) -> Tensor:
        """The largest ("max") or smallest ("min") of each entry over the ranks, on all of them."""
        return _ops.wait_tensor(_ops.all_reduce(t.contiguous(), kind, self.name))  # type: ignore[no-any-return]

    def gather(self, part: Tensor) -> Tensor:
        """All ranks' parts, one after another, on all of them."""
        return _ops.wait_tensor(  # type: ignore[no-any-return]
            _ops.all_gather_into_tensor(part.contiguous(), self.size, self.name)
        )

    def scatter(self, flat: Tensor) -> Tensor:
        """This rank's part of the sum over the ranks."""
        return _ops.wait_tensor(  # type: ignore[no-any-return]
            _ops.reduce_scatter_tensor(flat.contiguous(), "sum", self.size, self.name)
        )

    def agree(
        self,
        samples: Tensor,
        loss: Tensor,
        not_finite: Tensor,
        wrong: Tensor,
        culprit: Tensor,
        squares: Tensor,
        kept: Tensor,
        said: Tensor,
    ) -> Tensor:
        """The sums of all of it, float64 (12,), as `Totals` names them."""
        number = torch.full((), float(self.rank), dtype=torch.float64, device=said.device)
        mine = [samples, loss, not_finite, wrong, said[1], culprit, culprit * number, squares, kept]
        mine += [said[2], said[3], torch.ones_like(number)]
        return self.total(torch.stack([m.to(said.device, torch.float64) for m in mine]))

    def alike(self, totals: Tensor) -> Tensor:
        """Whether all ranks step by one update: no mark differs from their mean."""
        return totals[RANKS] * totals[SQUARED] == totals[MARKS] ** 2

    # -- what this rank says ---------------------------------------------------------------------------------------

    @property
    def stop(self) -> bool:
        """Whether this rank asks all to stop."""
        return self._stop

    @stop.setter
    def stop(self, asked: bool) -> None:
        self._stop = asked
        self.said[1] = float(asked)

    @property
    def weight(self) -> float:
        """How this rank's batches weigh: 1, or 0 where it takes part with a batch that is not its own."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        if weight not in (0, 1):
            raise ValueError(f"weight is {weight!r}; it is 1, or 0 for a batch that does not count")
        self._weight = weight
        self.said[0] = weight

    @property
    def mark(self) -> int:
        """A number below `MARK` for what this rank steps by, the same on all ranks."""
        return self._mark

    @mark.setter
    def mark(self, mark: int) -> None:
        if mark != self._mark:
            self._mark = mark
            self.said[2], self.said[3] = float(mark), float(mark) ** 2

    def read(self, totals: Tensor) -> Totals:
        """What was agreed on, as numbers of the host; remembers whether to stop."""
        found = self.last = Totals(*totals.tolist())
        self.stopping = found.stop > 0
        self.agreements += 1
        return found

    # -- between hosts ---------------------------------------------------------------------------------------------

    def tell(self, thing: Any) -> list[Any]:
        """What every rank tells, by rank; all ranks call it."""
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, thing, self.group)
        return told

    def spread(self, tensors: list[Tensor]) -> None:
        """Write rank 0's values into all ranks' tensors."""
        first = dist.get_process_group_ranks(self.group)[0]
        for t in tensors:
            sent = t.contiguous()
            dist.broadcast(sent, first, group=self.group)
            if sent is not t and self.rank:
                t.copy_(sent)

    def mean(self, value: float, weight: float) -> float:
        """The mean of all ranks' values by their weights; NaN where nothing weighs. All ranks call it."""
        told = self.tell((float(value), float(weight)))
        weighed = sum(w for _, w in told)
        return sum(v * w for v, w in told if w) / weighed if weighed else float("nan")

    def failed(self, error: BaseException) -> None:
        """Leave word of an error that ends this rank alone, for those that will wait for it."""
        post(error)

    def whereabouts(self, error: BaseException) -> str:
        """What is known of the others where a collective failed."""
        return whereabouts(error, dist.get_process_group_ranks(self.group))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Exchange with nobody for a while: sums are this rank's own, and others' parts are copies of its part.

        A compiled step has the group's name in its code. Under that name it finds another group here, so that what runs
        on all ranks together can be tried on one.
        """
        from torch._C._distributed_c10d import _register_process_group, _unregister_process_group

        other = self._stand_in()  # the registry does not keep it alive
        _unregister_process_group(self.name)
        _register_process_group(self.name, other)
        try:
            yield
        finally:
            _unregister_process_group(self.name)
            _register_process_group(self.name, self.group)

    @cached_property
    def stands_in(self) -> bool:
        """Whether a rank alone gets its own part of a sum there; in torch 2.11 it gets whatever was in memory."""
        with self.alone(), torch.no_grad():
            flat = torch.arange(float(self.size), device=self._device)
            return bool(self.scatter(flat)[0] == self.rank)

    def _stand_in(self) -> Any:
        from torch._C._distributed_c10d import FakeProcessGroup, HashStore, ProcessGroup

        group = ProcessGroup(HashStore(), self.rank, self.size)
        # 2.11 makes it by its constructor, later ones by a function
        make = getattr(FakeProcessGroup, "_create_internal", FakeProcessGroup)
        kind = ProcessGroup.BackendType.CUSTOM
        for device in dict.fromkeys(["cpu", self._device.type]):
            group._register_backend(torch.device(device), kind, make(self.rank, self.size))
        group._set_default_backend(kind)
        group._set_group_name(self.name)
        return group


def _own(members: tuple[int, ...]) -> Any:
    """A group of these processes that nobody else uses; made once, by all of them."""
    known = _groups.setdefault(dist.group.WORLD, {})
    if members not in known:
        known[members] = dist.new_group(list(members), use_local_synchronization=True, timeout=patience())
    return known[members]
