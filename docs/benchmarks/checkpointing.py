"""What activation checkpointing saves within one step, and its cost: in plain torch, torch.compile and both backends.

    PYTHONPATH=.:kernels python docs/benchmarks/checkpointing.py [--layers 8] [--dim 128] [--rows 1024]

A chain of residual blocks (two products with a GELU between them, four times as wide inside) with each block under
`torch.utils.checkpoint` and without. Each case runs in a process of its own, after three steps. The peak is the most
resident memory during a step (VmHWM of Linux, reset before it) beyond what there was, in multiples of the activations
of one block's width, `rows * dim` floats; the least of five steps. Freed memory is given back to the system at once
(MALLOC_MMAP_THRESHOLD_), and so not counted. Times are medians of five steps in the same process, in parts of the
step without checkpoints of the same contender; they are taken with that setting of the allocator, and so are a rough
guide. The loss after the last step is the same in all.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rank_memory import peak
from report import machine, table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PLAIN = ("plain torch", "torch.compile")  # a loop of torch alone; in the second the network is compiled
CONTENDERS = (*PLAIN, "eager", "compiled")


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = x + self.down(F.gelu(self.up(x)))
        return h


class Chain(nn.Module):
    def __init__(self, layers: int, dim: int, keeps: bool) -> None:
        super().__init__()
        self.blocks, self.keeps = nn.ModuleList(Block(dim) for _ in range(layers)), keeps

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.keeps else checkpoint(block, x, use_reentrant=False)
        return x


def stepper(contender: str, net: Chain, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """One step of SGD, which has no state of its own."""
    if contender not in PLAIN:
        from shaped import ScalarTrainer

        shape = f"rows {x.shape[1]}"  # a module's sizes are numbers

        def loss(net: Chain, x: Float[Tensor, shape], y: Float[Tensor, shape]) -> Float[Tensor, ""]:  # type: ignore[valid-type]
            return F.mse_loss(net(x), y)

        trainer = ScalarTrainer(loss, net, backend="eager" if contender == "eager" else "compiled")
        return lambda: trainer.step(x, y, lr=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    called = torch.compile(net) if contender == "torch.compile" else net

    def step() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = F.mse_loss(called(x), y)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def one(contender: str, keeps: bool, layers: int, dim: int, rows: int) -> None:
    """Print the peak in floats, the median time and the last loss."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = Chain(layers, dim, keeps), torch.randn(rows, dim)
    step = stepper(contender, net, x, x.sin())
    for _ in range(3):
        step()
    least = min(peak(step) for _ in range(5))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        value = step()
        times.append(time.perf_counter() - began)
    print(least / (4 * rows * dim), statistics.median(times), float(value))


def main() -> None:
    """Run every case in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 8), ("dim", 128), ("rows", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], args.one[1] == "keeps", args.layers, args.dim, args.rows)
        return
    alone = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    sizes = [f"--layers={args.layers}", f"--dim={args.dim}", f"--rows={args.rows}"]
    rows = []
    for contender in CONTENDERS:
        found = []
        for kind in ("keeps", "checkpoints"):
            command = [sys.executable, __file__, *sizes, "--one", contender, kind]
            said = subprocess.run(command, check=True, env=alone, capture_output=True, text=True).stdout
            found.append([float(part) for part in said.split()])
        (most, base, first), (least, took, last) = found
        rows.append([contender, f"{most:.1f}", f"{least:.1f}", f"{least / most:.2f}", f"{took / base:.2f}",
                     f"{abs(first - last) / abs(first):.1e}"])  # fmt: skip
    print(f"torch {torch.__version__}, {platform.python_version()}, {machine()}; {args.layers} blocks of {args.dim}, "
          f"{args.rows} rows\n")  # fmt: skip
    print(
        table(
            ["", "peak without", "with checkpoints", "with / without", "time, with / without", "losses differ by"], rows
        )
    )


if __name__ == "__main__":
    main()
