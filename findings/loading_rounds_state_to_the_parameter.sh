#!/usr/bin/env bash
# Optimizer.load_state_dict rounds float32 state to the dtype of the parameter.
#
# Guess before: what a state dict holds is what the optimizer goes on with.
# Seen (torch 2.13.0): for a bfloat16 parameter, a float32 entry of the state (a master copy, moments in full precision)
# comes back as bfloat16. Here a master copy of 0.9995 becomes 1.0: five steps are lost. Only the entry named `step` is
# spared, so state_dict() and load_state_dict() of one and the same optimizer are no identity. No warning.
# What it means: an optimizer whose state is wider than its parameters must not leave loading to the base class.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn

class Master(torch.optim.Optimizer):
    """SGD on a float32 copy of each parameter."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                wide = self.state[p].setdefault("master", p.float())
                p.copy_(wide.sub_(p.grad.float(), alpha=group["lr"]))

w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
optimizer = Master([w], lr=1e-4)
for _ in range(5):
    w.grad = torch.ones_like(w)
    optimizer.step()
before = optimizer.state[w]["master"].clone()
optimizer.load_state_dict(optimizer.state_dict())
after = optimizer.state[w]["master"]
print("before", before.dtype, before.tolist(), " after", after.dtype, after.tolist())
assert before.dtype == torch.float32 and abs(before[0].item() - 0.9995) < 1e-6
assert after.dtype == torch.bfloat16 and after[0].item() == 1.0
PROGRAM
