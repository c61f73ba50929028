#!/usr/bin/env bash
# torch.set_num_threads(1) does not hold for a matrix product in a thread that torch has not met: it takes all cores, and
# the numbers are others.
#
# Guess before: the number of threads is the process's, so a product gives the same bits in any thread of Python.
# Seen (torch 2.11.0, 2.13.0 and 2.14.1, CPU with MKL, two cores): in a new thread the product of 64 x 1024 and its transpose
# differs from that of the main thread in its last bits. Once the thread has asked torch.get_num_threads(), or has run
# anything that torch runs in parallel, it gives the same.
# What it means: ask torch.get_num_threads() first in a thread that computes what must repeat bit for bit.
set -euo pipefail
[ "$(nproc)" -ge 2 ] || { echo "needs two cores"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
from concurrent.futures import ThreadPoolExecutor

import torch

torch.set_num_threads(1)
a = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
here = a @ a.T


def product(ask):
    if ask:
        torch.get_num_threads()
    return a @ a.T


found = {}
for ask in (False, True):
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(product, ask).result()
    found[ask] = torch.equal(here, there)
    print("asked first:" if ask else "not asked:", "equal" if found[ask] else f"off by {(here - there).abs().max():.1e}")
assert found == {False: False, True: True}
PROGRAM
