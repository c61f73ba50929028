"""Settings for all tests.

Without a GPU, Triton's kernels run in its interpreter; that is chosen before anything imports triton. Examples of
properties have no deadline, since the machine may be compiling beside them, and are the same in each CI run.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads of theirs would wait for each other
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("shaped", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shaped")


@pytest.fixture(autouse=True)
def kept_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test keeps for the next start is of no other test, and never among what a user has kept."""
    monkeypatch.setenv("SHAPED_CACHE_DIR", str(tmp_path_factory.getbasetemp() / f"kept-{uuid4().hex}"))


@pytest.fixture(autouse=True, scope="session")
def shared_proofs() -> Iterator[None]:
    """Trainers over a loss of `tests/models.py` share its proof, which takes a second; `prove` itself proves anew."""
    from shaped.backends import program
    from tests.models import gpt_loss, mlp_loss
    from tests.sharing import sharing_proofs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "prove_setting", sharing_proofs(mlp_loss, gpt_loss))
        yield


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled backend without a C++ compiler: the same graphs, one operation at a time; no seconds to compile."""
    monkeypatch.setattr("shaped.backends.inductor.has_cpp_compiler", lambda: False)
    monkeypatch.setattr("shaped.backends.inductor._warned", True)


@pytest.fixture
def script_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for Python files that a test imports; afterwards they are forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
