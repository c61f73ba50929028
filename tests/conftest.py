"""Settings for all tests.

Without a GPU, Triton's kernels run in its interpreter; that is chosen before anything imports triton. Examples of
properties have no deadline, since the machine may be compiling beside them, and are the same in each CI run.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads of theirs would wait for each other
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("shaped", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shaped")


@pytest.fixture
def script_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for Python files that a test imports; afterwards they are forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
