"""Faults of a run on several ranks: rows R1 to R5 of the matrix. Each returns (good, tried).

The ranks are forked processes that meet over gloo, as those that torchrun starts do; each trial has new ones.
"""

import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from shaped import Loop
from shaped.checkpoint import Checkpoints
from shaped.errors import CheckpointError, RankError
from shaped.ranks.peers import ALONE, Peers, Processes
from tests.faults.runs import Tally, child, folder, run, told, wait, whole
from tests.faults.saving import Calls, _die
from tests.ranks.small import batches, loop_of, proved

HANGS = 255
Work = Callable[[Peers], Any]


def ranks(work: Work, count: int = 2) -> list[int]:
    """Begin to run something on several ranks; their pids."""
    proved()  # before the processes part, since each would take its time
    store = tempfile.mktemp(prefix="ranks-")

    def one(rank: int) -> None:
        shared = dist.FileStore(store, count)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=shared, rank=rank, world_size=count)
        work(Processes(tuple(range(count))))

    return [child(partial(one, rank)) for rank in range(count)]


def statuses(work: Work, count: int = 2, seconds: float = 60.0) -> list[int]:
    return [wait(pid, seconds) for pid in ranks(work, count)]


def begun(peers: Peers, place: Path, **options: Any) -> tuple[Loop, Checkpoints]:
    loop = loop_of(peers)
    return loop, loop.attach(Checkpoints(place, **options))


def goes_on(place: Path, count: int, least: int) -> bool:
    """Whether a run of other ranks goes on from here, all of them from one step, and this is not before `least`."""

    def work(peers: Peers) -> None:
        loop, checkpoints = begun(peers, place)
        step = checkpoints.resume(loop).step
        same = {tuple(told) for told in peers.tell("here", [step, *loop.trainer.params["w"].tolist()])}
        loop.run_steps(batches(), 1)
        checkpoints.close()
        raise SystemExit(0 if len(same) == 1 and step >= least else 4)

    if count == 1:
        return run(lambda: work(ALONE)) == 0
    return statuses(work, count) == [0] * count


# -- rows R1 to R3: while a checkpoint is written ----------------------------------------------------------------------


class Moments(Calls):
    """Counts the system calls of a save, and the meetings of its ranks too."""

    def __enter__(self) -> "Moments":
        super().__enter__()
        real = self._gathered = Processes._gathered

        def gathered(peers: Processes, mine: Tensor, place: str) -> list[Tensor]:
            if len(self.seen) == self.at:
                self.action()
            self.seen.append(("meeting", place))
            return real(peers, mine, place)

        Processes._gathered = gathered  # type: ignore
        return self

    def __exit__(self, *exception: object) -> None:
        Processes._gathered = self._gathered  # type: ignore[method-assign]
        super().__exit__(*exception)


def second_save(place: Path, victim: int, at: int, peers: Peers) -> None:
    """Save step 2 over a step 1 that is there; the victim is killed before a call."""
    loop, checkpoints = begun(peers, place)
    checkpoints.resume(loop)
    loop.step = 2
    try:
        with Moments(at if peers.rank == victim else -1, _die) as moments:
            checkpoints.save(loop)
    except RankError:
        raise SystemExit(9) from None
    if at < 0:
        (place.parent / f"calls-{peers.rank}").write_text(str(len(moments.seen)))


def first_save(place: Path, peers: Peers) -> None:
    loop, checkpoints = begun(peers, place)
    loop.run_steps(batches(), 1)
    checkpoints.close()


def kills_at_every_call(share: float = 1.0, count: int = 2) -> Tally:
    """SIGKILL of each rank before each system call and meeting of its save: the others end with an error that says so,
    and any number of ranks goes on from a checkpoint that is whole."""
    good = tried = 0
    with folder() as outside:
        place = outside / "run"
        assert statuses(partial(first_save, place), count) == [0] * count
        assert statuses(partial(second_save, place, 0, -1), count) == [0] * count
        calls = [int((outside / f"calls-{rank}").read_text()) for rank in range(count)]
    for victim in range(count):
        for at in range(0, calls[victim], max(round(1 / share), 1)):
            with folder() as outside:
                place = outside / "run"
                statuses(partial(first_save, place), count)
                ended = statuses(partial(second_save, place, victim, at), count, 30)
                others = [status for rank, status in enumerate(ended) if rank != victim]
                tried += 1
                good += (
                    ended[victim] == 128 + signal.SIGKILL
                    and all(status in (0, 9) for status in others)
                    and whole(place)
                    and goes_on(place, 1 + tried % 3, 1)
                )
    return good, tried


def kills_at_random_moments(trials: int, count: int = 2, seed: int = 0) -> Tally:
    """SIGKILL of a rank at a random moment of ranks that save again and again."""
    draw, good = random.Random(seed), 0

    def save_for_ever(place: Path, met: Path, peers: Peers) -> None:
        (met / str(peers.rank)).touch()
        loop, checkpoints = begun(peers, place, keep=2)
        loop.step = checkpoints.resume(loop).step
        try:
            while True:
                loop.step += 1
                checkpoints.save(loop)
                checkpoints.save(loop)  # in place of itself
        except RankError:
            raise SystemExit(9) from None

    with folder() as place, folder() as met:
        for _ in range(trials):
            pids = ranks(partial(save_for_ever, place, met), count)
            victim = draw.randrange(count)
            end = time.monotonic() + 60
            while len(list(met.iterdir())) < count and time.monotonic() < end:  # torch waits for one that dies earlier
                time.sleep(0.002)
            for one in met.iterdir():
                one.unlink()
            time.sleep(draw.uniform(0.05, 0.6))
            os.kill(pids[victim], signal.SIGKILL)
            ended = [wait(pid, 30) for pid in pids]
            others = {status for rank, status in enumerate(ended) if rank != victim}
            good += others <= {9, 1} and whole(place)  # 1: while the others were going on
    return good, trials


def full_disk(trials: int, count: int = 2, seed: int = 0) -> Tally:
    """No file of one rank may grow beyond some bytes: all raise the same, what was there is whole, the run goes on."""
    draw, good = random.Random(seed), 0

    def save(place: Path, victim: int, limit: int, peers: Peers) -> None:
        loop, checkpoints = begun(peers, place)
        checkpoints.resume(loop)
        loop.step = 2
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if peers.rank == victim:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            checkpoints.save(loop)
            said = ""
        except CheckpointError as error:
            said = str(error).removeprefix(f"on rank {victim}: ")
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        every = peers.tell("here", said)
        named = not said or "File too large" in said or "No space" in said
        loop.step = 3
        checkpoints.save(loop)
        raise SystemExit(0 if named and set(every) == {said} and not list(place.glob(".tmp-*")) else 4)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for trial in range(trials):
        with folder() as outside:
            place = outside / "run"
            statuses(partial(first_save, place), count)
            done = statuses(partial(save, place, trial % count, draw.randrange(0, 1200)), count)
            good += done == [0] * count and whole(place) and goes_on(place, 1 + trial % 3, 3)
    return good, trials


# -- rows R4 and R5: while the run goes on -----------------------------------------------------------------------------


def trained(place: Path, epochs: int, peers: Peers) -> list[float]:
    loop, checkpoints = begun(peers, place, every=5)
    checkpoints.resume(loop)
    loop.run_epochs(batches(), epochs)
    checkpoints.close()
    return [float(x) for x in loop.trainer.params["w"]]


def signals_to_one_rank(trials: int, count: int = 2, seed: int = 0, epochs: int = 60) -> Tally:
    """SIGTERM to one rank at a random moment: all end with 143 at one step, and the run goes on as if it had not."""
    draw, good = random.Random(seed), 0
    with folder() as place:
        expected = told(lambda: repr(trained(place, epochs, ALONE)))

    def go_on(place: Path, peers: Peers) -> None:
        w = trained(place, epochs, peers)
        right = all(abs(a - b) <= 1e-10 for a, b in zip(w, eval(expected), strict=True))
        raise SystemExit(0 if right else 4)

    for trial in range(trials):
        with folder() as place:
            pids = ranks(lambda peers, place=place: trained(place, epochs, peers) and None, count)  # type: ignore[misc]
            while not list(place.glob("step-*")):
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.3))
            os.kill(pids[draw.randrange(count)], signal.SIGTERM)
            ended = [wait(pid, 30) for pid in pids]
            over = ended == [0] * count  # it was over already
            stopped = ended == [128 + signal.SIGTERM] * count and whole(place)
            later = 1 + trial % 3
            if stopped and later > 1:
                stopped = statuses(partial(go_on, place), later) == [0] * later
            elif stopped:
                stopped = run(lambda place=place: go_on(place, ALONE)) == 0  # type: ignore[misc]
            good += over or stopped
    return good, trials


def errors_on_one_rank(trials: int, count: int = 3, seed: int = 0) -> Tally:
    """A hook, or the data, raises on one rank at some step: all end there, name it, and have one whole checkpoint."""
    draw, good = random.Random(seed), 0

    def work(place: Path, victim: int, at: int, in_data: bool, peers: Peers) -> None:
        loop, checkpoints = begun(peers, place)

        def fail(step: int) -> None:
            if peers.rank == victim and step == at:
                raise OSError("the disk is gone")

        def data(epoch: int) -> Any:
            for i, batch in enumerate(batches().iterate(epoch)):
                fail(6 * epoch + i + 1 if in_data else -1)
                yield batch

        loop.on_step(lambda loop: fail(-1 if in_data else loop.step))
        try:
            loop.run_epochs(data, 3)
        except OSError as error:
            named = str(error).startswith("the disk" if peers.rank == victim else f"on rank {victim}: the disk")
            taken = at - 1 if in_data else at
            saved = taken == 0 or checkpoints.steps() == [taken]
            raise SystemExit(0 if named and loop.step == taken and saved else 4) from None
        raise SystemExit(5)

    for trial in range(trials):
        with folder() as place:
            victim, at = draw.randrange(count), draw.randrange(1, 18)
            good += statuses(partial(work, place, victim, at, trial % 2 == 0), count) == [0] * count and whole(place)
    return good, trials
