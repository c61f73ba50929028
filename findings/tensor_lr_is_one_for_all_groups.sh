#!/usr/bin/env bash
# A learning rate given as a tensor is one object for all parameter groups, and schedulers write into it.
#
# A tensor lr is what torch's documentation advises for compiled optimizers. Guess before: each group gets its own copy, and
# schedules do what they do with a float.
# Seen (torch 2.13.0): all groups hold the caller's own tensor. LambdaLR with a function for each group gives every group
# the last one's value. ReduceLROnPlateau reduces once for each group: a factor of 0.5 over two groups is 0.25. And the
# tensor that the caller passed is changed, so a second optimizer made with it begins where the first one stopped.
# No warning.
# What it means: give every group a tensor of its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

def groups(lr):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=lr)

def by_lambdas(lr):
    optimizer = groups(lr)
    schedule = LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.5**step])
    for _ in range(3):
        optimizer.step()
        schedule.step()
    return [round(float(group["lr"]), 6) for group in optimizer.param_groups]

def on_a_plateau(lr):
    optimizer = groups(lr)
    schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for figure in (1.0, 1.0):  # no better once: one reduction
        schedule.step(figure)
    return [round(float(group["lr"]), 6) for group in optimizer.param_groups]

given = torch.tensor(0.1)
lambdas = by_lambdas(0.1), by_lambdas(given)
plateau = on_a_plateau(0.1), on_a_plateau(torch.tensor(0.1))
print("LambdaLR, lr a float and a tensor:", *lambdas, " ReduceLROnPlateau:", *plateau)
print("the caller's tensor was 0.1 and is", round(given.item(), 6))
assert lambdas == ([0.1, 0.0125], [0.0125, 0.0125])
assert plateau == ([0.05, 0.05], [0.025, 0.025])
assert round(given.item(), 6) == 0.0125
PROGRAM
