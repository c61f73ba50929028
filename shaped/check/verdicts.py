"""What was found of each function, and how it is printed: a line, a statement, plain values, a workflow command."""

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
    dims: tuple[str, ...] = ()  # the names of sizes that it has, as far as they are known
    factories: tuple[str, ...] = ()  # what they make that was asked for: `Net`, `mode`, `loss.scale`
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
        level: Literal["error", "warning"] = "warning" if self.status == "unprovable" else "error"
        file, line = (self.source.file, self.source.line) if self.source else (self.file, self.line)
        return annotation(level, file, line, f"{self.status}: {self.function}", self.message)


def annotation(level: Literal["error", "warning"], file: str, line: int, title: str, text: str) -> str:
    """A workflow command of GitHub: in its properties, colons and commas are escaped, too."""

    def escaped(value: str, more: Sequence[tuple[str, str]] = ()) -> str:
        for character, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), *more):
            value = value.replace(character, code)
        return value

    where, called = (escaped(value, ((":", "%3A"), (",", "%2C"))) for value in (relative(file), title))
    return f"::{level} file={where},line={max(1, line)},title={called}::{escaped(text)}"


def lines_of(verdicts: Sequence[Verdict], *, whole: bool, steps: bool) -> Iterator[str]:
    """A line for each verdict of a file, or its whole statement where it is proved; what is wrong comes after all."""
    places = [f"{relative(v.file)}:{v.line}" for v in verdicts]
    wide, long = max(map(len, places), default=0), max((len(v.function) for v in verdicts), default=0)
    for verdict, place in zip(verdicts, places, strict=True):
        if not whole or verdict.status == "ignored":
            yield f"{verdict.status:<10}  {place:<{wide}}  {verdict.function:<{long}}  {verdict.summary}".rstrip()
        elif verdict.status == "proved":
            yield verdict.message
        if steps and verdict.steps:
            yield from ("", *verdict.steps, "")


def relative(file: str) -> str:
    """A path as seen from here, where it is below."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
