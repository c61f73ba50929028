"""Joining the processes that torchrun started, and leaving them.

    torchrun --standalone --nproc-per-node 4 train.py          mesh = ranks.join()

Alone, without torchrun, a program is a group of one: the same program, without a collective in its graph.
"""

import atexit
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shaped.arguments import checked
from shaped.errors import RankError, first_line

FAILED = "shaped/failed"  # in the store: which rank went down, and of what
WAITED = "shaped/waited"  # and which of them waited in vain
_GRACE = 3.0  # seconds for the others to say that they wait too
_joined = False
_timeout: timedelta | None = None  # that `join` was given


@checked
def join(*, backend: str | None = None, timeout: float | None = None, **axes: int) -> DeviceMesh:
    """Join what torchrun set, and lay the processes out on named axes.

    Args:
        backend: torch.distributed's, such as "gloo" or "nccl"; the default is gloo for CPUs, with nccl where there is a
            GPU for each process.
        timeout: Seconds that a rank waits for the others; torch's default is 30 minutes (nccl: 10).
        axes: A size for each axis: `join(dp=4)`. Without any, all processes are on one axis, `dp`.

    Returns:
        torch's DeviceMesh. A second call returns one over the same group.

    Raises:
        ValueError: The sizes do not make the number of processes.
        RuntimeError: torch.distributed cannot be used here, or the others do not come.
    """
    global _joined
    if not dist.is_available():
        raise RuntimeError("this torch was built without torch.distributed")
    count = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    axes = axes or {"dp": count}
    if math.prod(axes.values()) != count or min(axes.values()) < 1:
        said = ", ".join(f"{name}={size}" for name, size in axes.items())
        started = f"{count} processes are there" if count > 1 else "one process is there: torchrun starts several"
        raise ValueError(f"join({said}) wants {math.prod(axes.values())} processes, and {started}")
    if not dist.is_initialized():
        _begin(backend, timeout)
        _joined = True
        _tell_of_errors()
        atexit.register(leave)
    return init_device_mesh(_device(), tuple(axes.values()), mesh_dim_names=tuple(axes))


def _begin(backend: str | None, timeout: float | None) -> None:
    """Make the default group."""
    from torch._C._distributed_c10d import HashStore, PrefixStore
    from torch.distributed.rendezvous import rendezvous

    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = backend is None and torch.cuda.is_available() and torch.cuda.device_count() >= here
    if gpus or (backend or "").endswith("nccl"):
        torch.cuda.set_device(local)
    global _timeout
    _timeout = None if timeout is None else timedelta(seconds=timeout)
    given: dict[str, Any] = {} if timeout is None else {"timeout": _timeout}
    backend = backend or ("cpu:gloo,cuda:nccl" if gpus else "gloo")
    if "WORLD_SIZE" not in os.environ:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, **given)
        return
    store, rank, size = next(iter(rendezvous("env://")))
    # A restart by torchrun meets at the same store, where gloo would find the addresses of the processes before it.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(backend, store=PrefixStore(f"shaped/{attempt}", store), rank=rank, world_size=size, **given)


def _device() -> str:
    """What the mesh's collectives run on."""
    return "cuda" if "nccl" in dist.get_backend_config() else "cpu"


def leave() -> None:
    """Leave the group that `join` made; a second time, nothing. It runs by itself where a program ends well.

    A program that ends in an error does not: the others may be within a collective, which only its end interrupts.
    """
    global _joined
    if _joined and dist.is_initialized():
        dist.destroy_process_group()
    _joined = False


def patience() -> timedelta | None:
    """How long a rank waits for the others: as `join` was told, or whoever made the default group.

    A group does not take it over from the default one by itself. None is torch's default.
    """
    if _timeout is not None:
        return _timeout
    made: Any = dist.group.WORLD
    options = getattr(made._get_backend(torch.device(_device())), "options", None)
    return getattr(options, "_timeout", None)


def abandon(error: BaseException) -> None:
    """End in an error: tell the others of it, and leave the group to them."""
    global _joined
    _joined = False
    post(error)


def _tell_of_errors() -> None:
    """Tell the others of an error that ends this process, and leave the group to them."""
    before: Callable[..., Any] = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        abandon(error)
        before(kind, error, trace)

    sys.excepthook = told


def post(error: BaseException) -> None:
    """Leave word in the store of what took this rank down, for those that wait for it; the first one stays.

    A RankError is what another rank did to this one, and no cause.
    """
    if isinstance(error, RankError):
        return
    try:
        store = dist.distributed_c10d._get_default_store()
        text = f"rank {dist.get_rank()}: {type(error).__name__}: {error}".splitlines()[0]
        store.compare_set(FAILED, "", text)
    except Exception:  # the store's host is gone: nobody is left to be told
        return


def cause() -> str | None:
    """What took some rank down: `rank 1: ValueError: ...`; None where nobody left word."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.get(FAILED).decode() if store.check([FAILED]) else None
    except Exception:  # as above
        return None


def whereabouts(error: BaseException, ranks: Sequence[int]) -> str:
    """What is known of the others where a collective with them failed.

    Args:
        error: What it failed with.
        ranks: That take part in it.

    Returns:
        The word that one left before it ended, or which of them did not come.
    """
    if (said := cause()) is not None:
        return said
    late = _silent(ranks)
    if not late:
        return first_line(error)
    who = f"rank{'s' if len(late) > 1 else ''} {' and '.join(map(str, late))}"
    if "timed out" in str(error).lower():
        return f"{who} did not come within the group's time-out"
    return f"{who} ended before this, or lost the connection"


def _silent(ranks: Sequence[int]) -> list[int]:
    """The ranks that do not say within a moment that they wait in vain, as this one does."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{WAITED}/{dist.get_rank()}", "1")
        late, end = [rank for rank in ranks if rank != dist.get_rank()], time.monotonic() + _GRACE
        while len(late) > 1 and time.monotonic() < end:
            time.sleep(0.05)
            late = [rank for rank in late if not store.check([f"{WAITED}/{rank}"])]
        return late
    except Exception:  # the store's host is gone
        return []


def say(*things: Any) -> None:
    """Print on rank 0 only; alone, print."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0:
        print(*things, flush=True)
