"""Verdicts in SARIF 2.1.0, which code hosts and editors show beside the lines."""

from collections.abc import Sequence
from typing import Any

from shaped.check.verdicts import Verdict, relative

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "refuted": "Some sizes break the function; the message shows them.",
    "unprovable": "Neither proved nor refuted; the message says what to declare.",
    "error": "The function raises an error, or its signature cannot be read.",
}
_LEVELS = {"refuted": "error", "unprovable": "warning", "error": "error"}


def as_sarif(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """A log with one result for each of these verdicts."""
    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in _RULES.items()]
    driver = {"name": "shaped", "informationUri": "https://pypi.org/project/shaped-trainer/", "rules": rules}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(verdict) for verdict in verdicts]}],
    }


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
