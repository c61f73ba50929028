"""Which private parts of torch the library leans on, and in which versions each changed: docs/private-torch.md.

    python docs/site/private_torch.py PYTHON...

Each PYTHON is an interpreter with another version of torch, the oldest first. The page says for each name whether its
source or its signature differs from the version before.
"""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_BUILT_IN = "no source"


def names() -> dict[str, list[str]]:
    """Every private name of torch that the source imports or reads, with its files; of nested ones the innermost."""
    found: dict[str, set[str]] = {}
    for file in (*ROOT.glob("shaped/**/*.py"), *ROOT.glob("kernels/shaped_kernels/**/*.py")):
        for name in _used(ast.parse(file.read_text())):
            inside = name.split(".")[1:]
            private = any(part.startswith("_") and not part.startswith("__") for part in inside)
            if (private or "torch.fx.experimental" in name) and inside[0] != "ops":
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    kept = {n: f for n, f in found.items() if not any(o.startswith(f"{n}.") and f <= found[o] for o in found)}
    return {name: sorted(kept[name]) for name in sorted(kept)}


def _used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("torch."))
        elif isinstance(node, ast.Attribute):
            parts: list[str] = []
            value: ast.expr = node
            while isinstance(value, ast.Attribute):
                parts.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id == "torch":
                yield ".".join(("torch", *reversed(parts)))


def fingerprint(name: str) -> list[str]:
    """Signature and source of what has this name here; nothing where there is none."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:]:
                value = getattr(value, part)
        except (ImportError, AttributeError):
            continue
        try:
            signature = str(inspect.signature(value))
        except (TypeError, ValueError):
            signature = ""
        try:
            return [signature, " ".join(inspect.getsource(value).split())]
        except (TypeError, OSError):
            return [signature, _BUILT_IN]
    return []


def changed(before: list[str], after: list[str]) -> str:
    """What differs between two versions."""
    if not before or not after:
        return "absent" if not after else "new"
    if before[0] != after[0]:
        return "signature"
    return "source" if before[1] != after[1] else _BUILT_IN if after[1] == _BUILT_IN else "same"


def table(interpreters: list[str]) -> str:
    """The page's table."""
    found = names()
    versions = []
    for interpreter in interpreters:
        done = subprocess.run([interpreter, __file__, "--here"], capture_output=True, text=True, check=True)
        versions.append(json.loads(done.stdout.splitlines()[-1]))
    heads = [f"{a['torch']} to {b['torch']}" for a, b in pairwise(versions)]
    lines = [f"| name | where | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for name, files in found.items():
        where = ", ".join(file.removeprefix("kernels/").removeprefix("shaped/") for file in files[:3])
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        cells = [changed(a[name], b[name]) for a, b in pairwise(versions)]
        lines.append(f"| `{name}` | {where}{more} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        import torch

        print(json.dumps({"torch": torch.__version__.partition("+")[0], **{n: fingerprint(n) for n in names()}}))
    else:
        page = ROOT / "docs" / "private-torch.md"
        head, _, _ = page.read_text().partition("| name |")
        page.write_text(head + table(sys.argv[1:]))
