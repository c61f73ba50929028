#!/usr/bin/env bash
# torchmetrics' R2Score is exactly 1.0, a perfect score, for useless predictions of small targets.
#
# Guess before: R^2 has no unit, so targets of 1e-4 (daily returns, learning rates, rare probabilities) score as the same
# targets times 10,000 do.
# Seen (torchmetrics 1.9.0): sums of squares are compared with an absolute tolerance of 1e-4 to find a constant target, and
# below it the score is 1.0. Predictions that are independent of the target score -0.93 in one unit and 1.0 in another,
# where scikit-learn says -0.93 in both. No warning.
# What it means: scale targets to unit variance before scoring, or score with scikit-learn.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 scikit-learn==1.9.0
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import torch
from sklearn.metrics import r2_score
from torchmetrics import R2Score

g = torch.Generator().manual_seed(0)
target, unrelated = torch.randn(1000, generator=g), torch.randn(1000, generator=g)
scores = {}
for unit in (1.0, 1e-4):
    metric = R2Score()
    metric.update(unit * unrelated, unit * target)
    scores[unit] = (metric.compute().item(), float(r2_score(unit * target.double(), unit * unrelated.double())))
print("unit: (torchmetrics, scikit-learn)", scores)
assert abs(scores[1.0][0] - scores[1.0][1]) < 1e-4 and scores[1.0][0] < -0.5
assert scores[1e-4][0] == 1.0 and scores[1e-4][1] < -0.5
PROGRAM
