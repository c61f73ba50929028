#!/usr/bin/env bash
# An exported LSTM, GRU or RNN of several layers, decomposed, trains without the dropout between its layers.
#
# Guess before: `torch.export.export(module).run_decompositions()` of a module in training mode computes what the module
# computes, dropout included, as it does for nn.Dropout and for attention.
# Seen (torch 2.13.0; 2.11.0 and 2.14.1 too): of two layers with dropout=0.5 the exported program is exactly the module
# without dropout. No operation that draws is left in its graph, two calls give the same numbers, and with dropout=1.0
# (the second layer sees zeros, so that nothing is left to chance) it differs from the module by more than 0.01. torch's
# decomposition of recurrent layers compares the number of layers with the layer's index the wrong way round, and so sets
# dropout to 0 for each of them. No warning.
# What it means: whoever traces below autograd (make_fx with the Python dispatcher, AOTAutograd, export to train
# elsewhere) regularises less than the eager program. Call the layers one by one, with nn.Dropout between them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(7, 2, 5)
seen = {}
for kind in (nn.LSTM, nn.GRU, nn.RNN):
    for rate in (0.5, 1.0):
        module = kind(5, 6, num_layers=2, dropout=rate).train()
        without = kind(5, 6, num_layers=2)
        without.load_state_dict(module.state_dict())
        program = torch.export.export(module, (x,)).run_decompositions()
        draws = [str(n.target) for n in program.graph.nodes if "drop" in str(n.target) or "bernoulli" in str(n.target)]
        with torch.no_grad():
            exported, again, plain, eager = program.module()(x)[0], program.module()(x)[0], without(x)[0], module(x)[0]
        seen[kind.__name__, rate] = (
            draws,
            torch.equal(exported, again),
            torch.allclose(exported, plain, atol=1e-6),
            float((exported - eager).abs().max()) > 0.01,
        )
for key, what in seen.items():
    print(*key, "draws in the graph, same twice, as without dropout, differs from the module:", *what)
assert all(what == ([], True, True, True) for what in seen.values())
PROGRAM
