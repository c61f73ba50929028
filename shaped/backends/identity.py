"""What a kept program is known by: all that could change it, and the spelling of what its code takes for granted."""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from shaped.backends.reach import Reach
from shaped.backends.surroundings import sources, surroundings
from shaped.proof.reads import MISSING
from shaped.shapes import Signature

FORMAT = 2
_NOT_IN_CODE = ("max_executors", "capture", "verify", "save_frozen", "keep")  # change neither proof nor code


def name_now(loss: Any, params: Any, options: Mapping[str, Any]) -> str:
    """By what a folder would know the program of a trainer that is made now.

    Raises:
        Untold: It reaches what cannot be described.
    """
    reach = reached(loss, params, options)
    return name_of(surroundings(), sources([*reach.modules]), "\n".join(reach.lines))


def name_of(around: Mapping[str, str], files: Mapping[str, str], reach: str) -> str:
    """By what a folder knows a program: a digest of all that must be the same."""
    return hashlib.sha256(json.dumps([FORMAT, dict(around), dict(files), reach]).encode()).hexdigest()[:40]


def reached(loss: Any, params: Any, options: Mapping[str, Any]) -> Reach:
    """All that a trainer's program reaches."""
    given = {name: value for name, value in options.items() if name not in _NOT_IN_CODE}
    return Reach({_called(loss): loss, "params": params, "options": given})


def _called(loss: Any) -> str:
    return str(getattr(loss, "__name__", "loss"))


def token_of(reach: Reach, value: Any) -> str:
    """A value that was read, told the same way in each process."""
    return "missing" if value is MISSING else reach.token(value)


def metas(state: Sequence[Tensor]) -> list[Any]:
    """Shapes, strides and dtypes."""
    return [[[*t.shape], [*t.stride()], str(t.dtype)] for t in state]


def digest_of(layout: Hashable) -> str:
    """What lowered code takes for granted, in a word: strides, the groups of the optimizer, and their rules."""
    return hashlib.sha256("\n".join(Reach({"layout": layout}).lines).encode()).hexdigest()


def spelled(signature: Signature) -> str:
    """A signature with what its entries were written as."""
    return f"{signature} {[(e.path, e.spec.quoted) for e in signature.entries]}"
