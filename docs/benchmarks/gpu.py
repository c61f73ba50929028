"""Run in one command what needs a GPU: the tests marked so, `copy_`, updates, captured steps and eight-bit products.

    PYTHONPATH=.:kernels python docs/benchmarks/gpu.py [--minutes 8] [--out PLACE] [--dry]

Each part is a process with a deadline of its own, so that one that hangs or fails leaves the others their time; what it
said then stands in the page. Ratios are of medians over rounds in which the contenders take turns. `--dry` runs every
part on the CPU at small sizes: it shows that the command runs to its end and measures nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import updates
from report import RESULTS, machine, save, table, versions
from step_models import BETAS, EPS, LR, MODELS, ON_GPU, WEIGHT_DECAY, Model
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from shaped import ScalarTrainer
from shaped.fp8 import to_fp8

ROOT = Path(__file__).resolve().parents[2]
HYPERS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
ROUNDS = 9
BASES = ("torch fused", "plain loop", "bfloat16")  # what ratios are to
FAST = ("torch fused", "torch foreach", "shaped", "shaped, flattened", "shaped, flattened with gradients")
SIZES = {"cuda": ("llama 1 B", "1000 x 1 K", "gpt2"), "cpu": ("mlp",)}


def tests(device: str) -> dict[str, Any]:
    """What the tests marked `gpu` say; on the CPU they are only collected."""
    how = ["--collect-only"] if device == "cpu" else ["-rfE", "--tb=line"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-p", "no:cacheprovider", *how]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in ran.stdout.splitlines() if line.strip()]
    return {"said": lines[-1] if lines else ran.stderr[-300:], "failed": [line for line in lines if "FAILED" in line]}


def bandwidth(device: str) -> dict[str, Any]:
    """Bytes a second of `copy_`, read and written."""
    return {"copy": updates.copy_bandwidth(device)}


def update(device: str) -> dict[str, Any]:
    """AdamW with clipping over many tensors, beside torch's."""
    only = {name: updates.CONTENDERS[name] for name in FAST}
    return {size: updates.measure(size, device, ROUNDS, only) for size in SIZES[device]}


def steps(device: str) -> dict[str, Any]:
    """A whole step: captured, compiled without a capture, eager, and the plain loop with torch's fused AdamW."""
    models = {"mlp": MODELS["mlp"], **(ON_GPU if device == "cuda" else {})}
    return {name: _rounds(_contenders(model, device), device) for name, model in models.items()}


def _contenders(model: Model, device: str) -> dict[str, Callable[[], object]]:
    batch = tuple(t.to(device) for t in model.batch())
    made: dict[str, Callable[[], object]] = {}
    ways: dict[str, dict[str, Any]] = {
        "captured": {"backend": "compiled"},
        "compiled": {"backend": "compiled", "capture": False},
        "eager": {"backend": "eager"},
    }
    for name, given in ways.items():
        trainer: Any = ScalarTrainer(model.loss, _on(model, device), autocast=model.autocast, **given)
        made[name] = lambda trainer=trainer: trainer.adamw_step(*batch, **HYPERS)  # type: ignore[misc]
    params = _on(model, device)
    optimizer = torch.optim.AdamW(list(params), **HYPERS, fused=True)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, model.autocast or torch.bfloat16, enabled=model.autocast is not None):
            loss = model.loss(params, *batch)
        loss.backward()
        optimizer.step()

    return {**made, "plain loop": plain}


def _on(model: Model, device: str) -> Any:
    return model.kind.init(**model.sizes, seed=0, device=device)


def products(device: str) -> dict[str, Any]:
    """Square matrices in bfloat16, in eight bits, and in eight bits with scaling and rounding counted."""
    return {str(n): _products_of(n, device) for n in ((4096, 8192) if device == "cuda" else (64,))}


def _products_of(n: int, device: str) -> dict[str, Any]:
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    columns = b.t().contiguous()  # the instruction reads the second operand by columns

    def rounded() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (qa, sa), (qb, sb) = to_fp8(a), to_fp8(columns)
        return qa, qb.t(), sa.reciprocal(), sb.reciprocal()

    whole = ScalingType.TensorWise

    def product(qa: Tensor, qb: Tensor, ia: Tensor, ib: Tensor) -> Tensor:
        return scaled_mm(qa, qb, ia, whole, ib, whole, output_dtype=torch.bfloat16)

    given = rounded()
    contenders = {
        "bfloat16": lambda: a @ b,
        "fp8": lambda: product(*given),
        "fp8 with casts": lambda: product(*rounded()),
    }
    rows = _rounds(contenders, device)
    exact = a.float() @ b.float()
    off = float((product(*given).float() - exact).norm() / exact.norm())
    speed = {name: 2e-6 * n**3 / us for name, us in rows["microseconds"].items()}
    return {**rows, "tflops": speed, "relative error": off}


def _rounds(contenders: Mapping[str, Callable[[], object]], device: str) -> dict[str, Any]:
    """Medians of microseconds over rounds in which the contenders take turns; one that fails says why."""
    ready: dict[str, Callable[[], object]] = {}
    absent: dict[str, str] = {}
    for name, step in contenders.items():
        try:
            for _ in range(6):  # compiles, tunes, warms up and captures
                step()
            ready[name] = step
        except Exception as error:  # the page says what a contender said, and the others go on
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, step in ready.items():
            times[name].append(updates.timed(step, 20, device))
    return {
        "microseconds": {name: statistics.median(t) for name, t in times.items()},
        "worst": {name: max(t) for name, t in times.items()},
        "absent": absent,
    }


PARTS: dict[str, tuple[Callable[[str], dict[str, Any]], float]] = {  # with the share of the time that each may take
    "bandwidth": (bandwidth, 0.1),
    "tests": (tests, 0.35),
    "updates": (update, 0.35),
    "products": (products, 0.15),
    "steps": (steps, 0.6),
}


def run(part: str, device: str, seconds: float) -> dict[str, Any]:
    """One part in a process of its own; what went wrong is its answer too."""
    command = [sys.executable, __file__, "--part", part, "--device", device]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1), env=os.environ)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    if ran.returncode:
        return {"error": (ran.stderr.strip().splitlines() or ["no word"])[-1]}
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def page(results: Mapping[str, Any], facts: Mapping[str, str], dry: bool) -> str:
    """All parts as tables."""
    lines = ["# On a GPU" + (", dry: on the CPU, no figure of a GPU" if dry else ""), ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for part, answer in results.items():
        lines += ["", f"## {part}", "", f"{answer['seconds']:.0f} s."]
        if "error" in answer:
            lines += ["", f"Failed: {answer['error']}"]
        elif part == "tests":
            lines += ["", answer["said"], *answer["failed"]]
        elif part == "bandwidth":
            lines += ["", f"{answer['copy'] / 1e9:.0f} GB/s, read and written."]
        else:
            lines += ["", _timings({k: v for k, v in answer.items() if k != "seconds"}, results)]
    return "\n".join(lines)


def _timings(answer: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    rows, missing = [], []
    copy = results.get("bandwidth", {}).get("copy")
    for size, row in answer.items():
        for name, us in sorted(row["microseconds"].items(), key=lambda pair: pair[1]):
            base = next((row["microseconds"][b] for b in BASES if b in row["microseconds"]), us)
            more = f"{row['tflops'][name]:.0f} TFLOPS" if "tflops" in row else ""
            if "parameters" in row and copy:
                more = f"{28 * row['parameters'] / (us * 1e-6) / copy:.0%} of copy"
            rows.append((size, name, f"{us:.1f}", f"{row['worst'][name]:.1f}", f"{us / base:.3f}", more))
        missing += [f"- {size}: {name} not run: {why}" for name, why in row["absent"].items()]
    return "\n".join([table(("size", "contender", "median us", "worst us", "ratio", ""), rows), "", *missing])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part][0](given.device)))
        return
    if not given.dry and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry runs every part on the CPU")
    device = "cpu" if given.dry else "cuda"
    end, results = time.monotonic() + 60 * given.minutes, {}
    for part, (_, share) in PARTS.items():
        start = time.monotonic()
        results[part] = run(part, device, min(60 * given.minutes * share, end - start))
        results[part]["seconds"] = time.monotonic() - start
        print(f"{part}: {results[part]['seconds']:.0f} s {results[part].get('error', '')}", flush=True)
    facts = {**versions("torch", "triton"), "machine": machine()}
    if not given.dry:
        facts["gpu"] = torch.cuda.get_device_name()
    text = page(results, facts, given.dry)
    if given.out or not given.dry:
        save(given.out or RESULTS / "gpu", text, {"facts": facts, **results})
    print(text)


if __name__ == "__main__":
    main()
