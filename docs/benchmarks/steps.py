"""Time whole training steps, ours and others', in rounds that take turns; print tables and write them with the figures.

    PYTHONPATH=.:kernels python docs/benchmarks/steps.py [--jax PYTHON] [--models NAME ...] [--contenders NAME ...]
        [--rounds N] [--device cuda] [--out results/steps] [--profile MODEL] [--list]

Every contender computes the same: one batch, the same initial parameters, AdamW with the same numbers. It runs in a
process of its own. Its first 20 losses are compared with a run in float64, and a contender that is farther from them
than the tolerance in the table is not timed. Then each round times every contender once, in an order that turns; a
round is as many steps as take about `--seconds`, and it ends when the device has computed the last loss.

median, worst: microseconds a step, over the rounds. ratio: the median of `shaped compiled` over this one's, so below 1
means that shaped is faster; worst ratio: the largest within one round. first step: from the loss and its parameters to
the first loss, imports not counted; cold in a process with empty caches, warm in a second process. peak: the most
memory that the process held (on a GPU: on the device), after all rounds. `submit` on a GPU: microseconds of CPU until a
step is queued.

JAX has an environment of its own: `python -m venv jax; jax/bin/pip install "jax[cpu]" optax`, then `--jax
jax/bin/python`. Lightning Fabric is timed where `pip install lightning` was done. `--profile MODEL` says where the time
of a step goes instead; see `step_profile.py`.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import machine, save, table, versions
from step_models import MODELS, ON_GPU, SIZES, Model

HERE = Path(__file__).resolve().parent
OURS, JAX, EXACT = "shaped compiled", "JAX jit, optax", "float64"
COMPILED = (OURS, "torch.compile loss, fused AdamW", "torch.compile whole step", JAX)
ON_CPU = [OURS, "shaped eager", "torch loop, AdamW", "torch loop, fused AdamW", *COMPILED[1:3],
          "Lightning Fabric, fused AdamW", JAX]  # fmt: skip
ON_CUDA = [*ON_CPU[:-1], "torch.compile reduce-overhead, whole step"]
LOSSES = 20

# (model, contender of ours, peer, at most this share of the peer's median)
GOALS = [
    ("mlp", OURS, JAX, 1.0),
    ("mlp", OURS, "torch.compile loss, fused AdamW", 0.45),
    ("mlp", OURS, "torch loop, fused AdamW", 0.2),
    ("mlp", "shaped eager", "torch loop, fused AdamW", 0.75),
    ("char gpt", OURS, "torch.compile loss, fused AdamW", 0.9),
    ("char gpt", OURS, JAX, 0.5),
    ("gpt2 124M, 1 x 64", OURS, "torch loop, fused AdamW", 1 / 3),
    ("gpt2 124M, 8 x 1024", OURS, "torch loop, fused AdamW", 1 / 0.99),
]
SUBMIT = 30.0  # microseconds of CPU a captured step, on a GPU


class Gone(Exception):
    """A contender's process has ended; says why."""


class Worker:
    """A contender's process."""

    def __init__(self, command: Sequence[str], caches: Path, log: Path) -> None:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
                       "TRITON_CACHE_DIR": str(caches / "triton"), "STEPS_CACHE": str(caches / "jax")}  # fmt: skip
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        self._answer()

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # and the answer says so
            print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            told = re.findall(r"(?m)^[\w.]+(?:Error|Exception|Unsupported)\b.*$", self.log.read_text())
            raise Gone(told[-1] if told else f"exit status {self.process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@dataclass
class Entry:
    """What is found of one contender on one model."""

    first: float = 0.0
    cold: float | None = None
    off: float = 0.0
    rounds: list[float] = field(default_factory=list)  # microseconds a step
    submits: list[float] = field(default_factory=list)
    peak: int = 0
    absent: str = ""


class Run:
    """All contenders on one model."""

    def __init__(self, name: str, model: Model, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.model, self.options, self.folder = name, model, options, folder
        params, batch = [p.detach() for p in model.params()], model.batch()
        torch.save({"params": params, "batch": batch}, folder / "start.pt")
        if options.jax and name in MODELS:
            import numpy

            arrays: dict[str, Any] = {f"p{i:04}": p.numpy() for i, p in enumerate(params)}
            arrays |= {f"x{i}": x.numpy() for i, x in enumerate(batch)}
            numpy.savez(folder / "start.npz", **arrays)
        self.entries: dict[str, Entry] = {}
        self.workers: dict[str, Worker] = {}

    def start(self, contender: str) -> Worker:
        slug = "".join(c if c.isalnum() else "-" for c in f"{self.name} {contender}")
        if contender == JAX:
            command = [self.options.jax, str(HERE / "step_jax.py"), self.name, str(self.folder / "start.npz")]
        else:
            command = [sys.executable, str(HERE / "step_torch.py"), self.name, contender,
                       str(self.folder / "start.pt"), self.options.device]  # fmt: skip
        return Worker(command, self.folder / slug, self.folder / f"{slug}.log")

    def exact(self) -> list[float]:
        worker = self.start(EXACT)
        losses = [worker.ask("first")[1], *worker.ask(f"losses {LOSSES - 1}")]
        worker.close()
        return losses

    def admit(self, contender: str, exact: Sequence[float]) -> None:
        """Start a contender: cold, then warm; keep it if it computes the same."""
        entry = self.entries[contender] = Entry()
        if contender == JAX and not (self.options.jax and self.name in MODELS):
            entry.absent = "no --jax PYTHON" if self.name in MODELS else "written in float32 for the CPU models only"
            return
        try:
            if any(contender.startswith(name) for name in (*COMPILED, "torch.compile")):
                worker = self.start(contender)
                entry.cold = worker.ask("first")[0]
                worker.close()
            worker = self.start(contender)
            entry.first, loss = worker.ask("first")
            found = [loss, *worker.ask(f"losses {LOSSES - 1}")]
        except Gone as error:
            entry.absent = str(error)
            return
        entry.off = max(abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True))
        if not entry.off <= self.model.tolerance:
            worker.close()
            entry.absent = f"computes something else: its losses are {entry.off:.1e} off"
            return
        self.workers[contender] = worker

    def time(self) -> None:
        steps: dict[str, int] = {}
        for contender, worker in self.workers.items():
            seconds = min(worker.ask("round 3")[0] / 3, worker.ask("round 3")[0] / 3)
            steps[contender] = max(2, round(self.options.seconds / seconds))
            worker.ask(f"round {steps[contender]}")  # warms up
        names = list(self.workers)
        for turn in range(self.options.rounds):
            for contender in names[turn % len(names) :] + names[: turn % len(names)]:
                count = steps[contender]
                seconds, submitted = self.workers[contender].ask(f"round {count}")
                self.entries[contender].rounds.append(1e6 * seconds / count)
                self.entries[contender].submits.append(1e6 * submitted / count)
        for contender, worker in self.workers.items():
            self.entries[contender].peak = worker.ask("memory")

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def measure(name: str, model: Model, contenders: Sequence[str], options: argparse.Namespace) -> dict[str, Entry]:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(name, model, options, Path(folder))
        try:
            exact = run.exact()
            for contender in contenders:
                run.admit(contender, exact)
                entry = run.entries[contender]
                print(f"{name}: {contender}: {entry.absent or f'{entry.first:.1f} s'}", file=sys.stderr)
            run.time()
        finally:
            run.close()
    return run.entries


def ratio(found: Mapping[str, Entry], ours: str, peer: str) -> tuple[float, float]:
    """Of the medians, and the largest within one round."""
    a, b = found[ours].rounds, found[peer].rounds
    return statistics.median(a) / statistics.median(b), max(x / y for x, y in zip(a, b, strict=True))


def rows(found: Mapping[str, Entry], device: str) -> list[list[str]]:
    result = []
    timed = {name: entry for name, entry in found.items() if entry.rounds}
    for name, entry in sorted(timed.items(), key=lambda pair: statistics.median(pair[1].rounds)):
        compared = [f"{r:.2f}" for r in ratio(found, OURS, name)] if OURS in timed else ["-", "-"]
        row = [name, f"{statistics.median(entry.rounds):.0f}", f"{max(entry.rounds):.0f}", *compared,
               "" if entry.cold is None else f"{entry.cold:.1f}", f"{entry.first:.2f}", f"{entry.peak / 2**20:.0f}",
               f"{entry.off:.0e}"]  # fmt: skip
        result.append([*row, f"{statistics.median(entry.submits):.0f}"] if device == "cuda" else row)
    return result


def goals(found: Mapping[str, Mapping[str, Entry]]) -> list[dict[str, Any]]:
    """Each goal whose two contenders were timed."""
    result = []
    for model, ours, peer, most in GOALS:
        pair = [found.get(model, {}).get(name, Entry()) for name in (ours, peer)]
        if all(entry.rounds for entry in pair):
            of, worst = ratio(found[model], ours, peer)
            result.append({"model": model, "what": f"{ours} / {peer}", "goal": most, "found": of, "worst": worst})
    for model in ON_GPU:
        if model in found and found[model].get(OURS, Entry()).rounds:
            submits = found[model][OURS].submits
            result.append({"model": model, "what": f"{OURS}: us of CPU a step", "goal": SUBMIT,
                           "found": statistics.median(submits), "worst": max(submits)})  # fmt: skip
    return result


def page(found: Mapping[str, Mapping[str, Entry]], here: Mapping[str, str], options: argparse.Namespace) -> str:
    head = ["contender", "median us", "worst us", "ratio", "worst ratio", "cold s", "warm s", "peak MiB", "losses off"]
    head += ["submit us"] if options.device == "cuda" else []
    parts = [
        f"# Training steps on {options.device}\n",
        f"Written by `docs/benchmarks/steps.py`, whose head says what is timed. {options.rounds} rounds of "
        f"{options.seconds:g} s. {', '.join(f'{k} {v}' for k, v in here.items())}.\nMachine: {machine()}; "
        f"{torch.get_num_threads()} threads.\n",
    ]
    reached = goals(found)
    if reached:
        parts += ["## Goals\n", table(["model", "what", "at most", "found", "worst round", "met"], [
            [g["model"], g["what"], f"{g['goal']:.2f}", f"{g['found']:.2f}", f"{g['worst']:.2f}",
             "yes" if g["found"] <= g["goal"] else "no"] for g in reached]), ""]  # fmt: skip
    for name, entries in found.items():
        tolerance = {**MODELS, **ON_GPU}[name].tolerance
        parts += [f"## {name}: {SIZES[name]}\n", table(head, rows(entries, options.device)), ""]
        parts += [f"The first {LOSSES} losses are within {tolerance:.0e} of float64's.\n"]
        parts += [f"- not timed: {contender}: {e.absent}" for contender, e in entries.items() if e.absent] + [""]
    return "\n".join(parts)


def jax_versions(python: str) -> dict[str, str]:
    program = "from importlib.metadata import version as v; print(v('jax'), v('optax'))"
    jax, optax = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    return {"jax": jax, "optax": optax}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jax", metavar="PYTHON", help="an interpreter with jax and optax")
    parser.add_argument("--models", nargs="*", choices=[*MODELS, *ON_GPU], metavar="NAME")
    parser.add_argument("--contenders", nargs="*", metavar="NAME", help="default: all; --list shows them")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.15, help="of a round of one contender")
    parser.add_argument("--threads", type=int, help="of each contender; default: what each library takes")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md, as in docs/benchmarks/results/steps")
    parser.add_argument("--profile", choices=[*MODELS, *ON_GPU], metavar="MODEL", help="where a step's time goes")
    parser.add_argument("--list", action="store_true", help="show models, contenders and goals, and time nothing")
    return parser.parse_args()


def show() -> None:
    for title, names in (("models", [*MODELS, *ON_GPU]), ("contenders", [*ON_CPU, ON_CUDA[-1]])):
        print(title, *(f"  {name}" for name in names), sep="\n")
    print("goals", *(f"  {model}: {ours} at most {most:.2f} of {peer}" for model, ours, peer, most in GOALS), sep="\n")


def main() -> None:
    options = arguments()
    if options.list:
        show()
        return
    if options.threads:  # read by every contender's process when it starts
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(options.threads > 1).lower()}"
        torch.set_num_threads(options.threads)
    models = ON_GPU if options.device == "cuda" else MODELS
    if options.profile:
        from step_profile import profile

        text = profile(options.profile, options.device)
        print(text)
        if options.out:
            save(options.out, text)
        return
    contenders = options.contenders or (ON_CUDA if options.device == "cuda" else ON_CPU)
    if unknown := set(contenders) - {*ON_CPU, *ON_CUDA}:
        raise SystemExit(f"no contender {', '.join(sorted(unknown))}; --list shows them")
    here = {**versions("torch", "triton", "lightning"), **(jax_versions(options.jax) if options.jax else {})}
    began = time.perf_counter()
    found = {}
    for name in options.models or models:
        found[name] = measure(name, {**MODELS, **ON_GPU}[name], contenders, options)
    text = page(found, here, options)
    print(f"{text}\n{time.perf_counter() - began:.0f} s in all")
    if options.out:
        figures = {"versions": here, "machine": machine(), "threads": torch.get_num_threads(), "goals": goals(found)}
        figures["models"] = {name: {c: vars(e) for c, e in entries.items()} for name, entries in found.items()}
        save(options.out, text, figures)


if __name__ == "__main__":
    main()
