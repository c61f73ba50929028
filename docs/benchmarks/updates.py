"""Time AdamW updates against other libraries, in rounds that take turns; print a table and write JSON and a plot.

    PYTHONPATH=.:kernels python docs/benchmarks/updates.py [--device cuda] [--sizes NAME ...] [--threads N] [--rounds N]

Every contender updates its own copy of the same parameters from the same gradients, clipped to one norm. Before it is
timed, two steps are compared with torch's AdamW in float64. A figure is the median over rounds of the time of one
update; `worst` is the slowest round. Ratios are of medians within this run, to `clip_grad_norm_` + torch's fused
AdamW; `of copy` is the share of the bandwidth that `copy_` reaches in this run, counting 28 bytes a parameter.
"""

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, machine, save, versions
from torch import Tensor

from shaped.optim import AdamW, flatten_parameters

HYPERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
MAX_NORM = 1.0
Shapes = list[tuple[int, ...]]
Step = Callable[[], object]


class Absent(Exception):
    """Why a contender cannot run here."""


def transformer(layers: int, dim: int, inner: int, kv: int, rows: int, gated: bool) -> Shapes:
    """The shapes of a decoder: GPT-2, or Llama with gated layers."""
    if gated:
        block: Shapes = [
            (dim, dim),
            (kv, dim),
            (kv, dim),
            (dim, dim),
            (inner, dim),
            (inner, dim),
            (dim, inner),
            (dim,),
            (dim,),
        ]
        return [(rows, dim), *block * layers, (dim,)]
    block = [(dim,), (dim,), (dim, 3 * dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,)]
    block += [(dim, inner), (inner,), (inner, dim), (dim,)]
    return [(rows, dim), (1024, dim), *block * layers, (dim,), (dim,)]


def resnet50() -> Shapes:
    """ResNet-50: 161 tensors, 25.6 M parameters."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            for shape in ((width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if i == 0:
                shapes += [(4 * width, before, 1, 1), (4 * width,), (4 * width,)]
            before = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SIZES: dict[str, Shapes] = {
    "mlp": [(64, 32), (64,), (64, 64), (64,), (1, 64), (1,)],
    "1000 x 10": [(10,), (2, 5), (5, 2), (10,), (1, 10)] * 200,
    "1000 x 1 K": [(32, 32), (1024,), (8, 8, 16), (1024,), (16, 64)] * 200,
    "10000 x 256": [(16, 16), (256,)] * 5000,
    "resnet50": resnet50(),
    "gpt2": transformer(12, 768, 3072, 768, 50257, gated=False),
    "llama 1 B": transformer(16, 2048, 8192, 512, 128256, gated=True),
}
ON_CPU = ["mlp", "1000 x 10", "1000 x 1 K", "resnet50"]


def clipped(optimizer: Any, params: list[Tensor]) -> Step:
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return step


def shaped_(params: list[Tensor]) -> Step:
    return AdamW(params, **HYPERS, max_norm=MAX_NORM).step


def shaped_flattened(params: list[Tensor], grads: bool = False) -> Step:
    given = [p.grad for p in params]
    flatten_parameters(params, grads=grads)
    for p, g in zip(params, given, strict=True):
        if grads and p.grad is not None and g is not None:
            p.grad.copy_(g)
    return AdamW(params, **HYPERS, max_norm=MAX_NORM).step


def torchs(params: list[Tensor], **how: Any) -> Step:
    return clipped(torch.optim.AdamW(params, **HYPERS, **how), params)


def torch_compiled(params: list[Tensor]) -> Step:
    if (len(params) > 100 and not params[0].is_cuda) or len(params) > 300:
        raise Absent("compiling takes minutes for this many tensors")
    lr = torch.tensor(HYPERS["lr"], device="cuda") if params[0].is_cuda else HYPERS["lr"]
    optimizer = torch.optim.AdamW(params, **{**HYPERS, "lr": lr}, foreach=True, capturable=params[0].is_cuda)
    compiled = torch.compile(optimizer.step, fullgraph=False)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        compiled()

    return step


def library(module: str, name: str, **given: Any) -> Callable[[list[Tensor]], Step]:
    def make(params: list[Tensor]) -> Step:
        try:
            kind = getattr(import_module(module), name)
        except (ImportError, AttributeError, RuntimeError) as error:
            raise Absent(f"{type(error).__name__}: {error}".splitlines()[0]) from None
        return clipped(kind(params, **{**HYPERS, **given}), params)

    return make


def optax_jit(params: list[Tensor]) -> Step:
    """The same update as one jitted function over donated buffers, on parameters of its own."""
    try:
        import jax
        import optax
    except ImportError as error:
        raise Absent(str(error)) from None
    if len(params) > 300 and not params[0].is_cuda:
        raise Absent("compiling takes half a minute for this many tensors")
    if params[0].is_cuda and jax.default_backend() != "gpu":
        raise Absent("jax sees no GPU")
    lr, (b1, b2) = HYPERS["lr"], HYPERS["betas"]
    rule = optax.chain(
        optax.clip_by_global_norm(MAX_NORM), optax.adamw(lr, b1, b2, HYPERS["eps"], weight_decay=HYPERS["weight_decay"])
    )
    held = [jax.numpy.asarray(p.detach().cpu().numpy()) for p in params]
    grads = [jax.numpy.asarray(p.grad.cpu().numpy()) for p in params if p.grad is not None]

    def update(p: Any, g: Any, s: Any) -> Any:
        change, s = rule.update(g, s, p)
        return optax.apply_updates(p, change), s

    jitted = jax.jit(update, donate_argnums=(0, 2))
    state = {"p": held, "s": rule.init(held)}

    def step() -> None:
        state["p"], state["s"] = jax.block_until_ready(jitted(state["p"], grads, state["s"]))

    return step


BASE = "torch fused"
CONTENDERS: dict[str, Callable[[list[Tensor]], Step]] = {
    BASE: lambda ps: torchs(ps, fused=True),
    "torch foreach": lambda ps: torchs(ps, foreach=True),
    "torch compiled": torch_compiled,
    "shaped": shaped_,
    "shaped, flattened": shaped_flattened,
    "shaped, flattened with gradients": lambda ps: shaped_flattened(ps, grads=True),
    "optax, jit": optax_jit,
    "torch-optimi": library("optimi", "AdamW"),
    "flashoptim": library("flashoptim", "FlashAdamW"),
    "bitsandbytes 8-bit": library("bitsandbytes.optim", "AdamW8bit"),
    "torchao 8-bit": library("torchao.optim", "AdamW8bit"),
    "apex": library("apex.optimizers", "FusedAdam"),
}
INEXACT = ("optax, jit", "flashoptim", "bitsandbytes 8-bit", "torchao 8-bit")


def draw(shapes: Shapes, device: str) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in shapes:
        p = torch.randn(shape, generator=generator, device=device).requires_grad_()
        p.grad = torch.randn(shape, generator=generator, device=device) * 1e-2
        params.append(p)
    return params


def check(make: Callable[[list[Tensor]], Step], device: str) -> None:
    """Two steps on small parameters, against torch in float64: 8 ulp, or 2**-12 of an update."""
    params = draw([(5, 7), (300,), (2, 3, 4), (1000,), (17,)], device)
    exact = [p.detach().double().requires_grad_() for p in params]
    for e, p in zip(exact, params, strict=True):
        e.grad = None if p.grad is None else p.grad.double()
    step, reference = make(params), clipped(torch.optim.AdamW(exact, **HYPERS, foreach=False), exact)
    for _ in range(2):
        step()
        reference()
    for p, e in zip(params, exact, strict=True):
        torch.testing.assert_close(p.detach().double(), e.detach(), rtol=2**-20, atol=HYPERS["lr"] * 2**-12)


def timed(step: Step, repeats: int, device: str) -> float:
    """Microseconds for one step."""
    if device == "cpu":
        start = time.perf_counter_ns()
        for _ in range(repeats):
            step()
        return (time.perf_counter_ns() - start) / 1e3 / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / repeats


def copy_bandwidth(device: str) -> float:
    """Bytes a second of `copy_`, read and written, on a buffer that no cache holds."""
    n = 2**29 if device == "cuda" else 2**25
    one, other = (torch.zeros(n, device=device) for _ in range(2))
    times = [timed(lambda: one.copy_(other), 3, device) for _ in range(7)]
    return 8 * n / (statistics.median(times) * 1e-6)


def measure(
    name: str, device: str, rounds: int, contenders: dict[str, Callable[[list[Tensor]], Step]] = CONTENDERS
) -> dict[str, Any]:
    """One row of contenders at one size; `BASE` is one of them."""
    shapes, ready, absent, first = SIZES[name], {}, {}, {}
    for contender, make in contenders.items():
        try:
            if contender not in INEXACT:
                check(make, device)
            step = make(draw(shapes, device))
            first[contender] = timed(step, 1, device)
            for _ in range(3):
                step()
            ready[contender] = step
        except (Absent, AssertionError, RuntimeError, ValueError, TypeError) as error:
            absent[contender] = f"{error}".splitlines()[0] or type(error).__name__
    gc.collect()
    gc.freeze()  # what the libraries brought along is not walked again in every round
    repeats = max(1, min(50, int(20_000 / max(timed(ready[BASE], 3, device), 1))))
    times: dict[str, list[float]] = {contender: [] for contender in ready}
    for _ in range(rounds):
        for contender, step in ready.items():
            times[contender].append(timed(step, repeats, device))
    median = {contender: statistics.median(t) for contender, t in times.items()}
    return {
        "tensors": len(shapes),
        "parameters": sum(map(math.prod, shapes)),
        "microseconds": median,
        "worst": {contender: max(t) for contender, t in times.items()},
        "ratio": {contender: m / median[BASE] for contender, m in median.items()},
        "first step": first,
        "absent": absent,
    }


def here() -> dict[str, str]:
    names = ("torch", "triton", "jax", "optax", "torch-optimi", "flashoptim", "bitsandbytes", "torchao", "apex")
    found = {**versions(*names), "machine": f"{machine()}, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        "| size | contender | median us | worst us | ratio | of copy | first step ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, row in result["sizes"].items():
        for contender, us in sorted(row["microseconds"].items(), key=lambda pair: pair[1]):
            share = 28 * row["parameters"] / (us * 1e-6) / result["copy bandwidth"]
            cells = (f"{us:.0f}", f"{row['worst'][contender]:.0f}", f"{row['ratio'][contender]:.3f}", f"{share:.0%}")
            lines.append(f"| {size} | {contender} | {' | '.join(cells)} | {row['first step'][contender] / 1e3:.1f} |")
    for contender in ("shaped", "shaped, flattened", "shaped, flattened with gradients"):
        ratios = {size: row["ratio"].get(contender) for size, row in result["sizes"].items()}
        known = {size: ratio for size, ratio in ratios.items() if ratio is not None}
        if known:
            worst = max(known, key=lambda size: known[size])
            lines += ["", f"Worst ratio of `{contender}`: {known[worst]:.3f} ({worst})."]
    absent = {c: why for row in result["sizes"].values() for c, why in row["absent"].items()}
    lines += ["", *(f"- not run: {contender}: {why}" for contender, why in absent.items())]
    return "\n".join(lines)


def plot(result: dict[str, Any], file: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    sizes = result["sizes"]
    figure = Figure(figsize=(8, 1.2 + 1.6 * len(sizes)), layout="constrained")
    for axis, (size, row) in zip(figure.subplots(len(sizes), 1, squeeze=False).flat, sizes.items(), strict=True):
        pairs = sorted(row["ratio"].items(), key=lambda pair: -pair[1])
        colors = ["tab:orange" if c.startswith("shaped") else "tab:gray" for c, _ in pairs]
        axis.barh([c for c, _ in pairs], [r for _, r in pairs], color=colors)
        axis.set(title=f"{size}: time of an update, {BASE} = 1", xscale="log")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    sizes = given.sizes or (ON_CPU if given.device == "cpu" else list(SIZES))
    result: dict[str, Any] = {"versions": here(), "copy bandwidth": copy_bandwidth(given.device)}
    result["sizes"] = {size: measure(size, given.device, given.rounds) for size in sizes}
    head = "\n".join(f"- {name}: {value}" for name, value in result["versions"].items() if value != "missing")
    text = f"# AdamW updates with clipping, on {given.device}\n\n{head}\n\n{table(result)}"
    save(given.out / f"updates-{given.device}", text, result)
    plot(result, given.out / f"updates-{given.device}.png")
    print(text)


if __name__ == "__main__":
    main()
