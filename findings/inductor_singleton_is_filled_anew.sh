#!/usr/bin/env bash
# Inductor's table of dtype rules is one object for the process, and is filled anew at every operation that is compiled.
#
# Guess before: DtypePropagationOpsHandler keeps its one instance in `__new__`, so the rules of some 200 operations are
# put into it once.
# Seen (torch 2.11.0, 2.13.0 and 2.14.1, CPU): Python calls `__init__` on what `__new__` returns, each time. One function of
# 30 sines, compiled, fills the table dozens of times, more often the longer it is. Of the step of an optimizer over 148
# parameters (4,800 loops) it took 3 of 40 s of processor time, by hand, beside other work.
# What it means: put a flag around `__init__` while compiling; the rules do not change in between.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cd "$work"
TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 "$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch._inductor import dtype_propagation

filled = []
theirs = dtype_propagation.DtypePropagationOpsHandler.__init__


def counted(self):
    filled.append(self)
    theirs(self)


dtype_propagation.DtypePropagationOpsHandler.__init__ = counted


def sines(x, count):
    for _ in range(count):
        x = x.sin()
    return x


times = {}
for count in (10, 30):
    torch._dynamo.reset()
    filled.clear()
    torch.compile(sines, backend="inductor")(torch.ones(8), count)
    times[count] = len(filled)
    print(f"{count} operations: filled {len(filled)} times; one object: {len(set(map(id, filled))) == 1}")
    assert len(set(map(id, filled))) == 1
assert times[30] >= times[10] + 20
PROGRAM
