"""What the processes of a run say to each other on the host, at meetings to which all of them come.

A meeting has a place: "step 12", "the save of runs/a/step-00000012". Each rank brings small numbers or a value, and
goes on with what all brought. A rank that failed on the way comes too, with its error: then all raise. Ranks that come
to different places are told so, all of them, so that none waits for one that is elsewhere.
"""

import builtins
import os
import pickle
import sys
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from shaped.errors import RankError, ShapedError
from shaped.ranks.join import patience, whereabouts

_FLAGS = 5  # small numbers that a rank may bring
_PLACE, _FAILED, _BYTES = range(3)


class Peers:
    """The processes of one run. This one: a process alone, whose meetings cost nothing.

    An error that all ranks raise has the attribute `together`.

    Attributes:
        rank: Of this process, from 0.
        size: How many there are.
    """

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes, prints and looks at the clock."""
        return self.rank == 0

    def meet(self, place: str, *flags: int, failed: BaseException | None = None) -> list[tuple[int, ...]]:
        """Come to a place with up to five small numbers; returns those of all ranks, by rank.

        Args:
            place: The same on each rank.
            flags: Whole numbers of 64 bits.
            failed: What this rank failed with on the way.

        Raises:
            The error of a rank that failed: `failed` itself there, one that names the rank elsewhere. RankError: Ranks
            came to different places, or one is gone.
        """
        rows = self._met(place, (*flags, *[0] * (_FLAGS - len(flags))), 0, failed)
        return [tuple(row[3 : 3 + len(flags)]) for row in rows]

    def tell(self, place: str, value: Any = None, *, failed: BaseException | None = None) -> list[Any]:
        """Come to a place with a value of any size; returns those of all ranks, by rank. Raises as `meet`."""
        if self.size == 1:
            self._met(place, (0,) * _FLAGS, 0, failed)
            return [value]
        content = b"" if failed is not None else pickle.dumps(value)
        rows = self._met(place, (0,) * _FLAGS, len(content), failed)
        return [pickle.loads(part) for part in self._bytes(content, [row[_BYTES] for row in rows], place)]

    def _met(self, place: str, flags: Sequence[int], size: int, failed: BaseException | None) -> list[list[int]]:
        if self.size == 1:
            if failed is not None:
                raise failed
            return [[0, 0, size, *flags]]
        rows = self._rows([zlib.crc32(place.encode()), failed is not None, size, *flags], place)
        if len({row[_PLACE] for row in rows}) > 1 or any(row[_FAILED] for row in rows):
            self._part(place, failed)
        return rows

    def _part(self, place: str, failed: BaseException | None) -> None:
        """Say where each rank is and what it failed with, and raise."""
        said = pickle.dumps((place, None if failed is None else (_kind(failed), _text(failed))))
        sizes = [row[_BYTES] for row in self._rows([0, 0, len(said), *[0] * _FLAGS], place)]
        every = [pickle.loads(part) for part in self._bytes(said, sizes, place)]
        if failed is not None:
            raise _together(failed)
        for rank, (_, fault) in enumerate(every):
            if fault is not None:
                raise _together(_like(fault[0], f"on rank {rank}: {fault[1]}"))
        places = ", ".join(f"rank {rank} at {where}" for rank, (where, _) in enumerate(every))
        raise _together(
            RankError(
                f"the ranks are at different places: {places}. A run takes the same steps, saves and evaluations on "
                "each rank: nothing of that may hang on the rank, on a clock or on a figure of one rank alone"
            )
        )

    def _rows(self, row: list[int], place: str) -> list[list[int]]:
        """The rows of all ranks."""
        raise NotImplementedError

    def _bytes(self, content: bytes, sizes: Sequence[int], place: str) -> list[bytes]:
        """What all ranks brought, of these sizes."""
        raise NotImplementedError


ALONE = Peers()


class Processes(Peers):
    """The ranks of a mesh, over a gloo group of their own, so that no meeting is taken for a collective of a step."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        import torch.distributed as dist

        self.rank, self.size = ranks.index(dist.get_rank()), len(ranks)
        group = dist.new_group(list(ranks), backend="gloo", use_local_synchronization=True, timeout=patience())
        assert isinstance(group, dist.ProcessGroup)  # this rank is one of them
        self._group = group

    def _rows(self, row: list[int], place: str) -> list[list[int]]:
        return [found.tolist() for found in self._gathered(torch.tensor(row), place)]

    def _bytes(self, content: bytes, sizes: Sequence[int], place: str) -> list[bytes]:
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        if content:
            mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        every = self._gathered(mine, place)
        return [found[:size].numpy().tobytes() for found, size in zip(every, sizes, strict=True)]

    def _gathered(self, mine: Tensor, place: str) -> list[Tensor]:
        import torch.distributed as dist

        every = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(every, mine, group=self._group)
        except (RuntimeError, ValueError) as error:
            why = whereabouts(error, dist.get_process_group_ranks(self._group))
            raise RankError(f"rank {self.rank} is at {place}, and another rank is gone: {why}") from error
        return every


def peers_of(exchange: Any) -> Peers:
    """The processes that a trainer's exchange is between; None is a process alone. Collective at first."""
    if exchange is None or exchange.size == 1:
        return ALONE
    import torch.distributed as dist

    return _processes(tuple(dist.get_process_group_ranks(exchange.group)))


@cache
def _processes(ranks: tuple[int, ...]) -> Peers:
    return Processes(ranks)


def rank_here() -> int:
    """The rank of this process among all that were started together; 0 for one that was started alone."""
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if processes_here() > 1 else 0


def processes_here() -> int:
    """How many processes torchrun started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarted() -> bool:
    """Whether torchrun started the processes again after some of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def together(error: BaseException) -> bool:
    """Whether all ranks raise an error, each at the same place, so that they can go on together from there."""
    return bool(getattr(error, "together", False))


def _together(error: BaseException) -> BaseException:
    error.together = True  # type: ignore[attr-defined]
    return error


def _kind(error: BaseException) -> str:
    return type(error).__name__


def _text(error: BaseException) -> str:
    return "\n  ".join([str(error), *getattr(error, "__notes__", ())])


def _like(kind: str, text: str) -> Exception:
    """An error of the same class, where it is one of ours or Python's that takes a text alone."""
    known: dict[str, Any] = {found.__name__: found for found in _below(ShapedError)}
    made = known.get(kind, getattr(builtins, kind, None))
    if isinstance(made, type) and issubclass(made, Exception):
        try:
            return made(text)
        except TypeError:
            pass
    return RankError(f"{text} ({kind})")


def _below(kind: type[Exception]) -> list[type[Exception]]:
    children: list[type[Exception]] = kind.__subclasses__()
    return [found for child in children for found in (child, *_below(child))]
