"""What was found of each function, and how it is printed: a line, a statement, JSON, a workflow command."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shaped.errors import Source

Status = Literal["proved", "refuted", "unprovable", "error", "ignored"]


class Shape(NamedTuple):
    """The shape of an expression of the file, as it was found."""

    line: int
    start: int  # in characters, from 0
    end: int
    text: str  # "[batch, 4*dim]"


@dataclass(frozen=True)
class Verdict:
    """What was found of one function."""

    function: str
    file: str
    line: int  # of its definition
    status: Status
    summary: str  # the conditions, or the reason, in a line
    message: str  # the statement, or the whole error
    source: Source | None = None  # where it is wrong
    conditions: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    seconds: float = 0.0
    shapes: tuple[Shape, ...] = ()  # of what the first proof met in this file
    context: tuple[tuple[str, str, str], ...] = ()  # of a fault: name, shape, where it comes from
    hint: str = ""
    header: int = 1  # lines of the definition, decorators included, on which a comment about it may stand

    def as_json(self) -> dict[str, Any]:
        """Plain values; `line` is that of the fault where there is one."""
        return {
            "function": self.function,
            "file": self.source.file if self.source else self.file,
            "line": self.source.line if self.source else self.line,
            "status": self.status,
            "summary": self.summary,
            "conditions": list(self.conditions),
            "message": self.message,
            "seconds": round(self.seconds, 3),
        }

    def as_annotation(self) -> str:
        """A workflow command that GitHub shows beside the line."""
        where = f"file={relative(self.source.file if self.source else self.file)}"
        line = self.source.line if self.source else self.line
        text = self.message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return f"::error {where},line={line},title={self.status}: {self.function}::{text}"


def report(verdicts: Sequence[Verdict], form: Literal["text", "json"], *, whole: bool, steps: bool) -> Iterator[str]:
    """The lines to print.

    Args:
        whole: Print each statement whole, not a line of it.
        steps: Print the derivations too.
    """
    if form == "json":
        yield json.dumps([verdict.as_json() for verdict in verdicts], indent=2)
        return
    places = [f"{Path(v.file).name}:{v.line}" for v in verdicts]
    wide, long = max(map(len, places)), max(len(v.function) for v in verdicts)
    for verdict, place in zip(verdicts, places, strict=True):
        if not whole:
            yield f"{verdict.status:<10}  {place:<{wide}}  {verdict.function:<{long}}  {verdict.summary}".rstrip()
        elif verdict.status == "proved":
            yield verdict.message
        if steps and verdict.steps:
            yield from ("", *verdict.steps, "")
    wrong = [verdict for verdict in verdicts if verdict.status not in ("proved", "ignored")]
    for i, verdict in enumerate(wrong):
        yield verdict.message if whole and i == 0 else f"\n{verdict.message}"
    if os.environ.get("GITHUB_ACTIONS") == "true":
        yield from (verdict.as_annotation() for verdict in wrong)
    silenced = sum(verdict.status == "ignored" for verdict in verdicts)
    more = f", {silenced} ignored" if silenced else ""
    yield f"\n{len(verdicts) - len(wrong) - silenced} proved, {len(wrong)} not{more}"


def relative(file: str) -> str:
    """A path as seen from here, where it is below."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
