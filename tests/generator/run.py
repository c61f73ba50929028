"""Hold random programs against brute force: `python -m tests.generator.run --count 1000 --seed 7`.

Verdicts are appended to a file as they come, so that a run that was stopped goes on with what is left.
"""

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.generator.judging import FAULTS, PROVED, REFUTED, UNPROVABLE, judge
from tests.generator.programs import make

_EACH = 100  # programs for one process of a pool, which then makes room for another: a start costs as much as twenty
_COLLECTED = 20  # programs between two collections of garbage, which else take an eighth of the time


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the rates and the programs that went wrong; 1 if one did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="which programs")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=None, help="verdicts as lines of JSON; an old file is gone on with")
    parser.add_argument("--quiet", action="store_true", help="the rates alone")
    options = parser.parse_args(arguments)
    verdicts = list(_verdicts(options))
    print(report(verdicts, () if options.quiet else FAULTS))
    return int(any(v["kind"] in FAULTS for v in verdicts))


def _verdicts(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    wanted = [f"{options.seed}:{i}" for i in range(options.first, options.first + options.count)]
    known: dict[str, dict[str, Any]] = {}
    if options.out is not None and options.out.exists():
        lines = options.out.read_text().splitlines()
        known = {one["number"]: one for one in map(json.loads, lines) if one["number"] in set(wanted)}
    yield from known.values()
    left = [number for number in wanted if number not in known]
    with tempfile.TemporaryDirectory() as folder:
        work = partial(verdict, folder=folder)
        with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
            batches = [left[i : i + _EACH] for i in range(0, len(left), _EACH)]
            for some in pool.imap_unordered(work, batches):
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.writelines(json.dumps(one) + "\n" for one in some)
                yield from some


def verdict(numbers: Sequence[str], folder: str) -> list[dict[str, Any]]:
    """Judge some programs in this process."""
    torch.set_num_threads(1)
    gc.disable()
    found = []
    for n, number in enumerate(numbers):
        found.append(judge(make(*map(int, number.split(":"))), Path(folder)).plain())
        if n % _COLLECTED == 0:
            gc.collect()
    gc.enable()
    return found


def report(verdicts: Sequence[dict[str, Any]], shown: Sequence[str] = FAULTS) -> str:
    """The rates, and the programs of some kinds."""
    counts = Counter(one["kind"] for one in verdicts)
    lines = []
    for one in verdicts:
        if one["kind"] in shown:
            source = make(*map(int, one["number"].split(":"))).source
            where = ", ".join(f"{name} = {size}" for name, size in one["shown"].items())
            lines += [f"--- {one['number']} {one['kind']} {where} {list(one['conditions'])}", one["said"]]
            lines += [source[source.index("def ") :]]
    total = max(len(verdicts), 1)
    lines += [
        f"{kind:<16} {counts[kind]:>6}   {100 * counts[kind] / total:.3f} %"
        for kind in (*FAULTS, PROVED, REFUTED, UNPROVABLE)
    ]
    right = sum(one["kind"] == UNPROVABLE and one["right"] == 1.0 for one in verdicts)
    nameless = sum(one["kind"] == REFUTED and not one["shown"] for one in verdicts)
    seconds = sorted(one["seconds"] for one in verdicts)
    lines += [f"{'programs':<16} {len(verdicts):>6}"]
    lines += [f"{right} of the unprovable are right at every size tried; {nameless} were refuted without sizes"]
    if seconds:
        lines += [f"seconds a proof: median {seconds[len(seconds) // 2]:.2f}, largest {seconds[-1]:.2f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
