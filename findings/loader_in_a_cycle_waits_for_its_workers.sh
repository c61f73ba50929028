#!/usr/bin/env bash
# A DataLoader's iterator with workers that the garbage collector finds in a cycle stops the program 5 seconds a worker.
#
# Guess before: an iterator that nobody holds any more ends its workers at once, whether its last reference goes or the
# collector finds it within a cycle; its __del__ tells them of the end by their queues.
# Seen (torch 2.13.0, Python 3.11): dropped plainly, 0.0 s for two workers that wait for work. As part of a cycle (an
# object that is gone over data and has bound methods of its own as hooks is enough), 10 s: the collector calls the weak
# references' callbacks before any __del__, multiprocessing ends the feeding threads of the index queues in them, and the
# word of the end is never sent; `_shutdown_workers` then waits its 5 s for each worker in turn. The program stands where
# the collector happens to run: within a backward pass of the next trial, say. No warning.
# What it means: let an iterator over an epoch that was left go by its last reference, or keep one outside of the cycle
# that a finalizer of the holder drops.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import gc
import time

import torch
from torch.utils.data import DataLoader, TensorDataset


def begun():
    iterator = iter(DataLoader(TensorDataset(torch.arange(64.0)), 4, num_workers=2))
    next(iterator)
    time.sleep(1)
    return iterator


def seconds(drop):
    start = time.monotonic()
    drop()
    return time.monotonic() - start


holders = [begun()]
plain = seconds(holders.clear)

holder = [begun()]
holder.append(holder)
del holder
cycle = seconds(gc.collect)

print(f"dropped plainly: {plain:.1f} s; found in a cycle: {cycle:.1f} s")
assert plain < 4 and 9 < cycle < 20
PROGRAM
