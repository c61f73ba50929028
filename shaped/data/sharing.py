"""Data of a run on several ranks: one batch for all of them, of which each takes its rows.

A batch is that of all ranks (`Batches`, `Windows`, a list, a DataLoader without a sampler for ranks): the same on each,
and cut along its batch dimension, so that the union of the shares is the batch of one process, whatever the number of
ranks. What gives each rank rows of its own says so: a DataLoader with a DistributedSampler by itself, other data as
`Local(data)`.

The first batch of each epoch is compared, and some 250 entries of each input of every other: ranks that have other
batches where they should have the same, or the same where each should have its own, are an error on all.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shaped.data.batches import Batches
from shaped.data.feed import Batch, DataError, Feed
from shaped.data.kept import checksum
from shaped.data.local import Local
from shaped.data.stdlib import Windows
from shaped.errors import ShapeError, StateError
from shaped.ranks import Peers, Rows
from shaped.shapes import Entry, Signature
from shaped.trainer import ScalarTrainer

_ENTRIES = 250  # of an input that are compared in each batch


def is_local(data: Any, rows: Rows) -> bool:
    """Whether each rank has rows of its own.

    Raises:
        DataError: Its sampler was made for another rank, or another number of them.
    """
    if isinstance(data, Local):
        return True
    if type(data).__name__ == "prefetch":
        return is_local(data.data, rows)
    inside = getattr(data, "batch_sampler", None)
    for sampler in (getattr(data, "sampler", None), inside, getattr(inside, "sampler", None)):
        at, of = getattr(sampler, "rank", None), getattr(sampler, "num_replicas", None)
        if type(at) is int and type(of) is int:
            if (at, of) != (rows.index, rows.parts):
                raise DataError(
                    f"the data's {type(sampler).__name__} is for rank {at} of {of}, and this is rank {rows.index} of "
                    f"{rows.parts}: DistributedSampler(dataset, num_replicas={rows.parts}, rank={rows.index})"
                )
            return True
    return False


def feed_of(
    trainer: ScalarTrainer,
    data: Any,
    state: Mapping[str, Any] | None = None,
    *,
    fit: Callable[[Batch], Batch] | None = None,
) -> Feed:
    """A feed for a trainer, on as many ranks as it has."""
    if trainer.rows is None:
        return Feed(data, state, fit=fit)
    return SharedFeed(data, state, fit=fit, peers=trainer.peers, rows=trainer.rows)


class SharedFeed(Feed):
    """A feed of one rank, whose batches all ranks agree on.

    Args:
        data, state, fit: As for `Feed`.
        peers: The ranks.
        rows: Which rows of a batch are this rank's.

    Raises:
        DataError: As `Feed` and `is_local`. StateError: The state is of another number of ranks, and no place in this
        data.
    """

    def __init__(
        self,
        data: Any,
        state: Mapping[str, Any] | None = None,
        *,
        fit: Callable[[Batch], Batch] | None = None,
        peers: Peers,
        rows: Rows,
    ) -> None:
        self.peers, self.rows, self.local = peers, rows, is_local(data, rows)
        self._looks = False  # the next batch is the first of an epoch, or after a resume
        self._steady = type(data) in (Batches, Windows)  # in memory, and the same wherever its first batch is
        super().__init__(data, self._mine(state, data) if state else None, fit=fit)

    def _mine(self, state: Mapping[str, Any], data: Any) -> Mapping[str, Any]:
        """This rank's place in data of its own; one of another number of ranks as far as it says anything here."""
        every = state.get("ranks")
        if not self.local or not every:
            return {key: value for key, value in state.items() if key != "ranks"} | (
                {} if self.local == bool(every) else {"sum": None}
            )
        if len(every) == self.peers.size:
            return dict(every[self.peers.rank])
        mine = dict(every[0])
        inside = data.data if isinstance(data, Local) else data
        there, here = (mine.get("about") or {}).get("batch_size"), getattr(inside, "batch_size", None)
        other = isinstance(there, int) and isinstance(here, int) and there * len(every) != here * self.peers.size
        if mine.get("inner") is not None or (state["index"] and other):
            raise StateError(
                f"the run was saved at batch {state['index']} of epoch {state['epoch']} of data that {len(every)} "
                f"ranks had parts of, and here are {self.peers.size}: go on with as many ranks, or with batches of as "
                "many rows in all"
            )
        return mine | {"sum": None, "own": None, "again": None, "about": {}}

    def _open(self) -> Iterator[Any]:
        self._looks = True
        return super()._open()

    def follow(self) -> Batch | None:
        """The next batch of data in memory, about which nothing is left to agree on; None where there may be."""
        return self.next() if self._steady and self.iterator is not None and self.index < (self.length or 0) else None

    def take(
        self, place: str, *flags: int, failed: Exception | None = None
    ) -> tuple[Batch | None, list[tuple[int, ...]]]:
        """The next batch, or None where the epoch ends, on all ranks alike; and what flags each brought (up to two).

        Args:
            place: Where they meet.
            flags: What this rank brings.
            failed: What it failed with on the way; no batch is fetched.

        Raises:
            DataError: The data ended on some ranks only, or ranks have other batches than they should. An error of the
            data of any rank.
        """
        batch, value, same = None, 0, False
        try:
            batch = self.next() if failed is None else None
            if batch is not None and self._looks:
                value, same = checksum(batch.tensors), _constant(batch.tensors)
                value = value if self.local else zlib.crc32(f"{self.length}".encode(), value)
            elif batch is not None and not self.local:
                value = looked_at(batch)
        except Exception as error:
            failed = error
        look, self._looks = self._looks and batch is not None, False
        kind = 4 * self.rows.index + 2 * same + self.local
        every = self.peers.meet(place, batch is not None, value, kind, *flags, failed=failed)
        where = f"batch {self.index - (batch is not None)} of epoch {self.epoch}"
        ended = [rank for rank, row in enumerate(every) if not row[0]]
        if 0 < len(ended) < len(every):
            raise DataError(
                f"the data of rank {', '.join(map(str, ended))} has ended before {where}, and that of others goes on: "
                "give each rank as many batches (drop_last=True), or one batch of all ranks"
            )
        if len({row[2] % 2 for row in every}) > 1:
            raise DataError("some ranks have rows of their own, and others a batch of all: give all the same kind")
        if look and self.local:
            _all_other([row[1] for row in every], [row[2] for row in every], where)
        elif not self.local:
            all_same([row[1] for row in every], where)
        return batch, [row[3:] for row in every]

    def state_dict(self) -> dict[str, Any]:
        """As a feed's; of data that each rank has parts of, with that of all ranks (collective)."""
        state = super().state_dict()
        return {**state, "ranks": self.peers.tell("the place in the data", state)} if self.local else state


def looked_at(batch: Batch) -> int:
    """A checksum of some 250 entries of each input, spread over it; of shapes alone on a GPU, where it would wait."""
    found = 0
    for t in batch.tensors:
        flat = t.detach().reshape(-1) if t.device.type == "cpu" else t.new_empty(0, device="cpu")
        some = flat[:: max(flat.numel() // _ENTRIES, 1)].contiguous()
        found = zlib.crc32(f"{tuple(t.shape)} {t.dtype}".encode(), found)
        found = zlib.crc32(some.view(torch.uint8).numpy().data, found) if some.numel() else found
    return found


def all_same(sums: Sequence[int], where: str) -> None:
    """Refuse a batch that is not the same on all ranks.

    Raises:
        DataError: With what to do.
    """
    if len(set(sums)) > 1:
        raise DataError(
            f"{where} is not the same on all ranks, and a batch is that of all ranks, of which each takes its rows. "
            "Where each rank has rows of its own, say so: Local(data), or a DistributedSampler. Where it should be the "
            "same, shuffle by a generator that is seeded alike: "
            "DataLoader(..., generator=torch.Generator().manual_seed(0)), or Batches(..., seed=0)"
        )


def _all_other(sums: Sequence[int], kinds: Sequence[int], where: str) -> None:
    for rank, (found, kind) in enumerate(zip(sums, kinds, strict=True)):
        other = next((r for r in range(rank) if sums[r] == found and kinds[r] // 4 != kind // 4), None)
        if other is not None and not kind & 2:
            raise DataError(
                f"ranks {other} and {rank} were given the same rows in {where}, and each should have its own: split "
                "the data by rank (a DistributedSampler does), or leave Local(...) out, so that each rank takes its "
                "rows of the batch"
            )


def _constant(tensors: Sequence[Tensor]) -> bool:
    """Whether all rows of a batch are alike, so that ranks may well have the same."""
    return all(bool((t == t.reshape(-1)[:1]).all()) for t in tensors if t.numel())


# -- the rows of a rank ------------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """A rank's part of a batch.

    Attributes:
        batch: Its rows; where it has none, one row that is another's.
        own: How many of them are its own.
    """

    batch: Batch
    own: int


def cut(batch: Batch, signature: Signature, rows: Rows) -> Share:
    """A rank's rows of a batch.

    Args:
        batch: With its inputs by position.
        signature: Of the loss that takes it: an input is cut where it has the dimension that is shared out.
        rows: Which.

    Raises:
        ShapeError: No input has the dimension, it has several lengths, or an input has an expression over it only.
    """
    arguments = [a for a in signature.arguments if a.kind in ("tensor", "container")]
    flat: list[list[Any]] = []
    lengths: dict[str, int] = {}
    for argument, value in zip(arguments, batch.inputs, strict=False):
        leaves = [value] if argument.container is None or value is None else argument.container.flatten(value)
        for entry, leaf in zip(argument.entries, leaves, strict=False):
            axis = _axis(entry, rows.name)
            if axis is not None and isinstance(leaf, Tensor) and -leaf.dim() <= axis < leaf.dim():
                lengths[entry.path] = leaf.shape[axis]
        flat.append(leaves)
    if not lengths:
        raise ShapeError(f"`{rows.name}` is shared out among ranks, and no input of `{signature.name}` has it")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{length} in {path}" for path, length in lengths.items())
        raise ShapeError(f"the batch breaks its signature: `{rows.name}` is {said}")
    length = next(iter(lengths.values()))
    mine = rows.of(length)
    taken = mine if mine.stop > mine.start else slice(0, 1)
    inputs = []
    for argument, value, leaves in zip(arguments, batch.inputs, flat, strict=False):
        parts = [_part(leaf, entry, rows.name, taken) for entry, leaf in zip(argument.entries, leaves, strict=False)]
        box = argument.container
        inputs.append(parts[0] if box is None or value is None or not box.parts else box.build(parts))
    return Share(Batch((*inputs, *batch.inputs[len(inputs) :]), batch.spec), mine.stop - mine.start)


def _axis(entry: Entry, name: str) -> int | None:
    """Where a tensor has the dimension; counted from the end behind `*axes`.

    Raises:
        ShapeError: It has an expression over it.
    """
    dims = entry.spec.dims
    for at, dim in enumerate(dims):
        if dim.text == name:
            return at - len(dims) if any(before.is_axes for before in dims[:at]) else at
        if name in dim.names:
            raise ShapeError(
                f"{entry.path} : {entry.spec} has {dim}, of which no rank can take its rows: give it an axis `{name}`"
            )
    return None


def _part(leaf: Any, entry: Entry, name: str, rows: slice) -> Any:
    axis = _axis(entry, name)
    if axis is None or not isinstance(leaf, Tensor) or not -leaf.dim() <= axis < leaf.dim():
        return leaf
    return leaf.narrow(axis, rows.start, rows.stop - rows.start)
