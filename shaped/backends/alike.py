"""What an update is stepped by, in plain values: what the ranks of a run must have alike."""

import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from shaped.errors import listing
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import Foreign
from shaped.optim.updates import CheckedRules

_PLAIN = (bool, int, float, str, type(None))


def stepped_by(optimizer: FusedOptimizer, readings: CheckedRules, named: Mapping[int, str]) -> dict[str, Any]:
    """The optimizer's kind, its options, and the numbers, switches and parameters of each group, by name.

    Args:
        optimizer: Of a trainer.
        readings: What it read for the step that comes next.
        named: The names of parameters, by identity.
    """
    kind = type(optimizer.inner if isinstance(optimizer, Foreign) else optimizer).__name__
    found = {
        "the optimizer": kind,
        **_plain({f.name: getattr(optimizer.options, f.name) for f in fields(optimizer.options)}),
    }
    if isinstance(optimizer, Foreign):
        groups = [_plain({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]
    else:
        groups = [_of_rule(reading.rule, reading.numbers) for reading in readings.readings]
    for i, group in enumerate(optimizer.param_groups):
        names = [named.get(id(p), "another") for p in group["params"]]
        few = f"{listing(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        found[f"the parameters of group {i}"] = f"{few} (checksum {zlib.crc32('|'.join(names).encode()):08x})"
    for i, group in enumerate(groups):
        found |= {f"{name} of group {i}" if len(groups) > 1 else name: value for name, value in group.items()}
    return found


def _of_rule(rule: Any, numbers: tuple[float, ...]) -> dict[str, Any]:
    switches = _plain({f.name: getattr(rule, f.name) for f in fields(rule)})
    names = [name for hyper in rule.hypers for name in hyper.spelled]
    return {"the rule": rule.name, **switches, **dict(zip(names, numbers, strict=True))}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What compares by value, in any process."""
    numbers = {name: float(v) if isinstance(v, Tensor) and v.numel() == 1 else v for name, v in values.items()}
    return {name: v for name, v in numbers.items() if isinstance(v, _PLAIN) or _of_plain(v)}


def _of_plain(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)
