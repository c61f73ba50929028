#!/usr/bin/env bash
# A compiled accumulating index_put adds to wrong rows when Inductor's C++ code runs on more than one thread.
#
# The program is the gradient of a table of relative positions (as T5 has): `table[bucket] += permuted values`.
# Guess before: threads change the order of sums, so at most rounding.
# Seen (torch 2.13.0, CPU, x86-64, AVX2 or later): exact with one thread; with two the result is off by 40 % of its
# largest entry. Within a tiled loop the index of an atomic addition is moved by the place within the tile twice. No warning.
# What it means: check the gradient of a gather through a permuted view against eager at the number of threads of the run; a
# test with OMP_NUM_THREADS=1 says nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import os, subprocess, sys

program = """
import torch
def added(table, values):
    distance = torch.arange(50)[None] - torch.arange(9)[:, None]
    return table.index_put((distance.clamp(-16, 15) + 16,), values.permute(1, 2, 0), accumulate=True)
torch.manual_seed(0)
table, values = torch.randn(32, 8), torch.randn(8, 9, 50)
right = added(table, values)
print((torch.compile(added)(table, values) - right).abs().max().item() / right.abs().max().item())
"""
with open("program.py", "w") as file:
    file.write(program)
off = {}
for threads in ("1", "2"):
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "program.py"], env=environment, capture_output=True, text=True, check=True)
    off[threads] = float(done.stdout)
print("relative difference from eager, by threads:", off)
assert off["1"] < 1e-5 and off["2"] > 0.1
PROGRAM
