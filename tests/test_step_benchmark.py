"""The benchmark of whole steps: what it would time, and how its workers are spoken to. Nothing is timed here."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_list_names_models_contenders_and_goals():
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, str(FOLDER / "steps.py"), "--list"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert re.findall(r"(?m)^\w+$", out) == ["models", "contenders", "goals"]
    assert "  shaped compiled\n" in out
    assert "  mlp: shaped compiled at most 1.00 of JAX jit, optax\n" in out


def test_jax_takes_the_same_numbers_as_torch():
    lines = [
        re.findall(r"(?m)^LR, BETAS, EPS, WEIGHT_DECAY = [^#\n]*[^#\s]", (FOLDER / f"{name}.py").read_text())
        for name in ("step_models", "step_jax")
    ]

    assert len(lines[0]) == 1
    assert lines[0] == lines[1]


def test_a_worker_answers_each_line_with_a_line(monkeypatch: pytest.MonkeyPatch):
    worker = load("step_worker")
    waited: list[int] = []
    losses, answers = iter(range(100)), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\nlosses 3\nround 5\nmemory\n"))
    monkeypatch.setattr(sys, "stdout", answers)
    worker.serve(lambda: lambda: next(losses), waited.append, lambda: 7)
    ready, first, several, timed, memory = map(json.loads, answers.getvalue().splitlines())

    assert (ready, first[1], several, memory) == ("ready", 0.0, [1.0, 2.0, 3.0], 7)
    assert timed[0] >= timed[1] >= 0
    assert waited == [0, 8]  # the last loss of the first step and of the round


def test_a_worker_knows_the_most_memory_that_its_process_has_held():
    if not Path("/proc/self/status").exists():
        pytest.skip("read from /proc")

    assert load("step_worker")._peak() > 2**20
