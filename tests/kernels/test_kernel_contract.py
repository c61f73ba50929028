"""What the compiler makes of the kernels, without a GPU: registers, spills, access widths, no doubles."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).with_name("compile_contract.py")


@pytest.mark.skipif(
    tuple(map(int, version("triton").split(".")[:2])) < (3, 9),
    reason="before 3.9, two stochastic variants take 72 registers on sm_80 and a split one spills one on sm_90",
)
@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90", "gfx942"])
def test_kernels_compile_to_wide_accesses_without_spills(target: str, tmp_path: Path) -> None:
    # Triton decides at import whether to interpret, so the compiler needs a process of its own.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT / "kernels"), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(CHECK), target], env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
