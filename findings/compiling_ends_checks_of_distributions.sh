#!/usr/bin/env bash
# To make one compiled function switches the checks of torch.distributions off, for the whole process and for good.
#
# Guess before: torch.compile leaves out the checks in what it compiles; elsewhere Normal(0, -1) stays an error.
# Seen (torch 2.11.0, 2.13.0 and 2.14.1): torch.compile(f) alone, without a call, and with any backend, sets the default of
# validate_args to False. From then on eager code takes a negative scale, and sample gives numbers.
# What it means: say validate_args=True where an argument must be checked.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from torch.distributions import Normal


def refused(**said):
    try:
        Normal(0.0, -1.0, **said)
    except ValueError:
        return True
    return False


before = refused()
torch.compile(lambda x: x + 1, backend="eager")
after, said = refused(), refused(validate_args=True)
print(f"Normal(0, -1) is refused: before {before}, after {after}, with validate_args=True {said}")
assert (before, after, said) == (True, False, True)
PROGRAM
