"""Programs as users start them: under torchrun with a rank that is killed; and what needs no other process."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed

from shaped import ShapeError
from shaped.loop import read_log
from tests.ranks.conftest import ROOT
from tests.ranks.processes import batch, new

KILLED = """
import os
import signal
import sys
from pathlib import Path
import torch
from shaped import Checkpoints, Loop, ranks
from shaped.data import Batches
from shaped.loop import JsonLines
from tests.ranks.processes import new

place, mesh = Path(sys.argv[1]), ranks.join(timeout=60)
rank, attempt = mesh.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
x, y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(24) % 5
data = Batches(x, y, batch_size=6, seed=0)

def loop_of() -> Loop:
    return Loop(new(mesh=mesh, zero=3))

loop = loop_of()
loop.attach(JsonLines(place / "log.jsonl", every=1))
checkpoints = loop.attach(Checkpoints(place / "run", every=2))
checkpoints.resume(loop)

@loop.every_n_steps(5)
def dies(loop: Loop) -> None:
    if rank == 1 and attempt == 0:
        os.kill(os.getpid(), signal.SIGKILL)

loop.run_epochs(data, 2)
checkpoints.close()
whole = loop_of()
whole.run_epochs(data, 2)
alike = all(torch.equal(a, b) for a, b in zip(loop.trainer.get_params(), whole.trainer.get_params(), strict=True))
ranks.say(f"attempt {attempt}, step {loop.step}, alike: {alike}")
"""


def started(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "SHAPED_KERNELS": "torch"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_killed_rank_costs_one_restart_and_the_run_ends_bit_for_bit_as_without_it(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(KILLED)
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"
    done = started(*torchrun, str(program), str(tmp_path))

    # gloo may abort at the very end of a process that is done, which torchrun takes for a failure: only then another
    assert done.stdout.startswith("attempt 1, step 8, alike: True\n"), done.stdout + done.stderr[-3000:]
    assert done.returncode == 0
    assert [step for step, _ in read_log(tmp_path / "log.jsonl")["loss"]] == list(range(1, 9))


def mesh_of(size: int) -> Any:
    """What is asked of a mesh before its groups are."""
    return SimpleNamespace(
        mesh_dim_names=("tp",), shape=(size,), ndim=1, device_type="cpu", get_group=None, get_coordinate=lambda: [0]
    )


def test_alone_a_step_has_no_collective() -> None:
    trainer = new(mesh=mesh_of(1), backend="compiled", max_norm=0.3)
    graph, _ = trainer._backend.step_graph(list(batch(0)), trainer._shared.own_optimizer())  # type: ignore[attr-defined]

    assert trainer.ranks is None
    assert not [node for node in graph.graph.nodes if "c10d" in str(node.target)]


def test_a_plan_is_refused_before_any_group_of_processes_is_made() -> None:
    with pytest.raises(ShapeError, match="the plan does not fit: hidden % tp == 0, and hidden = 7 with tp = 2"):
        new(mesh=mesh_of(2), shard={"hidden": "tp"})
