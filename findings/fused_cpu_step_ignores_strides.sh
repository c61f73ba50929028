#!/usr/bin/env bash
# torch's fused CPU optimizers pair parameter and gradient by their place in memory, not by index.
#
# Guess before: fused=True follows strides, or refuses where they differ, as every elementwise operation of torch does.
# Seen (torch 2.13.0, CPU): with a parameter that is a transposed tensor and a gradient of another layout, SGD, Adam, AdamW
# and Adagrad with fused=True move the i-th element in memory by the i-th gradient in memory. Nothing is said; the default
# implementation is right. torch.autograd.grad gives such gradients by itself (backward() does not, since it copies into
# the parameter's layout): the gradient of (w * c).sum() has the strides of c.
# What it means: gradients that do not come from backward(), but from autograd.grad, torch.func or an own reduction, must be
# brought to the parameter's strides before a fused step.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn

for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
    moved = []
    for fused in (False, True):
        torch.manual_seed(0)
        w = nn.Parameter(torch.zeros(3, 4).t())  # a weight that is kept transposed
        optimizer = kind([w], lr=0.1, fused=fused)
        for _ in range(3):
            w.grad, = torch.autograd.grad((w * torch.randn(4, 3)).sum(), w)
            optimizer.step()
        moved.append(w.detach().clone())
    off = (moved[0] - moved[1]).abs().max().item()
    print(f"{kind.__name__:8} strides {w.stride()} and {w.grad.stride()}: fused is off by {off:.3f} of {moved[0].abs().max():.3f}")
    assert w.stride() != w.grad.stride() and off > 0.1
PROGRAM
