"""What an editor shows of a checked file: faults at their expressions, shapes in names, and fixes that were tried.

Lines are counted from 1 and columns in characters from 0. Nothing here knows an editor's protocol.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shaped.check.ignoring import Unused
from shaped.check.verdicts import Shape, Verdict

_FIX = re.compile(r"; did you mean (.+) \?$")  # the whole expression with the change in it
_ORIGIN = re.compile(r"^(?:declared at|from) (.+):(\d+)$")
_ALTERNATIVES = 3  # shapes of one expression that are shown
_SEVERITIES: dict[str, Literal["error", "warning"]] = {"refuted": "error", "error": "error", "unprovable": "warning"}


@dataclass(frozen=True)
class Mark:
    """A fault at a part of a line.

    Attributes:
        related: Lines of the same file, and what is said of them.
        fix: What to write instead of the marked part; empty if nothing was tried that goes through.
    """

    line: int
    start: int
    end: int
    severity: Literal["error", "warning"]
    rule: str
    message: str
    related: tuple[tuple[int, str], ...] = ()
    fix: str = ""


def marks(verdicts: Sequence[Verdict], file: Path, lines: Sequence[str]) -> Iterator[Mark]:
    """The faults of a file, each at its expression, or at the definition where the fault lies in another file."""
    for verdict in verdicts:
        if verdict.status not in _SEVERITIES:
            continue
        severity, source = _SEVERITIES[verdict.status], verdict.source
        related = [(n, f"{name} : {shape}") for name, shape, where in verdict.context
                   if (n := _line(where, file)) is not None]  # fmt: skip
        inside = source is not None and Path(source.file) == file and source.line <= len(lines)
        line = source.line if source is not None and inside else verdict.line
        raw = lines[line - 1] if line <= len(lines) else ""
        start, end = len(raw) - len(raw.lstrip()), len(raw.rstrip())
        fix = ""
        if inside and source is not None and source.marks:
            end = start + len(source.marks)
            start += len(source.marks) - len(source.marks.lstrip())
            found = _FIX.search(verdict.hint)
            fix = found[1] if found is not None and verdict.status == "refuted" else ""
        if inside and line != verdict.line:
            related.append((verdict.line, f"in `{verdict.function}`"))
        yield Mark(line, start, max(start + 1, end), severity, verdict.status, verdict.message, tuple(related), fix)


def useless(comments: Sequence[Unused], lines: Sequence[str]) -> Iterator[Mark]:
    """Comments that ignore nothing, each at its text."""
    for comment in comments:
        raw = lines[comment.line - 1] if comment.line <= len(lines) else ""
        yield Mark(comment.line, max(0, raw.rfind("#")), max(1, len(raw.rstrip())), "warning", "unused", comment.said)


def _line(where: str, file: Path) -> int | None:
    """The line of `declared at model.py:9`, if that is this file."""
    found = _ORIGIN.match(where)
    return int(found[2]) if found is not None and found[1] == file.name else None


def hover(verdicts: Sequence[Verdict], text: str, line: int, column: int) -> str:
    """What is known of a place: the shape of an expression or a variable, or the statement at a definition."""
    lines = text.splitlines()
    shapes = _by_place([shape for verdict in verdicts for shape in verdict.shapes])
    name = _name_at(lines, line, column)
    if name:
        known = [a for a in _assigned(text, shapes) if a.name == name and a.first <= line <= a.last and a.line <= line]
        if known:
            return f"{name} : {known[-1].shape}"
    inside = [(end - start, at, start, end) for at, start, end in shapes if at == line and start <= column < end]
    if inside:
        _, at, start, end = min(inside)
        return f"{lines[at - 1][start:end]} : {_shown(shapes[at, start, end])}"
    return next((v.message for v in verdicts if v.line <= line < v.line + v.header), "")


def inlays(verdicts: Sequence[Verdict], text: str) -> list[tuple[int, int, str]]:
    """Where a variable gets its value: line, column after its name, and its shape."""
    shapes = _by_place([shape for verdict in verdicts for shape in verdict.shapes])
    return [(a.line, a.end, a.shape) for a in _assigned(text, shapes)]


Places = dict[tuple[int, int, int], list[str]]


def _by_place(shapes: Sequence[Shape]) -> Places:
    found: Places = {}
    for shape in shapes:
        known = found.setdefault((shape.line, shape.start, shape.end), [])
        if shape.text not in known:
            known.append(shape.text)
    return found


def _shown(texts: Sequence[str]) -> str:
    more = " or ..." if len(texts) > _ALTERNATIVES else ""
    return " or ".join(texts[:_ALTERNATIVES]) + more


@dataclass(frozen=True)
class _Assigned:
    """A variable that gets the value of an expression whose shape is known."""

    name: str
    line: int
    end: int  # of its name
    shape: str
    first: int  # lines of the function
    last: int


def _assigned(text: str, shapes: Places) -> list[_Assigned]:
    """Assignments of one name, in order."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    lines, found = text.splitlines(), list[_Assigned]()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
                continue
            value, target = node.value, node.targets[0]
            start = _characters(lines, value.lineno, value.col_offset)
            ends = {end: known for (at, begins, end), known in shapes.items() if (at, begins) == (value.lineno, start)}
            single = value.end_lineno == value.lineno
            end = _characters(lines, value.lineno, value.end_col_offset or 0) if single else max(ends, default=0)
            if end in ends:
                after = _characters(lines, target.lineno, target.end_col_offset or 0)
                found.append(_Assigned(target.id, target.lineno, after, _shown(ends[end]), function.lineno,
                                       function.end_lineno or function.lineno))  # fmt: skip
    return sorted(set(found), key=lambda a: (a.line, a.end))


def _characters(lines: Sequence[str], line: int, column: int) -> int:
    """A column of Python's trees, which count bytes of UTF-8."""
    return len(lines[line - 1].encode()[:column].decode(errors="ignore")) if line <= len(lines) else column


def _name_at(lines: Sequence[str], line: int, column: int) -> str:
    """The name under a cursor; empty where it is an attribute, or none."""
    if not 1 <= line <= len(lines):
        return ""
    for found in re.finditer(r"[^\W\d]\w*", lines[line - 1]):
        if found.start() <= column < found.end():
            return "" if lines[line - 1][: found.start()].endswith(".") else found[0]
    return ""
