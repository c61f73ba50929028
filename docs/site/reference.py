"""The public doors, what each exports, and docs/api.md: a table of all of it.

python docs/site/reference.py        writes docs/api.md from the doors and their docstrings
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOORS = (
    "shaped", "shaped.init", "shaped.optim", "shaped.losses", "shaped.data", "shaped.loop", "shaped.checkpoint",
    "shaped.metrics", "shaped.ranks", "shaped.lora", "shaped.fp8", "shaped.architecture", "shaped.export",
    "shaped.workflow", "shaped.workflow.online", "shaped.recipes", "shaped_kernels",
)  # fmt: skip

_HEAD = """# API reference

These doors are public: what stands below is kept, and a change of it is in the change log. All other modules
(`shaped.shapes`, `shaped.proof`, `shaped.backends`, `shaped.state`, ...) are rooms inside the house, and may change
with any version. On the site each name leads to its arguments, shapes, units and errors; in Python, `help(name)` prints
the same.

| door | what is behind it | page |
|---|---|---|
"""
_PAGES = {
    "shaped": "trainer.md", "shaped.init": "parameters.md", "shaped.optim": "kernels.md", "shaped.losses": "losses.md",
    "shaped.data": "loop.md", "shaped.loop": "loop.md", "shaped.checkpoint": "checkpoints.md",
    "shaped.metrics": "loop.md", "shaped.ranks": "many-devices.md", "shaped.lora": "lora.md",
    "shaped.fp8": "low-precision.md",
    "shaped.architecture": "architecture-search.md", "shaped.export": "export.md", "shaped.workflow": "workflow.md",
    "shaped.workflow.online": "online.md", "shaped.recipes": "contributing.md", "shaped_kernels": "kernels.md",
}  # fmt: skip


def source(door: str) -> Path:
    """The file of a door: a package's `__init__`, or a module."""
    base = ROOT / ("kernels" if door.startswith("shaped_kernels") else "") / door.replace(".", "/")
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def exported(door: str) -> list[str]:
    """The public names of a door, sorted: what a package's `__init__` imports, what a module defines."""
    tree = ast.parse(source(door).read_text())
    if source(door).name == "__init__.py":
        imports = [n for top in tree.body for n in (top.body if isinstance(top, ast.With) else [top])]
        names = [a.asname for n in imports if isinstance(n, ast.ImportFrom) for a in n.names if a.asname]
        names += [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    else:
        names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def page() -> str:
    """docs/api.md."""
    import importlib

    text = _HEAD
    for door in DOORS:
        text += f"| [`{door}`](#{door.replace('.', '')}) | {_first_line(importlib.import_module(door))} "
        text += f"| [{_PAGES[door].removesuffix('.md').replace('-', ' ')}]({_PAGES[door]}) |\n"
    for door in DOORS:
        module = importlib.import_module(door)
        text += f"\n## `{door}`\n\n| name | what it is |\n|---|---|\n"
        text += "".join(f"| `{name}` | {_first_line(getattr(module, name))} |\n" for name in exported(door))
    return text


def _first_line(value: object) -> str:
    """The first sentence of a docstring, as a cell."""
    if not (callable(value) or hasattr(value, "__path__") or hasattr(value, "__file__")) or value.__doc__ is None:
        return "a type, for annotations"
    paragraph = " ".join((value.__doc__ or "").strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.)\s", paragraph)[0]
    return sentence.rstrip(".:").replace("|", "\\|")


if __name__ == "__main__":
    import sys

    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    (ROOT / "docs" / "api.md").write_text(page())
