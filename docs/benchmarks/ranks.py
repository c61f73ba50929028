"""Two ranks of one thread over gloo: bytes a rank and time a step, beside DistributedDataParallel and fully_shard.

    torchrun --standalone --nproc-per-node 2 docs/benchmarks/ranks.py [--layers 12] [--dim 256] [--rounds 9]

The model is a chain of linear layers and tanh, trained by AdamW in float32 on a batch of 32 rows a rank. Bytes are of
parameters and moments that a rank holds, in multiples of all parameters. Times are of steps in turn, one of each in
every round; ratios are their medians.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ScalarTrainer, ranks
from shaped.optim import AdamW

Stepper = tuple[Callable[[], None], Callable[[], int], Callable[[], int]]  # a step, and bytes of parameters and moments


class Chain(nn.Module):
    """Linear layers, each a block of its own."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(dim, dim) for _ in range(layers)])

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The chain."""
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def loss(out: Float[Tensor, "batch dim"], y: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """A mean over samples."""
    return (out - y).square().mean()


def ours(make: Callable[[], Chain], batch: tuple[Tensor, Tensor], mesh: Any, backend: Any, zero: Any) -> Stepper:
    """A trainer on the mesh."""
    net = make()
    optimizer = AdamW(net.parameters(), lr=1e-3)
    options: dict[str, Any] = {"mesh": mesh, "zero": zero, "static": {"dim": batch[0].shape[1]}}
    trainer = ScalarTrainer(loss, net, backend=backend, optimizer=optimizer, **options)

    def step() -> None:
        trainer.train_step(*batch)

    return step, lambda: held(net.parameters()), lambda: moments(optimizer)


def theirs(make: Callable[[], Chain], batch: tuple[Tensor, Tensor], mesh: Any, kind: str) -> Stepper:
    """torch's own wrappers with its fused AdamW, alone or as Lightning Fabric sets them up."""
    net: Any = make()

    def shard(net: Any, mesh: Any) -> Any:
        from torch.distributed.fsdp import fully_shard

        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(net, mesh=mesh)

    backward: Callable[[Tensor], object] = Tensor.backward
    if kind.startswith("Fabric"):
        net, optimizer, backward = by_fabric(net, shard, kind)
    else:
        net = nn.parallel.DistributedDataParallel(net) if kind == "DDP" else shard(net, mesh)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        backward(loss(net(batch[0]), batch[1]))
        optimizer.step()
        optimizer.zero_grad()  # here, so that what is held between steps has no gradients

    return step, lambda: held(net.parameters()), lambda: moments(optimizer)


def by_fabric(net: Chain, shard: Callable[[Any, Any], Any], kind: str) -> tuple[Any, Any, Any]:
    """A module, its optimizer and the backward pass, as Lightning Fabric (`pip install lightning-fabric`) has them."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import ModelParallelStrategy

    ranks_here = torch.distributed.get_world_size()
    strategy: Any = "ddp"
    if kind != "Fabric DDP":
        strategy = ModelParallelStrategy(
            lambda net, mesh: shard(net, mesh["data_parallel"]), data_parallel_size=ranks_here, tensor_parallel_size=1
        )
    fabric = Fabric(accelerator="cpu", devices=ranks_here, strategy=strategy)
    fabric.launch()
    made = fabric.setup_module(net)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3, fused=True)
    return made, fabric.setup_optimizers(optimizer), fabric.backward


def local(t: Tensor) -> Tensor:
    """This rank's part of a DTensor, or the tensor."""
    return t.to_local() if hasattr(t, "to_local") else t


def held(tensors: Any) -> int:
    """Bytes on this rank."""
    return sum(local(t).numel() * t.element_size() for t in tensors)


def moments(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state on this rank, without step counts."""
    return held(t for entry in optimizer.state.values() for name, t in entry.items() if name != "step")


def main() -> None:
    """Print the table on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    mesh = ranks.join()
    torch.manual_seed(0)
    batch = torch.randn(32, args.dim), torch.randn(32, args.dim)

    def make() -> Chain:
        torch.manual_seed(1)
        return Chain(args.layers, args.dim)

    cases: dict[str, Stepper] = {
        "DDP": theirs(make, batch, mesh, "DDP"),
        "fully_shard": theirs(make, batch, mesh, "fully_shard"),
        "eager zero=0": ours(make, batch, mesh, "eager", 0),
        "eager zero=3": ours(make, batch, mesh, "eager", 3),
        "compiled zero=0": ours(make, batch, mesh, "compiled", 0),
        "compiled zero=3": ours(make, batch, mesh, "compiled", 3),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for step, _, _ in cases.values():
        for _ in range(3):
            step()
    for _ in range(args.rounds):
        for name, (step, _, _) in cases.items():
            begun = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begun)
    whole = args.layers * (args.dim * args.dim + args.dim) * 4
    ranks.say(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {mesh.size()} ranks of gloo")
    ranks.say(f"{args.layers} layers of {args.dim}x{args.dim}; bytes in multiples of all parameters ({whole} bytes)")
    ranks.say(f"{'':<16} parameters  moments  ms a step  of DDP")
    for name, (_, parameters, state) in cases.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times["DDP"], strict=True))
        figures = f"{parameters() / whole:>10.2f} {state() / whole:>8.2f}"
        ranks.say(f"{name:<16} {figures} {1000 * statistics.median(times[name]):>10.2f} {ratio:>7.2f}")


if __name__ == "__main__":
    main()
