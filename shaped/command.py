"""The commands `shaped` and `shaped-trainer` look before they import: another distribution may be in our folder.

The distribution `shaped` has our import name. Installed after ours it replaces `shaped/__init__.py`, and our command
`shaped`; installed at any time, its package `shaped/cli/` stands before our module `shaped/cli.py`. So this module has
a name of its own, and takes ours from its file.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command as `shaped` does; returns its exit status, and 1 with what to do where `shaped` is not ours."""
    door = Path(__file__).with_name("__init__.py")
    if not hasattr(sys.modules["shaped"], "ScalarTrainer"):
        print(f"shaped-trainer: {_other()}, has replaced {door}: pip uninstall shaped, then "
              "pip install --force-reinstall --no-deps shaped-trainer", file=sys.stderr)  # fmt: skip
        return 1
    spec = importlib.util.spec_from_file_location("shaped.cli", door.with_name("cli.py"))
    assert spec is not None
    assert spec.loader is not None
    command = importlib.util.module_from_spec(spec)
    sys.modules["shaped.cli"] = command
    spec.loader.exec_module(command)
    status: int = command.main(arguments)
    return status


def _other() -> str:
    try:
        return f"`shaped` {importlib.metadata.version('shaped')}, another distribution"
    except importlib.metadata.PackageNotFoundError:
        return "another package of our name"
