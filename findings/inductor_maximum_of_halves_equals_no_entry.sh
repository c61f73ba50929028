#!/usr/bin/env bash
# Compiled for a CPU, the largest entry of a row of bfloat16 equals no entry of the row, and the gradient of amax is NaN.
#
# Guess before: one entry of each of eight rows equals the row's maximum, compiled too, and amax has a finite gradient.
# Seen (torch 2.13.0, CPU): `(y == y.amax(1, keepdim=True)).sum()` of eight rows is 8 eagerly and 0 compiled, where y is
# an elementwise function of x; the gradient of `y.amax(1)` is finite eagerly and NaN compiled.
# Why: y is computed again in float32 for the comparison and is not rounded there, while the maximum was rounded to
# bfloat16 when it was stored; the gradient divides by how many entries equal the maximum.
# What it means: max pooling over a sequence (amax) in half precision trains eagerly and gives NaN compiled.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
cat > program.py <<'PROGRAM'
import torch
import torch.nn.functional as F


def bent(x):
    return F.gelu(x * 1.3) + x


def hits(x):
    y = bent(x)
    return (y == y.amax(1, keepdim=True)).sum()


def pooled(x):
    return bent(x).amax(1)


x = torch.linspace(-2, 3, 64, dtype=torch.bfloat16).view(8, 8)
for name, how in (("eager", lambda f: f), ("compiled", torch.compile)):
    y = x.clone().requires_grad_()
    how(pooled)(y).sum().backward()
    print(name, how(hits)(x).item(), "of 8, gradient finite:", y.grad.isfinite().all().item())
PROGRAM
seen=$(TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" program.py 2> /dev/null)
echo "$seen"
test "$seen" = "eager 8 of 8, gradient finite: True
compiled 0 of 8, gradient finite: False"
