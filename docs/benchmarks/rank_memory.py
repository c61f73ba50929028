"""The peak of memory within one step on several ranks of gloo, beside DistributedDataParallel and fully_shard.

    python docs/benchmarks/rank_memory.py [--ranks 2] [--layers 24] [--dim 768] [--only "compiled zero=3"]

Each case runs in processes of its own, after three steps. The peak is the most resident memory of rank 0 during a
step (VmHWM of Linux, reset before it) beyond what it had, in multiples of the bytes of all parameters; the most of
five steps after those in which the allocator takes what it keeps. The least of them would be too low: one step's peak
differs from the next one's by up to a quarter. Freed memory is given back to the system at once
(MALLOC_MMAP_THRESHOLD_), and so not counted.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

FABRIC = ("Fabric DDP", "Fabric fully_shard")  # where lightning_fabric is installed
CASES = ("DDP", "fully_shard", *FABRIC, "eager zero=0", "eager zero=3", "compiled zero=0", "compiled zero=3")


def status(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak(step: Callable[[], object]) -> int:
    """Bytes that a step takes beyond what is resident before it."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def one(case: str, layers: int, dim: int) -> None:
    """Run one case on this rank; rank 0 prints its figure."""
    from ranks import Chain, ours, theirs  # the other benchmark's models

    from shaped import ranks

    torch.set_num_threads(1)
    mesh = ranks.join()
    torch.manual_seed(0)
    batch = torch.randn(8, dim), torch.randn(8, dim)

    def make() -> Chain:
        torch.manual_seed(1)
        return Chain(layers, dim)

    backend, _, zero = case.partition(" zero=")
    stepper = ours(make, batch, mesh, backend, int(zero)) if zero else theirs(make, batch, mesh, case)
    for _ in range(3):
        stepper[0]()
    most = max(peak(stepper[0]) for _ in range(5))
    ranks.say(f"{case:<18} {most / (4 * layers * (dim * dim + dim)):>8.2f}")


def main() -> None:
    """Run every case in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--only", choices=CASES)
    args = parser.parse_args()
    if "RANK" in os.environ:
        one(args.only, args.layers, args.dim)
        return
    print(f"torch {torch.__version__}, {platform.machine()}, {args.ranks} ranks, {args.layers} layers of {args.dim}")
    print(f"{'':<18} peak within a step, in multiples of all parameters")
    alone = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    cases = [case for case in CASES if case not in FABRIC or find_spec("lightning_fabric") is not None]
    for case in (args.only,) if args.only else cases:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.ranks}"]
        sizes = [f"--layers={args.layers}", f"--dim={args.dim}"]
        subprocess.run([*launch, __file__, *sizes, f"--only={case}"], check=True, env=alone)


if __name__ == "__main__":
    main()
