#!/usr/bin/env bash
# Inductor folds `x * 0` to 0, so the usual cheap test for NaN in a gradient always passes once it is compiled.
#
# Guess before: `x * 0` stays NaN for NaN and infinity, as IEEE 754, eager torch and backend="aot_eager" have it.
# Seen (torch 2.13.0, CPU): torch.compile gives 0 there, and `isfinite((g * 0).sum())` is True for a gradient that is not
# finite. `g - g` is left as it is.
# What it means: a training step that decides by `(g * 0).sum()` whether to skip an update skips nothing when compiled.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch

g = torch.tensor([1.0, float("nan"), float("inf")])

def times_zero(g):
    return torch.isfinite((g * 0).sum())

def less_itself(g):
    return torch.isfinite((g - g).sum())

found = {
    "eager": times_zero(g).item(),
    "aot_eager": torch.compile(times_zero, backend="aot_eager")(g).item(),
    "inductor": torch.compile(times_zero)(g).item(),
    "inductor, g - g": torch.compile(less_itself)(g).item(),
}
print("is [1, nan, inf] finite?", found)
assert found == {"eager": False, "aot_eager": False, "inductor": True, "inductor, g - g": False}
PROGRAM
