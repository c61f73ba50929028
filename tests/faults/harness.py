"""Print the figures of the fault matrix: `python -m tests.faults.harness`, or with `--quick` in a tenth of the time.

`--mutate NAME` runs it with one safeguard taken out, so that the rows that guard it must fail:

    rename       a checkpoint is written under its own name at once
    checksum     what is read is not compared with its checksum
    skip         a step that is not finite is taken all the same
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.faults import exports, ranks, reading, running, saving, training
from tests.faults.runs import Tally

Row = tuple[str, str, Callable[[], Tally]]


def rows(scale: float) -> list[Row]:
    def n(count: int) -> int:
        return max(round(count * scale), 4)

    stops = sorted({1, 5, 6, 7, 12, 17, *range(2, 18, max(round(1 / scale), 1))})
    table: list[Row] = [
        ("1", "killed at random moments of saving, newest verifies", lambda: saving.kills_at_random_moments(n(200))),
        ("2", "killed before each system call of a save", saving.kills_at_every_call),
        ("2b", "the same after going back to an older step: one line", lambda: saving.faults_after_going_back(True)),
        ("3", "files, directory, rename, parent: flushed in order", saving.flushed_in_order),
        ("4", "one bit flipped, refused and named", lambda: reading.damaged(n(1000), reading.flip)),
        ("5", "blocks zeroed or swapped, refused", lambda: reading.damaged(n(300), reading.zero_or_swap)),
        ("6", "truncated, refused and named", lambda: reading.damaged(n(200), reading.truncate)),
        ("6, 8", "file missing, a link, a pipe, a folder, another's", reading.missing_linked_and_swapped),
        ("7", "malicious pickles refused, nothing ran", reading.pickles_in_the_place_of_files),
        ("8, 9", "hostile headers, JSON and names refused, in 2 s and 150 MB", reading.bombs),
        ("10", "fuzzed states and manifests, no other error", lambda: reading.fuzzed(n(2000))),
        ("11", "disk full: named, what was there is whole", lambda: saving.disk_full(n(60))),
        ("12", "EIO at each system call, and a folder that vanished", saving.io_errors),
        ("12b", "EIO after going back to an older step: one line", lambda: saving.faults_after_going_back(False)),
        ("13", "two processes, one folder: one refused with the pid", lambda: saving.two_owners(n(20))),
        ("15", "SIGINT or SIGTERM: status, checkpoint, same run", lambda: running.stopped_by_signals(n(40))),
        ("17", "examples once an epoch, wherever it is interrupted", running.batches_after_resuming),
        ("20", "NaN or infinity: nothing changes", lambda: running.not_finite(n(100))),
        ("36", "other models and optimizers refused, nothing loaded", reading.other_runs),
        ("37", "newer formats refused with both numbers", reading.newer_formats),
    ]
    table += [
        ("R1", "a rank killed before each call and meeting of a save", lambda: ranks.kills_at_every_call(scale)),
        ("R2", "a rank killed at random moments of saving", lambda: ranks.kills_at_random_moments(n(100))),
        ("R3", "a full disk on one rank: one error on all, it goes on", lambda: ranks.full_disk(n(100))),
        ("R4", "SIGTERM to one rank: all stop at one step, same run", lambda: ranks.signals_to_one_rank(n(100))),
        ("R5", "an error on one rank ends all at one step, saved", lambda: ranks.errors_on_one_rank(n(100))),
        ("R6", "a wrong batch, NaN or one row on one rank: all or none", lambda: training.wrong_batches(n(102))),
        ("R6c", "the same, compiled", lambda: training.wrong_batches(n(102), "compiled")),
        ("R7", "a rank killed within a step: the others say so", lambda: training.killed_in_steps(n(100))),
        ("R8", "a rank that raises: the others say so", lambda: training.killed_in_steps(n(100), by_error=True)),
        ("R7c", "as R7, compiled", lambda: training.killed_in_steps(n(100), backend="compiled")),
        ("R8c", "as R8, compiled", lambda: training.killed_in_steps(n(100), by_error=True, backend="compiled")),
        ("R9", "a rank of a loop killed, resumed otherwise", lambda: training.loops_interrupted(n(100), kill=True)),
        ("R10", "SIGTERM to one rank, resumed otherwise", lambda: training.loops_interrupted(n(100), kill=False)),
        ("R9c", "as R9, compiled", lambda: training.loops_interrupted(n(100), kill=True, backend="compiled")),
        ("R10c", "as R10, compiled", lambda: training.loops_interrupted(n(100), kill=False, backend="compiled")),
        ("R11", "a rank killed before each call of a DCP save", lambda: exports.kills_at_every_call(scale)),
        ("R12", "a full disk on one rank in a DCP save", lambda: exports.full_disk(n(100))),
    ]
    for backend in ("eager", "compiled"):
        for rule in ("sgd", "adam", "adamw"):
            work = lambda rule=rule, backend=backend: running.resumed_anywhere(rule, backend, stops)  # noqa: E731
            table.append(
                ("16c" if backend == "compiled" else "16", f"resumed at step k, bit-identical: {rule}, {backend}", work)
            )
    return table


def mutate(name: str) -> None:
    """Take one safeguard out, in this process."""
    from shaped.backends import eager
    from shaped.checkpoint import checkpoints, files
    from shaped.checkpoint.codec import split

    if name == "rename":

        def in_place(folder: Path, name: str, state: Any, about: Any, **others: Any) -> Path:
            (folder / name).mkdir(exist_ok=True)
            for old in (folder / name).iterdir():
                old.unlink()
            files._write_files(folder / name, *split(state), about)
            return folder / name

        checkpoints.write_checkpoint = in_place  # type: ignore
    elif name == "checksum":
        files.checksum = lambda path: 0
        files.zlib = SimpleNamespace(crc32=lambda content: 0)  # type: ignore
    elif name == "skip":
        eager.all_finite = lambda tensors, own=True: True  # type: ignore[attr-defined]
    else:
        raise SystemExit(f"no safeguard {name!r}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Figures of the fault matrix.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--rows", default="", help="only these, as 1,4,20")
    parser.add_argument("--mutate", default="", help="rename, checksum or skip")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads do not survive a fork
    if options.mutate:
        mutate(options.mutate)
    wanted, failed = options.rows.split(",") if options.rows else [], 0
    for number, title, work in rows(0.1 if options.quick else 1.0):
        if wanted and not set(number.split(", ")) & set(wanted):
            continue
        began = time.monotonic()
        good, tried = work()
        failed += good < tried
        print(f"{number:>5}  {title:<60} {good:>5} of {tried:<5} {time.monotonic() - began:6.1f} s", flush=True)
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}: {failed} rows failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
