#!/usr/bin/env bash
# Optuna's journal file never recovers from a process that died in the middle of a line.
#
# JournalFileBackend is optuna's store for many processes over a shared file system, where processes do die.
# Guess before: a torn last line is skipped or cut when the file is opened, as log-structured stores do.
# Seen (optuna 5.0.0): the next record is appended to the torn line, and from then on no study in the file can be read:
# JSONDecodeError for every process, for good, though all finished trials are still there in whole lines.
# What it means: cut the file behind its last newline before opening it, or use RDBStorage.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check optuna==5.0.0
cd "$work"
"$work/venv/bin/python" - <<'PROGRAM'
import json
from pathlib import Path
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
path = Path("study.log")

def one_more():
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    return len(study.trials)

for _ in range(3):
    count = one_more()
path.write_bytes(path.read_bytes()[:-25])  # a write that a kill cut short
outcomes = []
for _ in range(3):
    try:
        outcomes.append(one_more())
    except Exception as error:
        outcomes.append(type(error).__name__)

def readable(line):
    try:
        return bool(json.loads(line))
    except json.JSONDecodeError:
        return False

whole = sum(map(readable, path.read_bytes().splitlines()))
print(f"{count} trials, then a torn line, then: {outcomes}; {whole} whole records are still in the file")
assert outcomes == ["JSONDecodeError"] * 3 and whole > 10
PROGRAM
