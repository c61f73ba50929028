"""Methods of torch's optimizers without what keeps Dynamo out of them.

Torch decorates some so that `torch.compile` leaves them alone, and the decoration imports Dynamo, sympy and Inductor
when it is first called: seconds at the start of a run that uses none of them. Where Dynamo is not imported, nothing is
compiled by it.
"""

import sys
from collections.abc import Callable
from types import MethodType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def bare(method: Callable[P, R]) -> Callable[P, R]:
    """A bound method, undecorated where Dynamo has not been imported."""
    function = getattr(method, "__func__", None)
    within = getattr(function, "__wrapped__", None)
    code = getattr(function, "__code__", None)
    if within is None or code is None or "torch._dynamo" in sys.modules or not code.co_filename.endswith("_compile.py"):
        return method
    return MethodType(within, method.__self__)  # type: ignore[attr-defined]
