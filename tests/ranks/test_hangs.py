"""A rank that hangs: how long the others wait, and what they say. The ranks are forked processes of their own group."""

import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shaped.errors import RankError
from shaped.ranks.exchange import _own
from shaped.ranks.join import patience
from shaped.ranks.peers import Processes
from tests.faults.runs import child, wait
from tests.faults.training import batch, trainer

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)


def met(rank: int, count: int, store: Path) -> None:
    """Two ranks meet, and the last one sleeps; the others say who it is."""
    shared = dist.FileStore(str(store), count)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=count, timeout=timedelta(seconds=2))
    assert patience() == timedelta(seconds=2)
    peers = Processes(tuple(range(count)))
    group = _own(tuple(range(count)))
    if rank == count - 1:
        time.sleep(7)
        return
    with pytest.raises(RankError) as found:
        peers.meet("a step")
    said = (
        f"rank {rank} is at a step, and another rank is gone: rank {count - 1} did not come within the group's time-out"
    )

    assert str(found.value) == said
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=2)


def reads_alone(rank: int, store: Path) -> None:
    """With zero=3 one rank gathers the parameters, and the other goes on."""
    shared = dist.FileStore(str(store), 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=2, timeout=timedelta(seconds=10))
    made = trainer({"zero": 3})
    made.train_step(*batch(0))
    # Both wait equally long, and the process of the first to give up may end before the other has.
    with pytest.raises(
        RankError, match=f"rank {1 - rank} (did not come within the group's time-out|ended before this)"
    ):
        made.get_params() if rank == 0 else made.train_step(*batch(1))


@pytest.mark.slow
def test_a_rank_that_gathers_while_the_other_steps_is_an_error_of_both(tmp_path: Path) -> None:
    pids = [child(partial(reads_alone, rank, tmp_path / "store")) for rank in range(2)]

    assert [wait(pid, 120) for pid in pids] == [0, 0]


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_those_that_wait_for_a_rank_that_hangs_name_it_after_the_time_that_the_group_was_given(
    count: int, tmp_path: Path
) -> None:
    pids = [child(partial(met, rank, count, tmp_path / "store")) for rank in range(count)]

    assert [wait(pid, 60) for pid in pids] == [0] * count
