#!/usr/bin/env bash
# all_reduce with MAX or MIN over gloo keeps a NaN of rank 0 and drops one of rank 1.
#
# Guess before: a NaN of any rank reaches all, as torch.maximum has it (or none does, as torch.fmax has it).
# Seen (torch 2.13.0, CPU, gloo, two processes): with [NaN, 1.0] on ranks 0 and 1 both ranks get NaN, and with
# [1.0, NaN] both get 1.0; MIN likewise.
# What it means: the largest absolute value of a sharded tensor (a scale for eight bits, an infinity norm, a clip) is NaN
# or an ordinary number by which rank has the NaN, and the ordinary number is what training goes on with.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
cat > program.py <<'PROGRAM'
import sys

import torch
import torch.distributed as dist

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
nan = float("nan")
for name in ("MAX", "MIN"):
    for values in ([nan, 1.0], [1.0, nan]):
        here = torch.tensor([values[rank]])
        dist.all_reduce(here, getattr(dist.ReduceOp, name))
        print(name, values, "->", here.item())
dist.destroy_process_group()
PROGRAM
"$work/venv/bin/python" program.py 1 "$work/store" > "$work/other" 2> /dev/null &
seen=$("$work/venv/bin/python" program.py 0 "$work/store" 2> /dev/null)
wait
echo "$seen"
test "$seen" = "$(cat "$work/other")"
test "$seen" = "MAX [nan, 1.0] -> nan
MAX [1.0, nan] -> 1.0
MIN [nan, 1.0] -> nan
MIN [1.0, nan] -> 1.0"
