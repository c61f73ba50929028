"""Seconds to prove a GPT, and microseconds to admit a batch.

    PYTHONPATH=.:kernels python docs/benchmarks/proofs.py [--rounds 3] [--layers 2 6 12 24]

Proofs. `ScalarTrainer(loss, params)` proves forward, backward and update, as a user waits for it: wall time and
processor time of the constructor in a fresh process with one thread (OMP_NUM_THREADS=1), imports not counted. The
rounds are interleaved: every depth once, then again. Two GPTs in nanoGPT's form: parameters as a ParamList, where
every size is a name (the proof is for all of them), and as an nn.Module, where only batch and seq are. A straight
line through the medians gives seconds a layer and the fixed part.

Admission. A batch whose shapes were seen before, on a trainer of a small MLP (2 inputs) and of a loss with 10 inputs:
`program.admit` alone, in blocks of 200 calls; and `trainer.forward` with `check=True` less the same with `check=False`,
in blocks of 20 calls that alternate, now one first and now the other. Median and worst over the blocks, by the clock
and of the processor; on a busy machine the worst block by the clock is mostly waiting for others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from report import RESULTS, machine, save, table, versions
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer, init

HEADS = 4
FORMS = {"list": "ParamList, every size a name", "module": "nn.Module, batch and seq free"}
GOAL_SECONDS, GOAL_MICROSECONDS = 5.0, 3.0


class Block(ParamList):
    scale1: Float[Tensor, " dim"] = init.ones()
    shift1: Float[Tensor, " dim"] = init.zeros()
    qkv: Float[Tensor, "dim 3*dim"]
    out: Float[Tensor, "dim dim"]
    scale2: Float[Tensor, " dim"] = init.ones()
    shift2: Float[Tensor, " dim"] = init.zeros()
    up: Float[Tensor, "dim 4*dim"]
    down: Float[Tensor, "4*dim dim"]


class GPT(ParamList):
    wte: Float[Tensor, "vocab dim"] = init.normal()
    wpe: Float[Tensor, "context dim"] = init.normal()
    blocks: list[Block]
    scale: Float[Tensor, " dim"] = init.ones()
    shift: Float[Tensor, " dim"] = init.zeros()


def gpt_loss(p: GPT, idx: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    b, t = idx.size()
    x = F.embedding(idx, p.wte) + p.wpe[:t]
    for block in p.blocks:
        c = x.size(-1)
        q, k, v = (F.layer_norm(x, (c,), block.scale1, block.shift1) @ block.qkv).split(c, dim=2)
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + y.transpose(1, 2).contiguous().view(b, t, c) @ block.out
        x = x + F.gelu(F.layer_norm(x, (c,), block.scale2, block.shift2) @ block.up) @ block.down
    logits = F.layer_norm(x, (x.size(-1),), p.scale, p.shift) @ p.wte.T
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.mlp(self.norm2(x))


class NanoGPT(nn.Module):
    def __init__(self, layers: int, vocab: int = 65, dim: int = 32, context: int = 64) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, idx: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq 65"]:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1)))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def module_loss(net: NanoGPT, idx: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    logits = net(idx)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


def two_inputs(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)


class Weight(ParamList):
    w: Float[Tensor, " features"]


def ten_inputs(
    p: Weight,
    x0: Float[Tensor, "batch features"],
    x1: Float[Tensor, "batch features"],
    x2: Float[Tensor, "batch features"],
    x3: Float[Tensor, "batch features"],
    x4: Float[Tensor, "batch features"],
    x5: Float[Tensor, "batch features"],
    x6: Float[Tensor, "batch features"],
    x7: Float[Tensor, "batch features"],
    x8: Float[Tensor, "batch features"],
    y: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    return ((x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8) @ p.w - y).square().mean()


def prove_once(form: str, layers: int) -> dict[str, Any]:
    """In a fresh process: make the trainer, and say how long it took and what was proved."""
    torch.set_num_threads(1)
    if form == "list":
        params: ParamList | nn.Module = GPT.init(vocab=65, context=64, dim=32, blocks=layers)
    else:
        params = NanoGPT(layers)
    started, used = time.perf_counter(), time.process_time()
    trainer = ScalarTrainer(gpt_loss if form == "list" else module_loss, params)
    proof = trainer.proof
    return {
        "form": form,
        "layers": layers,
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - used,
        "operations": sum(proof.operations.values()),
        "conditions": list(proof.conditions),
    }


def time_proofs(depths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row for each form and depth, from interleaved rounds."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(form, n): [] for form in FORMS for n in depths}
    for _ in range(rounds):
        for form, layers in runs:
            command = [sys.executable, __file__, "--once", form, str(layers)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            runs[form, layers].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{form} {layers}: {runs[form, layers][-1]['wall']:.1f} s", file=sys.stderr)
    rows = []
    for (form, layers), several in runs.items():
        wall, cpu = [run["wall"] for run in several], [run["cpu"] for run in several]
        rows.append({
            "form": form, "layers": layers, "median": statistics.median(wall), "worst": max(wall),
            "cpu_median": statistics.median(cpu), "cpu_worst": max(cpu), "runs": wall,
            "operations": several[0]["operations"], "conditions": several[0]["conditions"],
        })  # fmt: skip
    return rows


def fit(rows: Sequence[dict[str, Any]], figure: str) -> dict[str, float]:
    """A straight line through the medians: seconds a layer, the fixed part, and the largest miss relative to it."""
    layers, seconds = [row["layers"] for row in rows], [row[figure] for row in rows]
    slope, fixed = statistics.linear_regression(layers, seconds)
    miss = max(abs(s - slope * n - fixed) / (slope * n + fixed) for n, s in zip(layers, seconds, strict=True))
    return {"seconds_a_layer": slope, "fixed": fixed, "largest_miss": miss}


def block(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Microseconds a call: by the clock, and of the processor."""
    started, used = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls * 1e6, (time.thread_time() - used) / calls * 1e6


def time_admission(rounds: int) -> list[dict[str, Any]]:
    """A row for each number of inputs and each way of measuring."""
    torch.set_num_threads(1)
    batches: dict[int, tuple[Tensor, ...]] = {
        2: (torch.randn(8, 8), torch.randint(0, 3, (8,))),
        10: (*(torch.randn(8, 8) for _ in range(9)), torch.randn(8)),
    }
    rows = []
    for inputs, batch in batches.items():
        loss = two_inputs if inputs == 2 else ten_inputs
        params = MLP.init(pixels=8, hidden=4, classes=3) if inputs == 2 else Weight.init(features=8)
        trainers = {check: ScalarTrainer(loss, params, check=check) for check in (True, False)}
        program = trainers[True]._program
        direct, paired = [], []
        with torch.no_grad():
            forward = {check: lambda t=t, b=batch: t.forward(*b) for check, t in trainers.items()}
            admit = lambda p=program, b=batch: p.admit(b)  # noqa: E731
            for warm in (*forward.values(), admit):
                block(warm, 200)
            for i in range(rounds):
                direct.append(block(admit, 200))
                order = (True, False) if i % 2 else (False, True)
                times = {check: block(forward[check], 20) for check in order}
                paired.append((times[True][0] - times[False][0], times[True][1] - times[False][1]))
        for way, pairs in (("admit", direct), ("forward, checked less unchecked", paired)):
            wall, cpu = zip(*pairs, strict=True)
            rows.append({"inputs": inputs, "way": way, "median": statistics.median(wall), "worst": max(wall),
                         "cpu_median": statistics.median(cpu), "cpu_worst": max(cpu)})  # fmt: skip
    return rows


def page(proofs: list[dict[str, Any]], admissions: list[dict[str, Any]], here: dict[str, str], rounds: int) -> str:
    """The tables, as Markdown."""
    parts = []
    for form, label in FORMS.items():
        rows = [row for row in proofs if row["form"] == form]
        figures = ("median", "worst", "cpu_median", "cpu_worst")
        body = [[r["layers"], r["operations"], *(f"{r[f]:.2f}" for f in figures)] for r in rows]
        parts.append(f"{label} (conditions: {', '.join(rows[0]['conditions']) or 'none'}):\n")
        parts.append(table(["layers", "operations", "median s", "worst s", "median cpu s", "worst cpu s"], body))
        if len(rows) > 1:
            for figure, name in (("median", "wall"), ("cpu_median", "cpu")):
                f = fit(rows, figure)
                parts.append(f"\n{name}: {f['seconds_a_layer']:.3f} s a layer + {f['fixed']:.2f} s; largest miss of "
                             f"the line {f['largest_miss']:.0%}.")  # fmt: skip
        parts.append("")
    figures = ("median", "worst", "cpu_median", "cpu_worst")
    body = [[f"{r['inputs']} inputs: {r['way']}", *(f"{r[f]:.2f}" for f in figures)] for r in admissions]
    return f"""# Proofs and admission

Written by `docs/benchmarks/proofs.py`, whose head says what is timed. {rounds} interleaved rounds, each in a fresh
process with one thread. {", ".join(f"{k} {v}" for k, v in here.items())}.
Machine: {machine()}; it is shared, so that wall time includes waiting for others: processor time stands beside it.

## Seconds to a proof of forward, backward and update

Goal: at most {GOAL_SECONDS:g} s for 12 layers, linear in depth.

{chr(10).join(parts)}
## Microseconds to admit a batch whose shapes were seen before

Goal: at most {GOAL_MICROSECONDS:g} us a step.

{table(["measured", "median", "worst block", "median cpu", "worst block, cpu"], body)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each proof")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6, 12, 24])
    parser.add_argument("--once", nargs=2, metavar=("FORM", "LAYERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(prove_once(options.once[0], int(options.once[1]))))
        return
    admissions = time_admission(rounds=1000)
    proofs = time_proofs(options.layers, options.rounds)
    here = versions("torch")
    fits = {form: {figure: fit([r for r in proofs if r["form"] == form], figure) for figure in ("median", "cpu_median")}
            for form in FORMS if len(options.layers) > 1}  # fmt: skip
    figures = {"versions": here, "machine": machine(), "proofs": proofs, "fits": fits, "admission": admissions}
    text = page(proofs, admissions, here, options.rounds)
    print(text)
    save(RESULTS / "proofs", text, figures)


if __name__ == "__main__":
    main()
