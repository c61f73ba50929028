"""Faults while ranks write a folder of torch.distributed.checkpoint: rows R11 and R12. Each returns (good, tried)."""

import random
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

from shaped import ScalarTrainer
from shaped.errors import ExportError, RankError, StateError
from shaped.export import load_dcp, save_dcp
from shaped.ranks.peers import Peers
from tests.faults.ranks import Moments, statuses
from tests.faults.runs import Tally, folder
from tests.faults.saving import _die
from tests.faults.training import LAYOUTS, batch, equal, rows, trainer


def _stepped(layout: dict[str, Any], peers: Peers) -> ScalarTrainer:
    made = trainer(layout)
    made.train_step(*rows(peers, layout, 0))
    return made


def _killed(place: Path, layout: dict[str, Any], victim: int, at: int, peers: Peers) -> None:
    made = _stepped(layout, peers)
    try:
        with Moments(at if peers.rank == victim else -1, _die) as moments:
            save_dcp(made, place)
    except RankError:
        raise SystemExit(9) from None
    if at < 0:
        (place.parent / f"calls-{peers.rank}").write_text(str(len(moments.seen)))


def _whole_or_absent(place: Path, want: ScalarTrainer, found: ScalarTrainer, start: Any) -> bool:
    """Whether what one process loads is all of the state, or nothing is there."""
    found.load_state_dict(start)
    try:
        load_dcp(found, place)
    except StateError:
        return not place.exists()
    return equal(want, found) and found.steps == 1


def kills_at_every_call(share: float = 1.0) -> Tally:
    """SIGKILL of each rank before each system call and meeting: the others end with an error; all of it, or nothing."""
    good = tried = 0
    want, found = trainer(), trainer()
    start = found.state_dict()
    want.train_step(*batch(0))
    with folder() as outside:
        assert statuses(partial(_killed, outside / "saved", LAYOUTS[1], 0, -1)) == [0, 0]
        calls = [int((outside / f"calls-{rank}").read_text()) for rank in range(2)]
    for victim in range(2):
        for at in range(0, calls[victim], max(round(1 / share), 1)):
            with folder() as outside:
                ended = statuses(partial(_killed, outside / "saved", LAYOUTS[tried % 3], victim, at), seconds=120)
                here = _whole_or_absent(outside / "saved", want, found, start)
            tried += 1
            over = ended[victim] == 0  # it has fewer calls in this layout
            good += here and ended[1 - victim] in (0, 9) and (over or ended[victim] == 128 + signal.SIGKILL)
    return good, tried


def _full(place: Path, layout: dict[str, Any], victim: int, limit: int, peers: Peers) -> None:
    made = _stepped(layout, peers)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if peers.rank == victim:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    said = ""
    try:
        save_dcp(made, place)
    except ExportError as error:
        said = str(error).removeprefix(f"on rank {victim}: ")
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    alike = set(peers.tell("here", said)) == {said}
    clean = not said or ("File too large" in said and not list(place.parent.iterdir()))
    peers.meet("looked")
    save_dcp(made, place.with_name("again"))
    raise SystemExit(0 if alike and clean else 4)


def full_disk(trials: int, seed: int = 0) -> Tally:
    """No file of one rank may grow beyond some bytes: all raise the same, nothing is there, the next save is whole."""
    draw, good = random.Random(seed), 0
    want, found = trainer(), trainer()
    start = found.state_dict()
    want.train_step(*batch(0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for trial in range(trials):
        with folder() as outside:
            work = partial(_full, outside / "saved", LAYOUTS[trial % 3], trial % 2, draw.randrange(0, 30_000))
            done = statuses(work, seconds=120) == [0, 0]
            good += done and _whole_or_absent(outside / "again", want, found, start)
    return good, trials
