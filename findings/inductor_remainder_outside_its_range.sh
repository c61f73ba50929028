#!/usr/bin/env bash
# Inductor's vector code for x % 3.0 returns numbers outside [0, 3) once x passes 2**24, negative ones too; eager does not.
#
# Guess before: torch.compile of a remainder is torch.remainder: exact, since a floating-point remainder always is.
# Seen (torch 2.13.0, CPU, float32, g++): of 1,000 random x in [2**e, 2**(e+1)), eager equals the float64 remainder for
# all, compiled code for all at e = 23, and is wrong for about a third at e = 24 and two thirds from e = 25 on. It
# returns up to 4.0 at e = 24, from -8 to 8 at e = 26, and beyond 1e30 in size at e = 127: it is x - floor(x / 3) * 3 with
# each step rounded. No warning. Near to it: pytorch issue 198057 (an infinite divisor, and 0 for large quotients).
# What it means: a wrapped phase, a hash or a position taken modulo a float in a compiled model may lie outside the period.
# Reduce in float64, or by torch.fmod, whose compiled result was right here, with its sign moved.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
export TORCHINDUCTOR_CACHE_DIR="$work/inductor"
cd "$work"
cat > remainder.py <<'PROGRAM'
import torch

torch.manual_seed(0)


def wrapped(x):
    return x % 3.0


compiled = torch.compile(wrapped)
seen = {}
for e in (23, 24, 26, 127):
    x = (torch.rand(1000) + 1) * 2.0**e
    exact, got = x.double() % 3.0, compiled(x)
    assert torch.equal(wrapped(x).double(), exact)  # eager
    seen[e] = (int((got.double() != exact).sum()), float(got.min()), float(got.max()))
    print(f"x in [2**{e}, 2**{e + 1}): {seen[e][0]} of 1000 wrong, from {seen[e][1]:g} to {seen[e][2]:g}")
assert seen[23][0] == 0
assert seen[24][0] > 100 and seen[24][2] >= 3.0
assert seen[26][0] > 500 and seen[26][1] < 0.0 and seen[26][2] >= 3.0
assert seen[127][1] < -1e30 and seen[127][2] > 1e30
PROGRAM
"$work/venv/bin/python" remainder.py
