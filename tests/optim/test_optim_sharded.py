"""DTensor parameters: each rank moves its own shard, under one norm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).parents[2]

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)


@pytest.mark.slow
def test_two_ranks_with_an_empty_shard_move_as_torchs_adamw_on_whole_tensors(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "SHAPED_KERNELS": "torch"}
    program = [sys.executable, str(ROOT / "tests/optim/sharded_run.py")]
    ranks = [
        subprocess.Popen([*program, str(rank), str(tmp_path / "meeting")], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0], errors
