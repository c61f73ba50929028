"""The fault matrix with few trials; `python -m tests.faults.harness` has all of them. And that the harness can fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forked")


def harness(rows: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults.harness", "--quick", "--rows", rows, *options]
    path = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(
    "rows",
    [
        "4",
        *(
            pytest.param(rows, marks=pytest.mark.slow)
            for rows in ("1,2,3", "5,6,7,8,9,10,11,12,13", "15,17,20,36,37", "16", "16c", "2b,12b", "R1,R3,R5", "R6,R7")
        ),
    ],
)
def test_nothing_is_lost_whatever_is_broken(rows: str) -> None:
    done = harness(rows)

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.rstrip().endswith(": 0 rows failed")


@pytest.mark.slow
@pytest.mark.parametrize(("safeguard", "row"), [("rename", "1"), ("checksum", "4"), ("skip", "20")])
def test_without_a_safeguard_the_row_that_guards_it_fails(safeguard: str, row: str) -> None:
    done = harness(row, "--mutate", safeguard)

    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.rstrip().endswith(": 1 rows failed")
