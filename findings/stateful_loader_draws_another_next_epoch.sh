#!/usr/bin/env bash
# After a resume within an epoch, torchdata's StatefulDataLoader shuffles the next epoch in another order.
#
# Guess before: its state holds the generator, so the resumed run sees the rows of the uninterrupted one for good.
# Seen (torchdata 0.11.0, torch 2.13.0, num_workers=0): the rest of the interrupted epoch is right. The epoch behind it is
# another permutation than in the uninterrupted run. No warning.
# What it means: a resumed run is the run until the end of its epoch; seed the generator by epoch to keep it so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchdata==0.11.0
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import warnings
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

warnings.simplefilter("ignore")

def loader():
    return StatefulDataLoader(list(range(16)), 4, shuffle=True, generator=torch.Generator().manual_seed(7))

whole = loader()
rows = [batch.tolist() for _ in range(2) for batch in whole]  # two epochs of four batches
first, second = loader(), loader()
batches = iter(first)
seen = [next(batches).tolist() for _ in range(3)]
second.load_state_dict(first.state_dict())
seen += [batch.tolist() for _ in range(2) for batch in second][:5]
print("the interrupted epoch is alike:", seen[:4] == rows[:4], " the next:", seen[4:8] == rows[4:8])
print("  uninterrupted", rows[4:8])
print("  resumed      ", seen[4:8])
assert seen[:4] == rows[:4] and seen[4:8] != rows[4:8]
assert sorted(sum(seen[4:8], [])) == list(range(16))
PROGRAM
