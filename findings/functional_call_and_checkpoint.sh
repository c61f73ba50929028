#!/usr/bin/env bash
# Activation checkpointing inside torch.func.functional_call differentiates at other weights than the forward pass used.
#
# functional_call puts the given parameters into the module for the length of the call. A checkpointed block
# (use_reentrant=False) runs again during backward, after the call, when the module's own parameters are back in place.
# Shapes agree, so neither checkpoint's check of metadata nor autograd notices.
#
# Guess before: the gradient at the given parameters, since checkpointing promises the same numbers; or an error.
# Seen (torch 2.13.0, CPU): the loss is right and the gradient is not. The checkpointed block's is off by more than 10 % of
# its largest entry; that of the block without checkpointing is exact. No warning.
# What it means: with functional parameters, differentiate while the swap is in force, or hand the parameters to the
# checkpointed function as arguments.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import copy
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.outer(checkpoint(lambda t: torch.tanh(self.inner(t)), x, use_reentrant=False))

torch.manual_seed(0)
net, x = Net(), torch.randn(5, 4)
given = {name: (3 * p.detach() + 0.1).requires_grad_() for name, p in net.named_parameters()}
loss = functional_call(net, given, (x,)).square().mean()
found = torch.autograd.grad(loss, list(given.values()))

plain = copy.deepcopy(net)
plain.load_state_dict(given)
right_loss = plain(x).square().mean()
right = torch.autograd.grad(right_loss, list(plain.parameters()))
off = {n: ((a - b).abs().max() / b.abs().max()).item() for n, a, b in zip(given, found, right)}
print("losses", loss.item(), right_loss.item(), " gradients are off by", off)
assert loss == right_loss
assert off["inner.weight"] > 0.1 and off["inner.bias"] > 0.1
assert off["outer.weight"] < 1e-6 and off["outer.bias"] < 1e-6
PROGRAM
