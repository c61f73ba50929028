#!/usr/bin/env bash
# DTensor.item() of a sum over shards is one rank's part of it, and fill_ of such a sum multiplies the value.
#
# Guess before: item() gives the number, as full_tensor().item() does, or refuses a tensor that waits for a reduction.
# Seen (torch 2.13.0, gloo, 2 ranks): x.sum().item() of a sharded x is another number on each rank, the local part; so a log,
# a stop criterion or a clipping decision taken from it differs between ranks. x.sum(0).fill_(2.0) is 4.0 in full_tensor(),
# once for each rank. `.mean().item()` is wrong alike. No warning.
# What it means: full_tensor() before item(), always.
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
say("full_tensor", shard(x).sum().full_tensor().item(), x.sum())
say("item       ", shard(x).sum().item(), x.sum())
say("mean.item  ", shard(x).mean().item(), x.mean())
say("fill_      ", shard(x).sum(0).fill_(2.0).full_tensor()[0], 2.0)

dist.destroy_process_group()
""")
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
done = subprocess.run(command, capture_output=True, text=True)
print(done.stdout, end="")
assert done.returncode == 0, done.stderr

rows = [line.split() for line in done.stdout.splitlines()]
found = {row[0]: (float(row[2]), float(row[4])) for row in rows}
assert abs(found["full_tensor"][0] - found["full_tensor"][1]) < 1e-3
assert abs(found["item"][0] - found["item"][1]) > 0.1 and abs(found["mean.item"][0] - found["mean.item"][1]) > 0.1
assert found["fill_"] == (4.0, 2.0)
PROGRAM
