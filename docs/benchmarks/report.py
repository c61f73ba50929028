"""What every benchmark writes beside its figures: the versions, the machine, one JSON file and one page."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def versions(*packages: str) -> dict[str, str]:
    """The version of Python and of each package, `missing` where it is not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def machine() -> str:
    """The processor, the number of cores and the load at this moment."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores{load}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def save(place: Path, page: str, figures: dict[str, Any] | None = None) -> None:
    """Write a page as PLACE.md, and its figures as PLACE.json."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".md").write_text(page.strip() + "\n")
    if figures is not None:
        place.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
