"""torchtyc on a folder of files, in an environment of its own, and what it amounts to."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plain import Plain


def run(python: str, folder: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str], float]:
    """The diagnostics of each file of a folder, by its name; the versions in that environment; the seconds it took."""
    start = time.perf_counter()
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}
    python = str(Path(python).absolute())
    asked = "import json,platform,torch; from importlib.metadata import version as v; print(json.dumps({'python': "
    asked += "platform.python_version(), **{n: v(n) for n in ('torch', 'torchtyc', 'jaxtyping', 'beartype')}}))"
    found = json.loads(subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout)
    command = [python, "-m", "torchtyc.cli", "check", str(folder), "--format", "json", "--python", python]
    done = subprocess.run(
        [*command, "--timeout", "600"], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    report = json.loads(done.stdout)
    if report["worker_error"]:
        raise SystemExit(f"torchtyc: {report['worker_error']}")
    files: dict[str, list[dict[str, Any]]] = {}
    for diagnostic in report["diagnostics"]:
        files.setdefault(Path(diagnostic["path"]).stem, []).append(diagnostic)
    return files, found, time.perf_counter() - start


def verdict(
    plain: Plain,
    right: frozenset[int],
    name: str,
    said: Sequence[dict[str, Any]],
    before: Sequence[dict[str, Any]],
) -> str:
    """What its diagnostics of a file amount to, less those of the unchanged file (`before`)."""

    def key(diagnostic: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(diagnostic[field]) for field in ("function", "rule", "message"))

    known = {key(d) for d in before}
    new = [d for d in said if d["severity"] == "error" and key(d) not in known]
    lines = {plain.original(d["line"] + 1) for d in new}  # 0-based there
    if new:
        return "at the line" if lines & right else "elsewhere"
    own = [d["severity"] for d in said if d["function"] == name]
    return "not asked" if "warning" in own else "missed"


def alarms(said: Sequence[str]) -> str:
    """What it says of models that are right, as Markdown."""
    head = """
torchtyc cannot be told a condition such as `seq <= context`, nor an assumption, nor what divides a size where no number
in the function says it; it traces without gradients, on the meta device. What it says of unchanged models:

"""
    return head + "\n".join(f"- {alarm[:160]}" for alarm in said)
