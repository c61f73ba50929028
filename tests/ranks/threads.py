"""Ranks as threads of one process: what runs on several ranks, tried without starting any."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from shaped.errors import RankError
from shaped.ranks.peers import Peers


class Threads(Peers):
    """One of several ranks that meet at a barrier."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, size, table, barrier

    def _all(self, mine: Any, place: str) -> list[Any]:
        try:
            self._table[self.rank] = mine
            self._barrier.wait()
            found = list(self._table)
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise RankError(f"rank {self.rank} is at {place}, and another rank is gone") from None
        return found

    def _rows(self, row: list[int], place: str) -> list[list[int]]:
        return self._all(row, place)

    def _bytes(self, content: bytes, sizes: Sequence[int], place: str) -> list[bytes]:
        return self._all(content, place)


_HERE = threading.local()


def rank_of_thread() -> int:
    """In place of `rank_here`, which asks the process."""
    return getattr(_HERE, "rank", 0)


def on_ranks(size: int, work: Callable[[Peers], Any], seconds: float = 60.0) -> list[Any]:
    """What `work` returned or raised on each rank."""
    barrier = threading.Barrier(size, timeout=seconds)
    table: list[Any] = [None] * size
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        _HERE.rank = rank
        try:
            found[rank] = work(Threads(rank, size, table, barrier))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def good(found: list[Any]) -> list[Any]:
    """What each rank returned; the first error where one raised."""
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found
