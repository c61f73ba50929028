"""Measure a step of Muon beside torch.optim.Muon, and what it learns beside AdamW at equal tuning.

    PYTHONPATH=.:kernels python docs/benchmarks/muon.py step
    PYTHONPATH=.:kernels python docs/benchmarks/muon.py learning

`step`: 126 matrices of 8 shapes, gradients given, one thread, whose own time is counted. All take turns in one run,
and a figure is the median of the rounds' ratios, so that a load of the machine meets all. torch multiplies in
bfloat16; ours does so with `ns_dtype="bfloat16"`, and otherwise in float32.

`learning`: the recipe `charlm`, its data and schedule and a model of half its width, for 400 steps; each rule with each
of six learning rates, nothing else tuned. Loss is on held-out text. Seconds are those of the processor in one thread,
of training alone. A run that is there already is not run again, so that the command may be broken off.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from report import RESULTS, machine, save, table, versions
from torch import Tensor, nn

from shaped import ScalarTrainer
from shaped.data import Windows, stdlib_text
from shaped.optim import FusedOptimizer, Muon
from shaped.recipes import charlm
from shaped_kernels.muon import MuonRule

SHAPES = {
    "widths of 32 to 128": [(32, 32), (32, 96), (32, 128), (128, 32), (48, 48), (48, 144), (64, 64), (64, 128)],
    "widths of 64 to 256": [(64, 64), (64, 192), (64, 256), (256, 64), (96, 96), (96, 288), (128, 128), (128, 256)],
    "widths of 128 to 1024": [(128, 128), (128, 384), (128, 512), (512, 128), (192, 192), (192, 576), (256, 256),
                              (256, 1024)],
}  # fmt: skip
MATRICES, ROUNDS = 126, 9
STEPS, EVERY, WARMUP = 400, 50, 40
DIM, CONTEXT, LAYERS = 64, 64, 2  # a quarter of the recipe's step, so that six runs take minutes
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


class Matrices(torch.nn.Module):
    """Weights `[out, in]`, and gradients for them."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        chosen = [shapes[i % len(shapes)] for i in range(MATRICES)]
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.02) for shape in chosen])
        for w in self.weights:
            w.grad = torch.randn_like(w)


class Lone(FusedOptimizer):
    """Muon's rule over weights `[out, in]` that come without a proof, to time the step alone."""

    rule = MuonRule


def step_times() -> None:
    torch.set_num_threads(1)
    rows: list[tuple[str, ...]] = []
    figures: dict[str, Any] = {**versions("torch"), "machine": machine()}
    for name, shapes in SHAPES.items():
        given = {"axes": "out in", "adjust_lr_fn": "original"}
        steps = [
            Lone(list(Matrices(shapes).parameters()), **given).step,
            Lone(list(Matrices(shapes).parameters()), ns_dtype="bfloat16", **given).step,
            torch.optim.Muon(list(Matrices(shapes).parameters())).step,
        ]
        for step in steps:
            step()
        rounds = [[_seconds(step) for step in steps] for _ in range(ROUNDS)]
        ratios = [statistics.median(times[i] / times[2] for times in rounds) for i in (0, 1)]
        best = [min(column) * 1e3 for column in zip(*rounds, strict=True)]
        rows.append((name, *(f"{ms:.1f}" for ms in best), *(f"{ratio:.2f}" for ratio in ratios)))
        figures[name] = {"float32_ms": best[0], "bfloat16_ms": best[1], "torch_ms": best[2],
                         "float32_ratio": ratios[0], "bfloat16_ratio": ratios[1]}  # fmt: skip
        print(rows[-1], flush=True)
    head = ("126 matrices of 8 shapes", "float32, ms", "bfloat16, ms", "torch.optim.Muon, ms", "float32 / torch",
            "bfloat16 / torch")  # fmt: skip
    page = (
        f"# A step of Muon\n\nOne thread, {ROUNDS} interleaved rounds: the fastest of each, and the median ratios. "
        f"torch multiplies in bfloat16, ours in float32 or as `ns_dtype` says.\n\n{table(head, rows)}\n\n"
        f"torch {figures['torch']}, {figures['machine']}.\n\n    python docs/benchmarks/muon.py step"
    )
    save(RESULTS / "muon-step", page, figures)


def _seconds(step: Callable[[], Any]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def make(rule: str) -> Any:
    """What makes the optimizer from a proof; AdamW's is the recipe's."""
    if rule == "muon":
        return partial(Muon, weight_decay=0.1, others={"betas": (0.9, 0.95)})
    return lambda program: charlm.make_optimizer("adamw", program.params)


def learn(rule: str, rates: Iterable[float]) -> Iterator[tuple[float, list[tuple[int, float, float]]]]:
    """Each rate with (steps, seconds of the processor, loss on held-out text) along its run; one proof for all."""
    torch.set_num_threads(1)
    text, held_out = stdlib_text("train"), stdlib_text("validation")
    params = charlm.GPT.init(vocab=256, dim=DIM, context=CONTEXT, blocks=LAYERS, seed=0)
    trainer = ScalarTrainer(charlm.loss, params, backend="compiled", optimizer=make(rule), max_norm=1.0)
    trainer.precompile(batch=charlm.BATCH, seq=CONTEXT)
    start, optimizer = trainer.state_dict(), trainer.optimizer
    assert isinstance(optimizer, FusedOptimizer)
    data = Windows(text, batch_size=charlm.BATCH, length=CONTEXT, batches=STEPS, seed=0)
    held = list(Windows(held_out, batch_size=charlm.BATCH, length=CONTEXT, batches=6, seed=1).iterate(0))
    share = charlm.warm_up_and_cosine(WARMUP, STEPS)
    trainer.train_step(*held[0])  # the first holds the executor against eager, outside of what is timed
    for rate in rates:
        trainer.load_state_dict(start)
        found, spent = [(0, 0.0, _loss(trainer, held))], 0.0
        for step, batch in enumerate(data.iterate(0)):
            began = time.process_time()
            optimizer.set_lr(rate * share(step))
            trainer.train_step(*batch)
            spent += time.process_time() - began
            if (step + 1) % EVERY == 0:
                found.append((step + 1, spent, _loss(trainer, held)))
                print(rule, rate, *found[-1], flush=True)
        yield rate, found


def _loss(trainer: ScalarTrainer, batches: list[tuple[Tensor, Tensor]]) -> float:
    return statistics.mean(float(trainer.forward(*batch)) for batch in batches)


def learning() -> None:
    place = RESULTS / "muon-learning.json"
    known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    runs: dict[str, Any] = known.get("runs", {})
    for rule in ("adamw", "muon"):
        missing = [rate for rate in RATES if f"{rule} {rate:g}" not in runs]
        if missing:
            for rate, run in learn(rule, missing):
                runs[f"{rule} {rate:g}"] = run
                place.write_text(json.dumps({**versions("torch"), "machine": machine(), "runs": runs}, indent=1) + "\n")
    runs = {f"{rule} {rate:g}": runs[f"{rule} {rate:g}"] for rule in ("adamw", "muon") for rate in RATES}
    rows = [
        (key, *(f"{run[i][2]:.3f}" for i in range(2, len(run), 2)), f"{run[-1][1] / run[-1][0] * 1e3:.0f}")
        for key, run in runs.items()
    ]
    steps = [str(point[0]) for point in next(iter(runs.values()))[2::2]]
    best = {rule: min((run[-1][2], key) for key, run in runs.items() if key.startswith(rule)) for rule in
            ("adamw", "muon")}  # fmt: skip
    page = (
        "# Muon and AdamW on charlm\n\nLoss on held-out text, nats a byte, after so many steps; milliseconds of the "
        f"processor a step, one thread.\n\n{table(('rule, lr', *steps, 'ms a step'), rows)}\n\nBest at the end: AdamW "
        f"{best['adamw'][0]:.3f} ({best['adamw'][1]}), Muon {best['muon'][0]:.3f} ({best['muon'][1]})."
        f"{_edges(key for _, key in best.values())}\n\n"
        "![loss against steps and seconds](muon-learning.png)\n\n"
        f"torch {versions('torch')['torch']}, {machine()}.\n\n    python docs/benchmarks/muon.py learning"
    )
    save(RESULTS / "muon-learning", page)
    picture(runs, {key for _, key in best.values()})
    print(page)


def _edges(best: Iterable[str]) -> str:
    """Says where a best rate is the first or the last that was tried, so that another may be better still."""
    ends = {f"{rate:g}" for rate in (min(RATES), max(RATES))}
    found = [key for key in best if key.split()[1] in ends]
    return f" At the edge of what was tried: {', '.join(found)}." if found else ""


def picture(runs: dict[str, Any], best: set[str]) -> None:
    """Loss against steps and against seconds; the best rate of each rule in full."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for key, run in runs.items():
        color = "tab:orange" if key.startswith("muon") else "tab:blue"
        for axis, column in zip(axes, (0, 1), strict=True):
            axis.plot([point[column] for point in run[1:]], [point[2] for point in run[1:]], color=color,
                      alpha=1.0 if key in best else 0.3, label=key if key in best else None)  # fmt: skip
    axes[0].set(xlabel="steps", ylabel="loss on held-out text, nats a byte")
    axes[1].set(xlabel="seconds of the processor")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "muon-learning.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "learning"))
    {"step": step_times, "learning": learning}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
