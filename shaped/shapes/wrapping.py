"""A function around a user's function that is read as the user's own: its name, its place, its signature."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from shaped.shapes.annotations import annotated_part, resolve_annotations

F = TypeVar("F", bound=Callable[..., Any])


def worn(
    wrapper: F,
    function: Callable[..., Any],
    annotations: Mapping[str, Any] | None = None,
    extra: Sequence[inspect.Parameter] = (),
) -> F:
    """Give a wrapper the name, documentation, annotations and signature of the function that it calls.

    Not functools.wraps: whoever unwraps would find that function alone. The code bears its place, so that declarations
    are quoted from there.

    Args:
        wrapper: A plain Python function; changed in place and returned.
        function: The user's.
        annotations: What stands instead of some of its annotations, or beside them.
        extra: Further parameters, keyword-only.
    """
    original = annotated_part(function)
    code = getattr(original, "__code__", None)
    if code is not None:
        place = {"co_filename": code.co_filename, "co_firstlineno": code.co_firstlineno, "co_name": code.co_name}
        wrapper.__code__ = wrapper.__code__.replace(**place)  # type: ignore[attr-defined]
    wrapper.__name__, wrapper.__qualname__ = original.__name__, original.__qualname__
    wrapper.__module__, wrapper.__doc__ = original.__module__, function.__doc__
    wrapper.__annotations__ = {**resolve_annotations(function), **(annotations or {})}
    signature = inspect.signature(function)
    parameters = sorted([*signature.parameters.values(), *extra], key=lambda p: p.kind)
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper
