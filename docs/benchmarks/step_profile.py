"""Where the time of a step goes: `python docs/benchmarks/steps.py --profile MODEL`.

For the compiled step, the eager one and the plain loop: the median microseconds of a step by the clock, how much of it
is spent in kernels and operators (self time in torch's profiler, with Inductor's C++ kernels recorded one by one), and
the rest, which is Python and dispatch; then the longest kernels and the Python functions with the most time of their
own. The profilers slow what they watch: kernels are compared with a step timed under the same profiler. These are
means, so on a busy machine one wait for another process shows up in whatever was interrupted.
"""

import cProfile
import io
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import table
from step_models import MODELS, ON_GPU
from step_torch import CONTENDERS, prepare
from step_worker import Step
from torch.profiler import ProfilerActivity

WATCHED = ("shaped compiled", "shaped eager", "torch.compile loss, fused AdamW", "torch loop, fused AdamW")
STEPS, TOP = 50, 8


def profile(name: str, device: str) -> str:
    """A page for one model."""
    from torch._inductor import config

    config.cpp.enable_kernel_profile = True  # before anything is compiled
    model = {**MODELS, **ON_GPU}[name]
    parts = [f"# Where a step of {name} goes\n"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = str(Path(folder) / "start.pt")
        torch.save({"params": [p.detach() for p in model.params()], "batch": model.batch()}, start)
        for contender in WATCHED:
            step = CONTENDERS[contender](prepare(name, contender, start, device))
            plain = clock(step, device)
            watched, kernels = by_kernel(step, device)
            inside = sum(us for kernel, us in kernels if device == "cuda" or _is_kernel(kernel))
            rows.append([contender, f"{plain:.0f}", f"{watched:.0f}", f"{inside:.0f}", f"{watched - inside:.0f}"])
            longest = [[kernel, f"{us:.1f}"] for kernel, us in kernels[:TOP]]
            parts += [f"## {contender}\n", table(["kernel or operator", "us a step"], longest), ""]
            parts += ["```text", by_function(step), "```\n"]
    head = ["contender", "us a step", "us under the profiler", "in kernels", "outside"]
    return "\n".join([parts[0], table(head, rows), "", *parts[1:]])


def clock(step: Step, device: str) -> float:
    """Median microseconds of a step."""
    found = []
    for i in range(2 * STEPS):
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= STEPS:
            found.append(1e6 * (time.perf_counter() - began))
    return statistics.median(found)


def by_kernel(step: Step, device: str) -> tuple[float, list[tuple[str, float]]]:
    """Microseconds of a step under the profiler, and of each kernel and operator, the longest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as watch:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        watched = 1e6 * (time.perf_counter() - began) / STEPS
    of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = [event for event in watch.key_averages() if not event.key.startswith(("ProfilerStep", "cudaDevice"))]
    found = [(event.key[:90], getattr(event, of) / STEPS) for event in events]
    return watched, sorted((pair for pair in found if pair[1]), key=lambda pair: -pair[1])


def _is_kernel(name: str) -> bool:
    """Inductor's own kernels and torch's operators; not the Python that calls them, which is recorded too."""
    return name.startswith(("aten::", "mkl::", "mkldnn::")) or "cpp_fused" in name


def by_function(step: Step) -> str:
    """The Python functions with the most time of their own."""
    watch = cProfile.Profile()
    watch.enable()
    for _ in range(STEPS):
        step()
    watch.disable()
    text = io.StringIO()
    pstats.Stats(watch, stream=text).strip_dirs().sort_stats("tottime").print_stats(TOP)
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    return "\n".join(line[:110] for line in lines if "Ordered by" not in line and "List reduced" not in line)
