"""A run over two ranks: AdamW with clipping on DTensor shards, against torch's AdamW on whole tensors.

Run by test_optim_sharded.py: python sharded_run.py RANK FILE
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from shaped.optim import AdamW

SHAPES = [(1, 4), (5, 3), (6,)]  # of the first, rank 1 has an empty shard


def main(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = [torch.randn(s) for s in SHAPES]
    exact = [w.clone().requires_grad_() for w in whole]
    places: list[list[Any]] = [[Shard(0)], [Shard(0)], [Replicate()]]
    params = [torch.nn.Parameter(distribute_tensor(w, mesh, at)) for w, at in zip(whole, places, strict=True)]
    optimizer = AdamW(params, lr=0.1, max_norm=1.0, ema_decay=0.5)
    other = torch.optim.AdamW(exact, lr=0.1)
    norm: Tensor | None = None
    for step in range(3):
        if step == 2:  # through a state dict
            resumed = AdamW(params, lr=0.5, max_norm=1.0, ema_decay=0.5)
            resumed.load_state_dict(optimizer.state_dict())
            optimizer = resumed
        for p, e, at in zip(params, exact, places, strict=True):
            e.grad = torch.randn_like(e)
            p.grad = distribute_tensor(e.grad.clone(), mesh, at)
        norm = torch.nn.utils.clip_grad_norm_(exact, 1.0)
        other.step()
        optimizer.step()
    assert norm is not None
    assert optimizer.grad_norm is not None
    torch.testing.assert_close(optimizer.grad_norm.float(), norm)
    for p, e in zip(params, exact, strict=True):
        gathered: Any = p
        torch.testing.assert_close(gathered.full_tensor().detach(), e.detach(), rtol=3e-6, atol=3e-6)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
