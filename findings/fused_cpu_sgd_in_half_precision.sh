#!/usr/bin/env bash
# torch's fused CPU SGD does not move bfloat16 and float16 parameters, except for the last few elements.
#
# Guess before: fused=True takes the step that fused=False takes, or refuses the dtype.
# Seen (torch 2.13.0, CPU, x86-64): without momentum, whole vectors keep their values; only the ragged tail behind the last
# whole vector is stepped. 0 of 64 and 5 of 37 elements move. float32 is right. A loss just does not fall.
# What it means: no SGD(fused=True) for half-precision parameters on a CPU in this version.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn

for dtype in (torch.bfloat16, torch.float16, torch.float32):
    moved = {}
    for n in (37, 64):
        w = nn.Parameter(torch.ones(n, dtype=dtype))
        w.grad = torch.ones_like(w)
        torch.optim.SGD([w], lr=0.5, fused=True).step()
        moved[n] = int((w != 1).sum())
    print(dtype, {n: f"{k} of {n} moved" for n, k in moved.items()})
    if dtype is torch.float32:
        assert moved == {37: 37, 64: 64}
    else:
        assert moved[64] == 0 and moved[37] < 32
PROGRAM
