#!/usr/bin/env bash
# CyclicLR.load_state_dict removes an entry from the dict that it is given, so one state loads once.
#
# Guess before: loading reads a state dict, or puts back what it takes, as LambdaLR does.
# Seen (torch 2.13.0): the key `_scale_fn_custom` is popped from the caller's dict. A second load of the same object, as by a
# retry, a second replica or a rollback to a state that is kept in memory, is a KeyError.
# What it means: hand this scheduler a copy.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR

def schedule():
    return CyclicLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), 0.01, 0.1, 4, cycle_momentum=False)

state = schedule().state_dict()
before = set(state)
schedule().load_state_dict(state)
gone = before - set(state)
try:
    schedule().load_state_dict(state)
    second = "fine"
except KeyError as error:
    second = f"KeyError: {error}"
print("taken out by the first load:", gone, " the second:", second)
assert gone == {"_scale_fn_custom"} and second.startswith("KeyError")
PROGRAM
