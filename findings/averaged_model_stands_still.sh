#!/usr/bin/env bash
# torch's AveragedModel averages in the dtype of what it averages: a bfloat16 EMA and an integer buffer stand still.
#
# Guess before: averages are kept in a dtype that can hold them, and integer buffers are copied.
# Seen (torch 2.13.0): with use_buffers=True, a BatchNorm's num_batches_tracked stays at 1 while the model's is 10, for the
# mean and for get_ema_multi_avg_fn(0.999): each small step towards it is cut off. The EMA of a bfloat16 weight that went
# from 1 to 2 is exactly 1.0 after 5,000 updates (in exact arithmetic 1.993), since each increment is below half a unit in
# the last place. No warning.
# What it means: average a float32 copy of the parameters, and copy what is no floating-point number.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

counted = {}
for name, how in (("mean", {}), ("ema", {"multi_avg_fn": get_ema_multi_avg_fn(0.999)})):
    norm = nn.BatchNorm1d(3)
    average = AveragedModel(norm, use_buffers=True, **how)
    for _ in range(10):
        norm(torch.randn(4, 3))
        average.update_parameters(norm)
    counted[name] = (norm.num_batches_tracked.item(), average.module.num_batches_tracked.item())

layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
nn.init.ones_(layer.weight)
average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.999))
average.update_parameters(layer)
nn.init.constant_(layer.weight, 2.0)
for _ in range(5000):
    average.update_parameters(layer)
print("batches seen by the model and by its average:", counted, " EMA from 1 to 2:", average.module.weight.item())
assert counted == {"mean": (10, 1), "ema": (10, 1)}
assert average.module.weight.item() == 1.0
PROGRAM
