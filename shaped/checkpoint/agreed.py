"""`Checkpoints` on several ranks: rank 0 keeps the folder and its books, all write and read, and all know the outcome.

What is saved, put aside or removed is decided by rank 0 and told to the others, which keep the same books, so that each
rank saves and goes on where the others do. A rank that cannot read what another can makes a checkpoint corrupt for all.
"""

from pathlib import Path
from typing import Any

from shaped.checkpoint.files import Checkpoint
from shaped.checkpoint.resumed import Resumed
from shaped.checkpoint.together import write_together
from shaped.errors import CheckpointCorrupt, CheckpointError, StateError
from shaped.ranks import Peers, together

_BOOKS = ("_own", "_best_step", "_best_value", "_saved", "_updates", "_due", "_began", "_better")


def saved_by_all(checkpoints: Any, loop: Any) -> Path:
    """Write a checkpoint of a loop that all ranks are in.

    Raises:
        CheckpointError: On all ranks: it cannot be written.
    """
    peers: Peers = loop.peers
    path: Path = checkpoints.path(loop.step)
    failed = None
    try:
        loop.trainer.settle_rounding()
        if peers.leads:
            checkpoints._write_here(loop)
        else:
            write_together(checkpoints.folder, path.name, loop.state_dict(parts=True), {}, peers)
    except Exception as error:
        if together(error):
            raise
        failed = error
    _tell_books(checkpoints, peers, f"the end of the save of {path}", failed)
    return path


def _tell_books(checkpoints: Any, peers: Peers, place: str, failed: Exception | None = None) -> None:
    """Have all ranks keep rank 0's books."""
    told = peers.tell(
        place, (checkpoints._place.run, {name: getattr(checkpoints, name) for name in _BOOKS}), failed=failed
    )
    if not peers.leads:
        checkpoints._place.run, books = told[0]
        vars(checkpoints).update(books)


def resumed_by_all(checkpoints: Any, loop: Any, step: int | None, strict: bool) -> Resumed:
    """Load the newest checkpoint that is whole for all ranks.

    Raises:
        CheckpointCorrupt, CheckpointError: As `Checkpoints.resume`, on all ranks.
    """
    peers: Peers = loop.peers
    place = f"going on from {checkpoints.folder}"
    steps, failed = None, None
    try:
        steps = checkpoints._found(step) if peers.leads else None
    except Exception as error:
        failed = error
    aside: list[Path] = []
    for at in peers.tell(place, steps, failed=failed)[0]:
        checkpoint, why = _read(checkpoints, peers, at)
        if checkpoint is None:
            if strict or step is not None:
                raise why
            aside.append(_set_aside(checkpoints, peers, at, why))
            continue
        _load(checkpoints, loop, checkpoint)
        try:
            if peers.leads:
                checkpoints._went_on(at, checkpoint, loop)
        except Exception as error:
            failed = error
        _tell_books(checkpoints, peers, f"{place}, the end", failed)
        return Resumed(at, checkpoint.path, tuple(aside))
    if aside:
        names = ", ".join(path.name for path in aside)
        raise CheckpointCorrupt(f"no checkpoint in {checkpoints.folder} is whole: {names}")
    checkpoints._began = True
    _tell_books(checkpoints, peers, f"{place}, the end")
    return Resumed(0, None)


def _read(checkpoints: Any, peers: Peers, at: int) -> tuple[Checkpoint | None, CheckpointCorrupt]:
    """A checkpoint, where all ranks can read it; else what is wrong with it on the first that cannot."""
    checkpoint, wrong, failed = None, None, None
    try:
        checkpoint = checkpoints.read(at)
    except CheckpointCorrupt as error:
        wrong = str(error)
    except Exception as error:
        failed = error
    told = peers.tell(f"the reading of {checkpoints.path(at)}", wrong, failed=failed)
    rank, why = next(((rank, why) for rank, why in enumerate(told) if why is not None), (0, ""))
    if not why:
        return checkpoint, CheckpointCorrupt("")
    return None, CheckpointCorrupt(why if wrong is not None else f"on rank {rank}: {why}")


def _set_aside(checkpoints: Any, peers: Peers, at: int, why: CheckpointCorrupt) -> Path:
    to, failed = None, None
    try:
        to = checkpoints._set_aside(at, why) if peers.leads else None
    except Exception as error:
        failed = error
    found: Path = peers.tell(f"setting aside step {at}", to, failed=failed)[0]
    return found


def _load(checkpoints: Any, loop: Any, checkpoint: Checkpoint) -> None:
    """Have all ranks take over a state, or none."""
    peers: Peers = loop.peers
    state = dict(checkpoint.state)
    failed: Exception | None = None
    generators = state.pop("generators of ranks", None)
    if generators is not None and len(generators) == peers.size:
        state["generators"] = generators[peers.rank]
    before = loop.state_dict(parts=True)
    resumed = loop.resumed
    try:
        loop.load_state_dict(state)
    except StateError as error:
        failed = CheckpointError(f"{checkpoint.path} is of another run: {error}")
    except Exception as error:
        failed = error
    try:
        peers.meet(f"loading {checkpoint.path}", failed=failed)
    except Exception:
        if failed is None:  # another rank could not
            loop.load_state_dict(before)
            loop.resumed = resumed
        raise
