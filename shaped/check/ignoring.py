"""`# shaped: ignore[refuted]` at the line of a fault or of a definition: what it silences, and what is of no use."""

import io
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from shaped.check.verdicts import Status, Verdict, relative
from shaped.errors import nearest

_COMMENT = re.compile(r"#\s*shaped:\s*ignore(?:\[([^\]]*)\])?")
RULES = tuple(rule for rule in get_args(Status) if rule != "proved" and rule != "ignored")


@dataclass(frozen=True)
class Unused:
    """A comment that silences nothing, or names what is no rule."""

    file: str
    line: int
    said: str

    def __str__(self) -> str:
        return f"{relative(self.file)}:{self.line}: {self.said}"


def comments(file: Path) -> dict[int, tuple[str, ...]]:
    """The rules that each line of a file ignores; all of them where it names none."""
    found: dict[int, tuple[str, ...]] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
            match = _COMMENT.search(token.string) if token.type == tokenize.COMMENT else None
            if match is not None:
                named = tuple(rule.strip() for rule in (match[1] or "").split(",") if rule.strip())
                found[token.start[0]] = named or RULES
    except (OSError, SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return {}
    return found


def ignored(verdicts: Sequence[Verdict], whole: bool = True) -> tuple[list[Verdict], list[Unused]]:
    """The verdicts, those that a comment silences as such; and the comments that silence nothing.

    Args:
        whole: The verdicts are all of a file's, so that a comment that matches none is of no use.
    """
    files = {v.file for v in verdicts} | {v.source.file for v in verdicts if v.source}
    known = {file: comments(Path(file)) for file in files}
    used: set[tuple[str, int]] = set()
    found = []
    for verdict in verdicts:
        places = [(verdict.file, line) for line in range(verdict.line, verdict.line + verdict.header)]
        places += [(verdict.source.file, verdict.source.line)] if verdict.source else []
        for file, line in places:
            if verdict.status in known[file].get(line, ()):
                used.add((file, line))
                verdict = replace(verdict, status="ignored", summary=f"{verdict.status}, as a comment says")
        found.append(verdict)
    unused = []
    for file in {verdict.file for verdict in verdicts}:
        for line, rules in known[file].items():
            wrong = [rule for rule in rules if rule not in RULES]
            if wrong:
                unused.append(Unused(file, line, f"`{wrong[0]}` is no rule; there are {', '.join(RULES)}"
                                                 f"{nearest(wrong[0], RULES)}"))  # fmt: skip
            elif whole and (file, line) not in used:
                unused.append(Unused(file, line, "this ignores nothing: take the comment out"))
    return found, unused
