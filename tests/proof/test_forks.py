"""A proof leaves the process able to fork: data loaders and test harnesses do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os
import torch
from shaped import prove
from tests.models import mlp_loss

prove(mlp_loss)
child = os.fork()
if child == 0:
    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad((x * x).sum(), x)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_differentiate_after_a_proof() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}

    assert subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=False).returncode == 0
