#!/usr/bin/env bash
# torch.load and torch.distributed.checkpoint load a checkpoint with a flipped bit without a word.
#
# torch.save writes a zip archive, whose entries carry a CRC-32. Guess before: torch.load compares it, as every unzip does,
# except perhaps with mmap=True.
# Seen (torch 2.13.0): one flipped bit in a tensor's bytes loads as another number with torch.load (weights_only or not,
# mmap or not) and with dcp.load. zipfile.testzip() of the standard library names the damaged entry of the same file.
# safetensors (0.8.0) has no checksum in its format, and loads it too.
# What it means: keep a checksum of your own beside a checkpoint, and compare it before loading.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import zipfile
from pathlib import Path
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

weights = {"w": torch.arange(1000, dtype=torch.float32)}

def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(weights["w"].numpy().tobytes()[400:800]) + 3] ^= 0x40  # in the exponent of w[100]
    path.write_bytes(data)

torch.save(weights, "w.pt")
save_file(weights, "w.safetensors")
dcp.save(weights, checkpoint_id="dcp", no_dist=True)
for path in (Path("w.pt"), Path("w.safetensors"), *Path("dcp").glob("*.distcp")):
    flip(path)
loaded = {"w": torch.zeros(1000)}
dcp.load(loaded, checkpoint_id="dcp", no_dist=True)
found = {
    "torch.load": torch.load("w.pt")["w"],
    "torch.load, mmap": torch.load("w.pt", mmap=True)["w"],
    "torch.load, not weights_only": torch.load("w.pt", weights_only=False)["w"],
    "safetensors": load_file("w.safetensors")["w"],
    "dcp.load": loaded["w"],
}
damaged = zipfile.ZipFile("w.pt").testzip()
print({name: f"w[100] = {w[100].item():g}" for name, w in found.items()}, " zipfile.testzip():", damaged)
assert all((w != weights["w"]).sum() == 1 for w in found.values())
assert damaged == "w/data/0"
PROGRAM
