#!/usr/bin/env bash
# The mean losses of torch.nn.functional over a DTensor average the ranks' means: wrong for uneven shards and for ignored rows.
#
# Guess before: DTensor's promise is the semantics of one device, so each row weighs alike, as it does in x.mean().
# Seen (torch 2.13.0, gloo, 2 ranks): x.mean() over 5 rows (3 + 2) is right. mse_loss, huber_loss, smooth_l1_loss and
# binary_cross_entropy_with_logits of the same tensors weigh the two ranks alike. cross_entropy with ignore_index, or with
# class weights, is wrong for even shards too, since each rank divides by its own count. The gradients follow. No warning.
# What it means: a loss over a sharded batch is to be taken as a sum, and divided by the count over all ranks.
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

x, y = torch.randn(5, 6), torch.randn(5, 6)
say("mean            ", (shard(x) * shard(y)).mean().full_tensor(), (x * y).mean())
for loss in (F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits):
    target = y.sigmoid() if loss is F.binary_cross_entropy_with_logits else y
    say(loss.__name__[:16].ljust(16), loss(shard(x), shard(target)).full_tensor(), loss(x, target))
x, labels = torch.randn(4, 6), torch.tensor([0, 0, 0, 3])
right = F.cross_entropy(x, labels, ignore_index=0)
say("ignore_index    ", F.cross_entropy(shard(x), shard(labels), ignore_index=0).full_tensor(), right)

dist.destroy_process_group()
""")
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
done = subprocess.run(command, capture_output=True, text=True)
print(done.stdout, end="")
assert done.returncode == 0, done.stderr

rows = [line.split() for line in done.stdout.splitlines()]
off = {row[0]: abs(float(row[2]) - float(row[4])) for row in rows}
assert off.pop("mean") < 1e-3 and len(off) == 5
assert all(not distance < 2e-4 for distance in off.values()), off  # a NaN is as wrong
PROGRAM
