"""From the start of a process to its first training step, beside another build of the library, in interleaved rounds.

    python docs/benchmarks/starts.py --beside FOLDER [--layers 12] [--backend compiled] [--rounds 5] [--cold]

FOLDER is a checkout of the other build (`git worktree add FOLDER COMMIT`). The model is an MLP of 64-128-10 with AdamW,
or with `--layers N` a stack of N pre-norm attention blocks of width 64. Each build has a cache of its own for what
torch compiles; a first process fills it, and is not counted, or with `--cold` is what is counted, with an empty cache
in each round. "kept" is this build with a program that its first process kept (`ScalarTrainer.load_program`), on the
compiled backend. Figures are medians; the ratio is the median of the ratios of one round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import machine, table, versions

HERE = Path(__file__).resolve().parents[2]
PHASES = ("import torch", "import shaped", "proof", "first step", "all")
PROGRAM = """
import json, os, sys, time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
import shaped
from shaped import ParamList, ScalarTrainer, init
times.append(time.perf_counter())
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()

def mlp(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)

class Block(ParamList):
    qkv: Float[Tensor, "dim 3*dim"]
    out: Float[Tensor, "dim dim"]
    up: Float[Tensor, "dim 4*dim"]
    down: Float[Tensor, "4*dim dim"]

class GPT(ParamList):
    wte: Float[Tensor, "vocab dim"]
    blocks: list[Block]

def gpt(p: GPT, ids: Int[Tensor, "batch seq"], next: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    x = p.wte[ids]
    for b in p.blocks:
        q, k, v = (F.layer_norm(x, x.shape[-1:]) @ b.qkv).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ b.out
        x = x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ b.up) @ b.down
    return F.cross_entropy((x @ p.wte.T).flatten(0, 1), next.flatten())

layers, backend = int(sys.argv[1]), sys.argv[2]
if layers:
    loss, params = gpt, GPT.init(vocab=65, dim=64, blocks=layers, seed=0)
    batch = torch.randint(65, (8, 32)), torch.randint(65, (8, 32))
else:
    loss, params = mlp, MLP.init(pixels=64, hidden=128, classes=10, seed=0)
    batch = torch.rand(64, 64), torch.randint(10, (64,))
kept = os.path.join(os.getcwd(), "program") if sys.argv[3] == "kept" else ""
if kept and os.path.exists(kept):
    trainer = ScalarTrainer.load_program(kept, loss, params, backend=backend)
else:
    trainer = ScalarTrainer(loss, params, backend=backend)
times.append(time.perf_counter())
trainer.adamw_step(*batch, lr=1e-3).item()
times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
if kept and not os.path.exists(kept):
    trainer.save_program(kept)
"""


def start(build: Path, cache: str, layers: int, backend: str, name: str) -> list[float]:
    """Seconds of each phase of a process, and of all of it."""
    paths = os.pathsep.join(map(str, (build, build / "kernels")))
    environment = {**os.environ, "PYTHONPATH": paths, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as for a library that is installed
    command = [sys.executable, "-c", PROGRAM, str(layers), backend, name]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [*json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - began]


def main() -> None:
    """Print a table of both builds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--beside", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--backend", default="compiled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    builds = {"this": HERE, "other": options.beside.resolve()}
    if options.backend == "compiled" and not options.cold:
        builds["kept"] = HERE
    runs: dict[str, list[list[float]]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + (not options.cold)):
            for name, build in builds.items():
                cache = Path(folder) / (f"{name}-{number}" if options.cold else name)
                cache.mkdir(exist_ok=True)
                took = start(build, str(cache), options.layers, options.backend, name)
                print(name, *(f"{phase:.2f}" for phase in took), file=sys.stderr, flush=True)
                if options.cold or number:
                    runs[name].append(took)
    rows: list[list[object]] = [
        [name, *(f"{statistics.median(phase):.2f}" for phase in zip(*taken, strict=True))]
        for name, taken in runs.items()
    ]
    for name in (name for name in builds if name != "other"):
        pairs = list(zip(runs[name], runs["other"], strict=True))
        ratios = [statistics.median(a[i] / b[i] for a, b in pairs) for i in range(len(PHASES))]
        rows.append([f"{name} / other", *(f"{ratio:.2f}" for ratio in ratios)])
    print(table(["build, seconds", *PHASES], rows))
    print(f"\n{versions('torch')}, {machine()}, {options.rounds} rounds")


if __name__ == "__main__":
    main()
