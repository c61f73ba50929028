#!/usr/bin/env bash
# torch's attention on a CPU takes as many keys as there are values, and leaves the others out without a word.
#
# Guess before: F.scaled_dot_product_attention refuses keys [.., 7, d] with values [.., 5, d], as the product would.
# Seen (torch 2.11.0, 2.13.0 and 2.14.1, CPU): the default kernel says nothing. With 7 keys and 5 values the last two keys
# are left out, bit for bit. SDPBackend.MATH refuses.
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
query, keys, values = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 7, 8), torch.randn(1, 1, 5, 8)
attention = F.scaled_dot_product_attention

left_out = attention(query, keys, values).equal(attention(query, keys[:, :, :5], values))
refused = ""
try:
    with sdpa_kernel(SDPBackend.MATH):
        attention(query, keys, values)
except RuntimeError as error:
    refused = str(error).splitlines()[0]
print("7 keys and 5 values give what 5 keys give:", left_out)
print("SDPBackend.MATH:", refused)
assert left_out
assert refused
PROGRAM
