"""Meetings of ranks: what all learn of each, and that none waits for one that is elsewhere."""

import pytest

from shaped.backends.turns import lost
from shaped.data import DataError
from shaped.errors import ExecutorError, RankError
from shaped.ranks.peers import ALONE, Peers
from tests.ranks.threads import on_ranks


def test_each_rank_learns_what_all_brought() -> None:
    small = on_ranks(3, lambda p: p.meet("here", p.rank, 7))
    large = on_ranks(3, lambda p: p.tell("here", "a" * 1000 * p.rank))

    assert small == [[(0, 7), (1, 7), (2, 7)]] * 3
    assert large == [["", "a" * 1000, "a" * 2000]] * 3


def test_an_error_of_one_rank_is_one_of_all_and_names_it() -> None:
    def work(peers: Peers) -> object:
        return peers.meet("here", failed=DataError("no batch") if peers.rank == 1 else None)

    found = on_ranks(3, work)

    assert [type(error) for error in found] == [DataError] * 3
    assert [str(error) for error in found] == ["on rank 1: no batch", "no batch", "on rank 1: no batch"]


def test_ranks_at_different_places_are_told_so() -> None:
    found = on_ranks(2, lambda p: p.tell("the save of step 3") if p.rank else p.meet("step 4"))

    assert [type(error) for error in found] == [RankError] * 2
    assert str(found[0]).startswith(
        "the ranks are at different places: rank 0 at step 4, rank 1 at the save of step 3."
    )


def test_a_failed_rank_is_heard_of_at_another_place_too() -> None:
    found = on_ranks(2, lambda p: p.tell("a") if p.rank else p.meet("b", failed=OSError("the disk")))

    assert [str(error) for error in found] == ["the disk", "on rank 0: the disk"]


def test_a_process_alone_meets_itself() -> None:
    assert ALONE.meet("here", 1, 2) == [(1, 2)]
    assert ALONE.tell("here", "x") == ["x"]
    with pytest.raises(DataError, match=r"^no batch$"):
        ALONE.meet("here", failed=DataError("no batch"))


def test_an_error_of_compiled_code_that_comes_from_a_collective_is_one_of_ranks_that_are_gone() -> None:
    closed = RuntimeError("gloo: Connection closed by peer")
    wrapped = ExecutorError("`AdamW` failed while it ran")
    wrapped.__cause__ = closed

    assert [lost(error) for error in (closed, wrapped, ExecutorError("gloo"), RuntimeError("no memory"))] == [
        True, True, False, False,
    ]  # fmt: skip
