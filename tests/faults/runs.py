"""Runs to break: a small loop with dropout and shuffled data, children that run it, and a digest of all that it is."""

import hashlib
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ScalarTrainer
from shaped.checkpoint import Checkpoints, read_checkpoint
from shaped.data import Batches
from shaped.errors import CheckpointCorrupt, CheckpointError
from shaped.loop import Loop
from shaped.optim import SGD, Adam, AdamW
from tests.models import MLP

Tally = tuple[int, int]  # (good, tried)
FILES = ("tensors.safetensors", "state.json", "manifest.json")
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01),
}
EXAMPLES, BATCH = 44, 8  # 5 whole batches and a smaller one
PER_EPOCH = 6


def noisy_loss(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.dropout(F.relu(x @ p.w1 + p.b1), 0.2, training=True)
    return F.cross_entropy(h @ p.w2 + p.b2, y)


def data(seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(EXAMPLES, 6, generator=generator)
    return Batches(x, torch.randint(0, 3, (EXAMPLES,), generator=generator), batch_size=BATCH, seed=seed)


def make(optimizer: str = "adamw", backend: str = "eager", *, hidden: int = 8, **options: Any) -> Loop:
    params = MLP.init(pixels=6, hidden=hidden, classes=3, seed=0)
    made = OPTIMIZERS[optimizer](params)
    trainer = ScalarTrainer(noisy_loss, params, optimizer=made, backend=backend, **options)  # type: ignore[arg-type]
    return Loop(trainer, schedule=torch.optim.lr_scheduler.StepLR(made, step_size=3, gamma=0.9))


def digest(tree: Any) -> str:
    """One string for all the bits of a state."""
    found = hashlib.sha256()

    def add(node: Any) -> None:
        if isinstance(node, Tensor):
            found.update(f"{node.dtype}{tuple(node.shape)}".encode())
            found.update(node.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if node.dim() else
                         repr(node.item()).encode())  # fmt: skip
        elif isinstance(node, dict):
            for key in sorted(node, key=str):
                found.update(str(key).encode())
                add(node[key])
        elif isinstance(node, list | tuple):
            for item in node:
                add(item)
        else:
            found.update(repr(node).encode())

    add(tree)
    return found.hexdigest()


def digest_of(loop: Loop) -> str:
    return digest(loop.state_dict())


def child(work: Callable[[], Any]) -> int:
    """Run something in a forked process; returns its pid. Its status is 0, 1 after an exception, or SystemExit's."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int, seconds: float = 60.0) -> int:
    """The exit status of a child as a shell has it: 128 + n after signal n. A child that hangs is killed: 255."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 255


def run(work: Callable[[], Any], seconds: float = 60.0) -> int:
    return wait(child(work), seconds)


def told(work: Callable[[], str]) -> str:
    """What a function returns in a forked process."""
    reader, writer = os.pipe()
    pid = child(lambda: os.write(writer, work().encode()))
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    return text if wait(pid) == 0 else "failed"


def train(
    loop: Loop, folder: Path, epochs: int, *, every: int | None = None, resume: bool = True, **options: Any
) -> Loop:
    """A job: resumes if there is something, trains to the end, saves."""
    checkpoints = Checkpoints(folder, every=every, **options)
    loop.attach(checkpoints)
    if resume:
        checkpoints.resume(loop)
    loop.run_epochs(data(), epochs)
    checkpoints.close()
    return loop


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(place)


def whole(place: Path) -> bool:
    """Whether a run can go on here: after tidying up its newest checkpoint verifies, and nothing is half done."""
    checkpoints = Checkpoints(place)
    try:
        steps = checkpoints.steps()
        if steps:
            checkpoints.read(steps[-1])
        return not list(place.glob(".tmp-*")) and not list(place.glob(".old-*"))
    except CheckpointError:
        return False
    finally:
        checkpoints.close()


def saved(place: Path, steps: int = 3) -> Path:
    """A checkpoint of a small run."""
    loop = make()
    checkpoints = Checkpoints(place)
    loop.run_steps(data(), steps)
    path = checkpoints.save(loop)
    checkpoints.close()
    return path


def refused(path: Path, *, names: str = "") -> bool:
    """Whether reading raises CheckpointCorrupt, nothing else, and names a file."""
    try:
        read_checkpoint(path)
    except CheckpointCorrupt as error:
        return names in str(error)
    except Exception:
        return False
    return False
