#!/usr/bin/env bash
# torch's fused optimizers move parameters without telling autograd, so a backward pass through stale tensors is silent.
#
# Guess before: fused=True is a faster way to the same step, so a loss that was computed before the step and is
# differentiated after it raises "modified by an inplace operation", as it does with every other implementation.
# Seen (torch 2.13.0, CPU): single-tensor and foreach steps raise a parameter's version counter, and backward raises. The
# fused ones of SGD, Adam, AdamW and Adagrad leave the counter at 0, and backward gives a gradient at other weights than
# the loss was computed from.
# What it means: fused=True can turn a loud bug (two losses, one step between) into a silent one. Who calls the fused
# operators directly should call torch.autograd.graph.increment_version afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn

def after_a_step(kind, **how):
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = kind([w], lr=0.5, **how)
    cubes = (w * w * w).sum()  # keeps w for its backward pass
    w.grad = torch.ones_like(w)
    optimizer.step()
    w.grad = None
    try:
        cubes.backward()
    except RuntimeError as error:
        assert "inplace operation" in str(error)
        return w._version, "raises"
    return w._version, [round(g, 3) for g in w.grad.tolist()]

for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
    for how in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        version, outcome = after_a_step(kind, **how)
        print(f"{kind.__name__:8} {how}  version {version}  backward: {outcome}")
        if "fused" in how:
            assert version == 0 and outcome != "raises" and outcome != [3.0, 12.0, 27.0]
        else:
            assert version > 0 and outcome == "raises"
PROGRAM
