#!/usr/bin/env bash
# torch.func.functional_call leaves its values in a module that holds one layer under two names.
#
# Guess before: functional_call puts the module's own parameters back when it returns, as its documentation says of a
# stateless call; tied weights are its own default (tie_weights=True).
# Seen (torch 2.13.0): with one nn.Linear kept as `a` and as `b`, the module's weight is afterwards the plain tensor that was
# passed in, no Parameter, though net.parameters() was never written to. The name that ties the second place is swapped
# too, which saves the first swap's value as the one to restore. The result of the call is right; an optimizer made before
# goes on with a Parameter that the module no longer holds, so training moves nothing. No warning.
# What it means: pass every name of a shared layer and check `module.a.weight is weight` afterwards, or swap by identity.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn
from torch.func import functional_call

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x))

net = Twice()
weight = net.a.weight
functional_call(net, {"a.weight": torch.zeros(2, 2)}, (torch.ones(1, 2),))
left = net.a.weight
print("the same parameter as before the call:", left is weight, " now:", type(left).__name__, left.tolist())
assert left is not weight and not isinstance(left, nn.Parameter) and not left.any()
PROGRAM
