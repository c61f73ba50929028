#!/usr/bin/env bash
# A sum over the norms of a row-sharded DTensor's columns is not the sum of the norms.
#
# Guess before: vector_norm(x, dim=0) of a row-sharded x is waiting for a reduction (squares are added over ranks), and an
# operation that does not commute with it is preceded by that reduction, as for relu of a waiting sum.
# Seen (torch 2.13.0, gloo, 2 ranks): full_tensor() of the norms themselves is right. `.sum()` of them adds up each rank's
# norms first and then combines these sums as if they were norms: sqrt((sum of a)^2 + (sum of b)^2). The same for any number
# of rows. No warning.
# What it means: a group-lasso penalty or a sum of per-column norms over sharded weights is to be taken after
# redistribute(placements=[Replicate()]).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import subprocess, sys
from pathlib import Path

Path("program.py").write_text("""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)

def shard(x):
    return distribute_tensor(x, mesh, [Shard(0)])

def say(name, found, right):
    if dist.get_rank() == 0:
        print(name, "found", round(float(found), 4), "right", round(float(right), 4), flush=True)

x = torch.randn(4, 6)
norms = torch.linalg.vector_norm(shard(x), dim=0)
right = torch.linalg.vector_norm(x, dim=0)
say("largest", norms.full_tensor().max(), right.max())
say("sum    ", norms.sum().full_tensor(), right.sum())
say("after  ", norms.redistribute(placements=[Replicate()]).sum().full_tensor(), right.sum())

dist.destroy_process_group()
""")
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
done = subprocess.run(command, capture_output=True, text=True)
print(done.stdout, end="")
assert done.returncode == 0, done.stderr

rows = [line.split() for line in done.stdout.splitlines()]
off = {row[0]: abs(float(row[2]) - float(row[4])) for row in rows}
assert off["largest"] < 1e-3 and off["after"] < 1e-3 and off["sum"] > 0.1
PROGRAM
