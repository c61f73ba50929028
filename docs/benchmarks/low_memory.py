"""Measure what low-memory AdamW costs in accuracy: 1,000 steps of each mode against float32, and bytes a parameter.

    PYTHONPATH=.:kernels python docs/benchmarks/low_memory.py

A student network learns a teacher's outputs from the same batches in every mode. `drift` is the distance of the
parameters from those of the float32 run, over the distance that run moved; `loss` is on data that nobody trained on,
the mean of three seeds, with the largest over the smallest. Bytes are those of the tensors that are there.
"""

import statistics
from typing import Any

import torch
from report import RESULTS, machine, save, table, versions
from torch import Tensor

from shaped.optim import AdamW

STEPS, SEEDS, RATE = 1000, 3, 1e-3
MODES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16, split, float32 moments": (torch.bfloat16, {"store": "split", "moments": torch.float32}),
    "bfloat16, stochastic, float32 moments": (torch.bfloat16, {"store": "stochastic", "moments": torch.float32}),
    "bfloat16, stochastic, bfloat16 moments": (torch.bfloat16, {"store": "stochastic"}),
    "bfloat16, split, 8-bit moments": (torch.bfloat16, {"store": "split", "moments": "8bit"}),
    "bfloat16, stochastic, 8-bit moments": (torch.bfloat16, {"store": "stochastic", "moments": "8bit"}),
    "float32, 8-bit moments": (torch.float32, {"moments": "8bit"}),
    "bfloat16, nearest, bfloat16 moments": (torch.bfloat16, {}),
}


def network(dtype: torch.dtype, seed: int, hidden: int = 128) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(32, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, hidden), torch.nn.GELU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden, 8)).to(torch.bfloat16).to(dtype)


def run(dtype: torch.dtype, given: dict[str, Any], seed: int) -> tuple[list[Tensor], float, float]:
    """Parameters at the end, loss on new data, bytes a parameter with gradient and state."""
    student, teacher = network(dtype, seed), network(torch.float32, 1000 + seed)
    params = list(student.parameters())
    optimizer = AdamW(params, lr=RATE, **given)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        x = torch.randn(64, 32, generator=generator)
        optimizer.set_lr(RATE * (1 - step / STEPS))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(student(x.to(dtype)).float(), teacher(x).detach()).backward()
        optimizer.step()
    x = torch.randn(4096, 32, generator=generator)
    with torch.no_grad():
        loss = float(torch.nn.functional.mse_loss(student(x.to(dtype)).float(), teacher(x)))
    held = [*params, *(p.grad for p in params if p.grad is not None)]
    held += [t for entry in optimizer.state.values() for name, t in entry.items() if name != "step"]
    size = sum(t.numel() * t.element_size() for t in held) / sum(p.numel() for p in params)
    return [p.detach().float() for p in params], loss, size


def main() -> None:
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    rows: dict[str, dict[str, float]] = {}
    exact = [run(torch.float32, {}, seed)[0] for seed in range(SEEDS)]
    starts = [[p.detach() for p in network(torch.float32, seed).parameters()] for seed in range(SEEDS)]
    for mode, (dtype, given) in MODES.items():
        ends, losses, sizes = zip(*(run(dtype, given, seed) for seed in range(SEEDS)), strict=True)
        drifts = [
            float(_distance(end, goal) / _distance(start, goal))
            for end, goal, start in zip(ends, exact, starts, strict=True)
        ]
        rows[mode] = {
            "bytes": sizes[0],
            "drift": statistics.mean(drifts),
            "loss": statistics.mean(losses),
            "spread": max(losses) / min(losses),
        }
    cells = [
        (mode, f"{row['bytes']:.2f}", f"{row['drift']:.3f}", f"{row['loss']:.3e}", f"{row['spread']:.2f}")
        for mode, row in rows.items()
    ]
    made = {**versions("torch"), "machine": machine()}
    head = ", ".join(f"{name} {value}" for name, value in made.items())
    figures = table(("mode", "bytes a parameter", "drift", "loss", "largest / smallest"), cells)
    page = f"# {STEPS:,} steps in fewer bytes ({head})\n\n{figures}"
    print(page)
    save(RESULTS / "low_memory", page, {"versions": made, "modes": rows})


def _distance(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a - b).square().sum() for a, b in zip(one, other, strict=True)]).sum().sqrt()


if __name__ == "__main__":
    main()
