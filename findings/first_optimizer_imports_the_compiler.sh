#!/usr/bin/env bash
# The first optimizer of a process imports Dynamo, sympy and most of Inductor's settings, though nothing is compiled.
#
# Guess before: `import torch` has imported torch.optim, so `torch.optim.SGD([w], lr=0.1)` imports nothing more; what
# `torch.compile` needs is imported by the first torch.compile.
# Seen (torch 2.13.0, CPU; also 2.11.0 and 2.14.1): the first SGD imports over 800 modules, torch._dynamo, sympy and
# torch.fx.experimental.symbolic_shapes among them, which took 1.1 to 1.4 s here; the second one takes 50 us.
# Optimizer.add_param_group is decorated so that Dynamo leaves it alone, and the decoration imports Dynamo when it is
# first called.
# What it means: every eager training script pays for the compiler at its start, in time and memory; a worker process
# that makes an optimizer does too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
cat > program.py <<'PROGRAM'
import sys

import torch

w = torch.nn.Parameter(torch.zeros(2))
for which in ("first", "second"):
    before = set(sys.modules)
    torch.optim.SGD([w], lr=0.1)
    new = set(sys.modules) - before
    heavy = [name for name in ("torch._dynamo", "sympy", "torch.fx.experimental.symbolic_shapes") if name in new]
    print(which, "over 800 modules" if len(new) > 800 else f"{len(new)} modules", *heavy)
PROGRAM
seen=$("$work/venv/bin/python" program.py)
echo "$seen"
test "$seen" = "first over 800 modules torch._dynamo sympy torch.fx.experimental.symbolic_shapes
second 0 modules"
