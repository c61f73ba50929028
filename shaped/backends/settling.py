"""A program whose static dimensions find themselves: `static="auto"` takes those that it reads as plain numbers."""

from collections.abc import Callable
from typing import Any

from torch import nn

from shaped.backends.program import Program
from shaped.errors import Unprovable
from shaped.params import ParamList

AUTO = "auto"


def settled(loss: Callable[..., Any], params: ParamList | nn.Module, **proving: Any) -> Program:
    """A program, proved. Its proof says which dimensions were taken as static.

    Args:
        proving: What `Program` takes; `static` may be "auto".

    Raises:
        Unprovable: Something else than a size that is read as a number stands in the way.
    """
    if not isinstance(proving["static"], str) or proving["static"] != AUTO:
        return Program(loss, params, **proving)
    if proving.get("kept") is not None:
        raise ValueError('program= keeps what is proved for dimensions that are named: static=("time",), not "auto"')
    taken: tuple[str, ...] = ()
    while True:
        try:
            return Program(loss, params, **{**proving, "static": taken})
        except Unprovable as error:
            more = tuple(name for name in error.names if name not in taken)
            if not more:
                raise
            taken += more
