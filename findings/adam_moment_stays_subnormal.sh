#!/usr/bin/env bash
# A moment of AdamW whose gradient has become 0 never becomes 0 in torch: it stays a subnormal number for ever, on which
# a CPU computes many times slower. In JAX, which flushes such numbers, it is 0.
#
# Guess before: exp_avg shrinks by 0.9 a step and underflows to 0 after about a thousand steps, as any decay does.
# Seen (torch 2.13.0, optax 0.2.6 with jax 0.8.1, CPU): torch stops at 6e-45, four times the smallest float32, which 0.9
# rounds to itself, in the loop, foreach and fused steps alike, and so does SGD's momentum buffer. optax has 0.
# Seen beside it, by hand: of a network of 64-128-10 on the digits 3 per cent of the first moments are such numbers after
# 1,000 steps (units that are dead), and torch's fused step takes 45 us where it took 35.
# What it means: flush the moments of a step that is to be fast, or expect a CPU benchmark that repeats one batch to time
# subnormal numbers on one side only.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 \
    jax==0.8.1 jaxlib==0.8.1 optax==0.2.6
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PROGRAM'
import jax
import jax.numpy as jnp
import optax
import torch

STEPS = 1500


def moment(optimizer, name):
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in range(STEPS):
        parameter.grad = torch.full_like(parameter, float(step == 0))  # a gradient once, and none from then on
        optimizer.step()
    return optimizer.state[parameter][name][0].item()


smallest = torch.finfo(torch.float32).smallest_normal
print("smallest normal float32:", smallest)
for ways in ({"foreach": False, "fused": False}, {"foreach": True}, {"fused": True}):
    found = moment(torch.optim.AdamW([torch.ones(32, requires_grad=True)], **ways), "exp_avg")
    print("torch AdamW", ways, found)
    assert 0 < found < smallest
found = moment(torch.optim.SGD([torch.ones(32, requires_grad=True)], lr=0.1, momentum=0.9), "momentum_buffer")
print("torch SGD", found)
assert 0 < found < smallest

rule = optax.adamw(1e-3)
parameter = jnp.ones(32)
state = rule.init(parameter)
step = jax.jit(lambda gradient, state, parameter: rule.update(gradient, state, parameter))
for number in range(STEPS):
    updates, state = step(jnp.full(32, float(number == 0)), state, parameter)
    parameter = optax.apply_updates(parameter, updates)
print("optax adamw", float(state[0].mu[0]))
assert float(state[0].mu[0]) == 0
PROGRAM
