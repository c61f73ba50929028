"""A run of the checker over files, packages and modules: workers side by side, what they found, and the exit status."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shaped.check.files import Job
from shaped.check.ignoring import Unused, ignored
from shaped.check.instances import made_by
from shaped.check.sarif import as_sarif
from shaped.check.verdicts import Verdict, annotation, lines_of
from shaped.check.worker import Answer, CheckOptions, ask_each
from shaped.errors import nearest

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
    for answer in ask_each(jobs, options, workers, seconds, keep):
        verdicts, unused = ignored(answer.verdicts, whole=not answer.job.name and not answer.failure)
        yield FileFindings(answer, verdicts, unused)


def one_file(found: FileFindings) -> FileFindings:
    """The findings of a file that was named alone, which has something to prove."""
    answer = found.answer
    if answer.failure or answer.verdicts:
        return found
    said = f'{answer.job.file} has no function whose arguments are annotated with shapes (x: Float[Tensor, "a b"])'
    return replace(found, answer=replace(answer, failure=f"ShapedError: {said}"))


@dataclass
class Report:
    """What a run prints, and its exit status: 0 all is proved, 1 something is not, 2 a file could not be checked.

    Args:
        named: Names of dimensions that the command gives, each of which a function has to have.
        made: Factories that the command gives, each of which a function has to ask for.
        whole: Print each statement whole, not a line of it.
        steps: Print the derivations too.
    """

    form: Form = "text"
    named: Sequence[str] = ()
    made: Sequence[str] = ()
    whole: bool = False
    steps: bool = False
    status: int = 0

    def lines(self, found: Iterable[FileFindings]) -> Iterator[str]:
        """The lines, as files are checked."""
        every: list[FileFindings] = []
        for one in found:
            every.append(one)
            if self.form == "text":
                yield from lines_of(one.verdicts, whole=self.whole, steps=self.steps)
        verdicts = [verdict for one in every for verdict in one.verdicts]
        wrong = [verdict for verdict in verdicts if verdict.status not in ("proved", "ignored")]
        unused = [comment for one in every for comment in one.unused]
        failed = [one.answer for one in every if one.answer.failure]
        failures = [*(answer.failure for answer in failed), *_strangers(self.named, self.made, every)]
        self.status = 2 if failures else 1 if wrong or unused else 0
        if self.form == "sarif":
            yield json.dumps(as_sarif(wrong, unused, failures), indent=2)
        elif self.form == "json":
            said = {"verdicts": [v.as_json() for v in verdicts], "unused": [str(c) for c in unused],
                    "failed": failures}  # fmt: skip
            yield json.dumps(said, indent=2)
        else:
            blocks = [*(v.message for v in wrong), *(f"unused      {comment}" for comment in unused),
                      *(f"failed      {failure}" for failure in failures)]  # fmt: skip
            bare = self.whole and not any(v.status in ("proved", "ignored") for v in verdicts)
            yield from (block if bare and i == 0 else f"\n{block}" for i, block in enumerate(blocks))
            yield from _annotations(wrong, unused, failed)
            yield f"\n{_counts(every, wrong, len(failed))}"


def _strangers(named: Sequence[str], made: Sequence[str], every: Sequence[FileFindings]) -> list[str]:
    """What to say of names and factories that no function has or asks for; nothing where one was not looked at."""
    verdicts = [verdict for one in every for verdict in one.verdicts]
    if any(one.answer.failure for one in every) or any(v.status == "unprovable" and not v.dims for v in verdicts):
        return []
    known = list(dict.fromkeys(name for verdict in verdicts for name in verdict.dims))
    which = f"`{verdicts[0].function}`" if len(verdicts) == 1 else "a function that was checked"
    found = [f"SignatureError: `{name}` is no dimension of {which}{nearest(name, known)}"
             for name in dict.fromkeys(named) if name not in known]  # fmt: skip
    asked = {key for verdict in verdicts for key in verdict.factories}
    where = which if len(verdicts) == 1 else "no function that was checked"
    unasked = [text for text in dict.fromkeys(made) if made_by(text) not in asked]
    denied = "does not ask" if len(verdicts) == 1 else "asks"
    return [*found, *(f"ShapedError: --make {text}: {where} {denied} for `{made_by(text)}`" for text in unasked)]


def _annotations(wrong: Sequence[Verdict], unused: Sequence[Unused], failed: Sequence[Answer]) -> Iterator[str]:
    """What GitHub shows beside the lines."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        yield from (verdict.as_annotation() for verdict in wrong)
        yield from (annotation("warning", one.file, one.line, "unused", one.said) for one in unused)
        yield from (annotation("error", str(answer.job.file), 1, "failed", answer.failure) for answer in failed)


def _counts(every: Sequence[FileFindings], wrong: Sequence[Verdict], failed: int) -> str:
    count = sum(len(one.verdicts) for one in every)
    kept = sum(one.answer.kept for one in every)
    silenced = sum(v.status == "ignored" for one in every for v in one.verdicts)
    parts = [f"{count - len(wrong) - silenced} proved, {len(wrong)} not"]
    parts += [f"{silenced} ignored"] if silenced else []
    parts += [f"{failed} of {len(every)} files could not be checked"] if failed else []
    parts += [f"{kept} of {len(every)} files unchanged"] if kept else []
    return ", ".join(parts)
