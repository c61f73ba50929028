"""Faults of trainers on several ranks: rows R6 to R10 of the matrix. Each returns (good, tried).

Real trainers with whole parameters, with parts of them (zero=3) and by name, over gloo; `ranks.py` breaks what is
around them. What is not killed shares its processes; what is has new ones.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import NonFiniteError, ParamList, ScalarTrainer, ShapeError
from shaped.checkpoint import Checkpoints
from shaped.data import Batches
from shaped.errors import ExecutorError, RankError
from shaped.loop import Loop
from shaped.optim import AdamW
from shaped.ranks import join
from shaped.ranks.peers import Peers
from tests.faults.ranks import ranks as begin
from tests.faults.ranks import statuses
from tests.faults.runs import Tally, folder, told, wait, whole

WIDE = torch.float64
LAYOUTS: tuple[dict[str, Any], ...] = ({"zero": 0}, {"zero": 3}, {"shard": {"hidden": "tp"}})
PATIENCE = 240.0  # seconds, of which compiling may take most
EXACT = 1e-11  # float64 sums in another order, over tens of updates


class Layers(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    w2: Float[Tensor, "hidden classes"]


def loss(p: Layers, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(torch.tanh(x @ p.w1) @ p.w2, y)


def trainer(layout: dict[str, Any] | None = None, **options: Any) -> ScalarTrainer:
    """On the ranks of a layout; None is one process."""
    params = Layers.init(pixels=6, hidden=8, classes=5, seed=0).to(dtype=WIDE)
    if layout is None:
        placed: dict[str, Any] = {"mesh": "alone"}
    else:
        placed = {"mesh": join(tp=2) if "shard" in layout else join(), **layout}
    return ScalarTrainer(loss, params, optimizer=AdamW(params, lr=0.01), max_norm=0.5, **placed, **options)


def batch(k: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    size = int(torch.randint(2, 9, (), generator=g))
    return torch.randn(size, 6, generator=g, dtype=WIDE), torch.randint(0, 5, (size,), generator=g)


def rows(peers: Peers, layout: dict[str, Any], k: int, one: bool = False) -> tuple[Tensor, ...]:
    """This rank's of a batch: a share of another size than the other's, or by name all of it."""
    whole_batch = batch(k)
    if "shard" in layout:
        return whole_batch
    size = len(whole_batch[0])
    cut = 1 if one else 1 + k % (size - 1)
    return tuple(t[:cut] if peers.rank == 0 else t[cut:] for t in whole_batch)


def equal(a: ScalarTrainer, b: ScalarTrainer) -> bool:
    pairs = zip(a.get_params(), b.get_params(), strict=True)
    return all(torch.allclose(x, y, rtol=EXACT, atol=EXACT) for x, y in pairs)


# -- R6: what one rank is given, or meets ------------------------------------------------------------------------------


def _wrong_shape(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x[:, :5], y


def _wrong_label(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x, y + 5


def _missing(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (x,)


def _nan(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x * float("nan"), y


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, ...]], tuple[type[Exception], ...]]] = {
    "shape": (_wrong_shape, (ShapeError,)),
    "label": (_wrong_label, (IndexError, ExecutorError, RankError)),
    "missing": (_missing, (Exception,)),
    "nan": (_nan, (NonFiniteError, RankError)),
}


def steps_with_faults(layout: dict[str, Any], backend: str, trials: int, seed: int, peers: Peers) -> None:
    """Faulty and right steps by turns: an error on all ranks at once, and at last what one process has."""
    draw = random.Random(seed)
    made, alone = trainer(layout, backend=backend, sizes="dynamic"), trainer()
    for k in range(trials):
        name, victim = draw.choice([*FAULTS, "one row"]), draw.randrange(2)
        given = rows(peers, layout, k, one=name == "one row")
        if name != "one row":
            change, kinds = FAULTS[name]
            try:
                made.train_step(*(change(*given) if peers.rank == victim else given))
                failed: Exception | None = None
            except kinds as error:
                failed = error
            assert getattr(failed, "together", False), f"{name} on rank {victim}: {failed!r} on rank {peers.rank}"
        value, want = made.train_step(*given), alone.train_step(*batch(k))
        assert abs(float(value) - float(want)) < EXACT, (k, name, float(value), float(want))
    assert equal(made, alone)


def wrong_batches(trials: int, backend: str = "eager", seed: int = 0) -> Tally:
    """Wrong shapes, labels and counts of inputs, NaN, and batches of one row, on one rank."""
    good = tried = 0
    for layout in LAYOUTS:
        count = -(-trials // len(LAYOUTS))
        ended = statuses(partial(steps_with_faults, layout, backend, count, seed), seconds=600.0)
        tried += count
        good += count * (ended == [0, 0])
    return good, tried


# -- R7, R8: a rank that is gone ---------------------------------------------------------------------------------------


def killed_in_steps(trials: int, seed: int = 0, by_error: bool = False, backend: str = "eager") -> Tally:
    """A rank is killed at a random moment of its steps, or raises between them: the others end with an error."""
    draw, good = random.Random(seed), 0

    def work(layout: dict[str, Any], victim: int, at: int, met: Path, peers: Peers) -> None:
        made = trainer(layout, backend=backend, sizes="dynamic")
        made.train_step(*rows(peers, layout, 0))
        (met / str(peers.rank)).touch()
        try:
            for k in range(100_000):
                if by_error and peers.rank == victim and k == at:
                    raise SystemExit(7)
                made.train_step(*rows(peers, layout, k % 50))
        except RankError:
            raise SystemExit(9) from None

    for trial in range(trials):
        with folder() as met:
            victim, at = draw.randrange(2), draw.randrange(40)
            pids = begin(partial(work, LAYOUTS[trial % len(LAYOUTS)], victim, at, met))
            if not by_error:
                end = time.monotonic() + PATIENCE
                while len(list(met.iterdir())) < 2 and time.monotonic() < end:
                    time.sleep(0.002)
                time.sleep(draw.uniform(0.0, 0.2))
                os.kill(pids[victim], signal.SIGKILL)
            ended = [wait(pid, PATIENCE) for pid in pids]
            good += ended[victim] == (7 if by_error else 128 + signal.SIGKILL) and ended[1 - victim] == 9
    return good, trials


# -- R9, R10: a loop with checkpoints ----------------------------------------------------------------------------------


def trained(place: Path, layout: dict[str, Any] | None, epochs: int, backend: str = "eager") -> list[float]:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(22, 6, generator=g, dtype=WIDE), torch.randint(0, 5, (22,), generator=g)
    loop = Loop(trainer(layout, backend=backend, sizes="dynamic"))
    checkpoints = loop.attach(Checkpoints(place, every=5))
    checkpoints.resume(loop)
    loop.run_epochs(Batches(x, y, batch_size=4, seed=0), epochs)
    checkpoints.close()
    return [float(t) for p in loop.trainer.get_params() for t in p.flatten()]


def loops_interrupted(trials: int, kill: bool, seed: int = 0, epochs: int = 20, backend: str = "eager") -> Tally:
    """SIGKILL or SIGTERM to one rank of a loop: another layout goes on from a whole checkpoint to the same end."""
    draw, good = random.Random(seed), 0
    with folder() as place:
        expected = eval(told(lambda: repr(trained(place, None, epochs))))

    def go(place: Path, layout: dict[str, Any], peers: Peers) -> None:
        try:
            found = trained(place, layout, epochs, backend)
        except RankError:
            raise SystemExit(9) from None
        right = all(abs(a - b) <= EXACT for a, b in zip(found, expected, strict=True))
        raise SystemExit(0 if right else 4)

    for trial in range(trials):
        with folder() as place:
            pids = begin(partial(go, place, LAYOUTS[trial % 3]))
            end = time.monotonic() + PATIENCE
            while not list(place.glob("step-*")) and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.3))
            victim = draw.randrange(2)
            os.kill(pids[victim], signal.SIGKILL if kill else signal.SIGTERM)
            ended = [wait(pid, PATIENCE) for pid in pids]
            over = ended == [0, 0]
            if kill:
                stopped = ended[victim] == 128 + signal.SIGKILL and ended[1 - victim] in (0, 9)
            else:
                stopped = ended == [128 + signal.SIGTERM] * 2
            later = (
                statuses(partial(go, place, LAYOUTS[(trial // 3) % 3]), seconds=PATIENCE)
                if stopped and whole(place)
                else [1]
            )
            good += over or later == [0, 0]
    return good, trials
