"""A run of the checker over files, packages and modules: workers side by side, what they found, and the exit status."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from shaped.check.files import Job
from shaped.check.ignoring import Unused, ignored
from shaped.check.sarif import as_sarif
from shaped.check.verdicts import Verdict, relative
from shaped.check.worker import Answer, CheckOptions, ask

Form = Literal["text", "json", "sarif"]


@dataclass(frozen=True)
class FileFindings:
    """What was found of one file."""

    answer: Answer
    verdicts: list[Verdict]
    unused: list[Unused]


def check_project(
    jobs: Sequence[Job], options: CheckOptions, *, workers: int, seconds: float, keep: bool = True
) -> Iterator[FileFindings]:
    """Check files, some at a time; in their order.

    Args:
        workers: How many at a time.
        seconds: For one file.
        keep: Use what earlier runs found of files that have not changed.
    """
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for answer in pool.map(partial(ask, options=options, seconds=seconds, keep=keep), jobs):
            verdicts, unused = ignored(answer.verdicts, whole=not answer.job.name)
            yield FileFindings(answer, verdicts, unused)


def report_project(found: Iterator[FileFindings], form: Form) -> tuple[int, Iterator[str]]:
    """The exit status and what is printed: 0 all is proved, 1 something is not, 2 a file could not be checked."""
    every = list(found)
    verdicts = [verdict for one in every for verdict in one.verdicts]
    wrong = [verdict for verdict in verdicts if verdict.status not in ("proved", "ignored")]
    unused = [comment for one in every for comment in one.unused]
    failed = [one.answer for one in every if one.answer.failure]
    status = 2 if failed else 1 if wrong or unused else 0
    if form == "sarif":
        return status, iter([json.dumps(as_sarif(wrong), indent=2)])
    if form == "json":
        said = {"verdicts": [v.as_json() for v in verdicts], "unused": [str(c) for c in unused],
                "failed": [answer.failure for answer in failed]}  # fmt: skip
        return status, iter([json.dumps(said, indent=2)])
    return status, _text(every, wrong, unused, failed)


def _text(
    every: Sequence[FileFindings], wrong: Sequence[Verdict], unused: Sequence[Unused], failed: Sequence[Answer]
) -> Iterator[str]:
    for one in every:
        yield from (
            f"{v.status:<10}  {relative(v.file)}:{v.line}  {v.function}  {v.summary}".rstrip() for v in one.verdicts
        )
    for verdict in wrong:
        yield f"\n{verdict.message}"
    yield from (f"\nunused      {comment}" for comment in unused)
    yield from (f"\nfailed      {answer.failure}" for answer in failed)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        yield from (verdict.as_annotation() for verdict in wrong)
    count = sum(len(one.verdicts) for one in every)
    kept = sum(one.answer.kept for one in every)
    ignored_ones = sum(v.status == "ignored" for one in every for v in one.verdicts)
    parts = [f"{count - len(wrong) - ignored_ones} proved, {len(wrong)} not"]
    parts += [f"{ignored_ones} ignored"] if ignored_ones else []
    parts += [f"{len(failed)} of {len(every)} files could not be checked"] if failed else []
    parts += [f"{kept} of {len(every)} files unchanged"] if kept else []
    yield f"\n{', '.join(parts)}"
