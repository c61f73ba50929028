#!/usr/bin/env bash
# torch's attention on a CPU takes as many keys as there are values: others are left out, or read beyond the tensor.
#
# Guess before: F.scaled_dot_product_attention refuses keys [.., 5, d] with values [.., 7, d], as the product would.
# Seen (torch 2.11.0, 2.13.0 and 2.14.1, CPU): the default kernel says nothing. With 7 keys and 5 values the last two keys
# are left out, bit for bit. With 5 keys and 7 values it reads two keys from the memory behind them: here the keys are
# the first 5 rows of 7, so it is seen; in a tensor of its own it is whatever lies there. SDPBackend.MATH refuses both.
# What it means: hold the lengths of keys and values against each other before the call.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.manual_seed(0)
query, keys, values = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 7, 8), torch.randn(1, 1, 7, 8)
attention = F.scaled_dot_product_attention

left_out = attention(query, keys, values[:, :, :5]).equal(attention(query, keys[:, :, :5], values[:, :, :5]))
beyond = attention(query, keys[:, :, :5], values).equal(attention(query, keys, values))
refused = []
for key, value in ((keys, values[:, :, :5]), (keys[:, :, :5], values)):
    try:
        with sdpa_kernel(SDPBackend.MATH):
            attention(query, key, value)
    except RuntimeError as error:
        refused.append(str(error).splitlines()[0])
print("7 keys and 5 values give what 5 keys give:", left_out, " 5 keys and 7 values read on behind the keys:", beyond)
print("SDPBackend.MATH:", refused)
assert left_out
assert beyond
assert len(refused) == 2
PROGRAM
