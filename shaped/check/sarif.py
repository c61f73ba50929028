"""Verdicts in SARIF 2.1.0, which code hosts and editors show beside the lines."""

from collections.abc import Sequence
from typing import Any

from shaped.check.ignoring import Unused
from shaped.check.verdicts import Verdict, relative

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "refuted": "Some sizes break the function; the message shows them.",
    "unprovable": "Neither proved nor refuted; the message says what to declare.",
    "error": "The function raises an error, or its signature cannot be read.",
    "unused": "A comment ignores nothing, or names what is no rule.",
}
_LEVELS = {"refuted": "error", "unprovable": "warning", "error": "error"}


def as_sarif(verdicts: Sequence[Verdict], unused: Sequence[Unused] = (), failed: Sequence[str] = ()) -> dict[str, Any]:
    """A log with one result for each of these verdicts and comments; files that could not be checked are notified."""
    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in _RULES.items()]
    driver = {"name": "shaped", "informationUri": "https://pypi.org/project/shaped-trainer/", "rules": rules}
    notes = [{"level": "error", "message": {"text": text}} for text in failed]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not failed, "toolExecutionNotifications": notes}],
        "results": [*map(_result, verdicts), *map(_useless, unused)],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _useless(comment: Unused) -> dict[str, Any]:
    place = _location(comment.file, comment.line)
    return {"ruleId": "unused", "level": "warning", "message": {"text": comment.said}, "locations": [place]}


def _result(verdict: Verdict) -> dict[str, Any]:
    fault = _location(verdict.source.file, verdict.source.line) if verdict.source else None
    place = _location(verdict.file, verdict.line)
    related = [{**place, "id": 0, "message": {"text": f"{verdict.function} is defined here"}}] if fault else []
    return {
        "ruleId": verdict.status,
        "level": _LEVELS[verdict.status],
        "message": {"text": verdict.message},
        "locations": [fault or place],
        "relatedLocations": related,
    }


def _location(file: str, line: int) -> dict[str, Any]:
    where = relative(file).replace("\\", "/")
    return {"physicalLocation": {"artifactLocation": {"uri": where}, "region": {"startLine": max(1, line)}}}
