#!/usr/bin/env bash
# beartype draws from the module `random`'s own generator at each check of a container: a type check changes a seeded run.
#
# Guess before: the item of a list that is looked at comes from a generator of beartype's own, so checks change nothing.
# Seen (beartype 0.23.1, jaxtyping 0.3.11, torch 2.13.0): after random.seed(0), a call of a function with an argument of
# type list[int] under @beartype, or list[Float[Tensor, "n"]] under @jaxtyped(typechecker=beartype), leaves
# random.random() at its second number. A plain int, or one tensor, moves nothing. BeartypeConf(is_random=False), which
# 0.21 does not know, looks at the first item instead.
# What it means: annotating one more argument, or leaving the checks out in production, gives another shuffle, mixup or
# teacher forcing at the same seed. Check containers under is_random=False, or put the generator's state back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 jaxtyping==0.3.11 beartype==0.23.1
cd "$work"
cat > checked.py <<'PROGRAM'
import random

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor


@beartype
def plain(x: list[int]) -> None: ...


@beartype(conf=BeartypeConf(is_random=False))
def fixed(x: list[int]) -> None: ...


@beartype
def number(x: int) -> None: ...


@jaxtyped(typechecker=beartype)
def layers(x: list[Float[Tensor, " n"]]) -> None: ...


def moved(call) -> bool:
    call()  # what the first call imports is not meant
    random.seed(0)
    before = random.getstate()
    call()
    return random.getstate() != before


seen = {
    "list[int]": moved(lambda: plain([1, 2, 3])),
    "list of tensors": moved(lambda: layers([torch.zeros(2), torch.zeros(2)])),
    "int": moved(lambda: number(1)),
    "list[int], is_random=False": moved(lambda: fixed([1, 2, 3])),
}
print("moves random's generator:", seen)
assert seen == {"list[int]": True, "list of tensors": True, "int": False, "list[int], is_random=False": False}
PROGRAM
"$work/venv/bin/python" checked.py
