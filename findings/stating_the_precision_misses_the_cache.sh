#!/usr/bin/env bash
# A process that sets the float32 matmul precision to what it is already finds none of torch.compile's code on disk.
#
# Guess before: Inductor's on-disk cache is keyed by what the precision is, so a script that states the default
# ("highest") is served the code that one without the statement has left.
# Seen (torch 2.13.0, CPU): the second process of the same program hits; one that first calls
# torch.set_float32_matmul_precision(torch.get_float32_matmul_precision()) misses and compiles anew, though
# get_float32_matmul_precision() says "highest" in both; a second one of those hits. Having been set is part of the key
# (torch.backends.mkldnn.matmul.fp32_precision reads "ieee" instead of "none" after it), and not only the value.
# What it means: two programs that share a warm cache, or a process that compiles ahead for another, must agree on
# whether the precision was set, not only on what it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
export TORCHINDUCTOR_CACHE_DIR="$work/cache"
cat > program.py <<'PROGRAM'
import sys

import torch
from torch._dynamo.utils import counters

if sys.argv[1] == "stated":
    torch.set_float32_matmul_precision(torch.get_float32_matmul_precision())
torch.compile(lambda x: x.sin() + 1)(torch.zeros(8))
found = counters["inductor"]["fxgraph_cache_hit"]
print(sys.argv[1], torch.get_float32_matmul_precision(), "hit" if found else "miss")
PROGRAM
seen=$(for how in default default stated stated default; do "$work/venv/bin/python" program.py "$how"; done)
echo "$seen"
test "$seen" = "default highest miss
default highest hit
stated highest miss
stated highest hit
default highest hit"
