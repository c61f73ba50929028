"""A loss of several terms: the main one that the function returns, and those that are added on the way.

    @with_terms
    def loss(p: Net, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        h = F.relu(x @ p.w1)
        add_loss("activity", 1e-3 * h.abs())
        return cross_entropy(h @ p.w2, y)

The proof, the gradients and the step are of the sum. `loss_terms` computes the terms apart, when a report wants them.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from shaped.arguments import checked
from shaped.errors import ShapedError
from shaped.shapes import worn

F = TypeVar("F", bound=Callable[..., Any])
_added: ContextVar[dict[str, Tensor] | None] = ContextVar("added", default=None)  # to the loss that is running
_apart: ContextVar[dict[str, Tensor] | None] = ContextVar("apart", default=None)  # for `loss_terms`
MAIN = "main"


def add_loss(name: str, value: Tensor) -> None:
    """Add a term to the loss that is being computed.

    Args:
        name: What reports call it; a name used twice is summed, `main` is what the function returns.
        value: Any shape; its mean is the term.

    Raises:
        ShapedError: No function under `with_terms` is running.
        ValueError: The name is `main`, or `value` is no floating-point tensor.
    """
    terms = _added.get()
    if terms is None:
        raise ShapedError(f"add_loss({name!r}) belongs inside a loss that is decorated with shaped.losses.with_terms")
    if name == MAIN or not isinstance(name, str) or not name:
        raise ValueError(f"add_loss: the name is {name!r}; use another, `main` is what the loss returns")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"add_loss({name!r}): the value is a {type(value).__name__}, not a floating-point tensor")
    scalar = value if value.dim() == 0 else value.mean()
    terms[name] = terms[name] + scalar if name in terms else scalar


@checked
def with_terms(loss: F) -> F:
    """Let a loss add terms with `add_loss`; the decorated function returns the sum."""

    def total(*args: Any, **kwargs: Any) -> Any:
        terms: dict[str, Tensor] = {}
        apart, token, outer = _apart.get(), _added.set(terms), _apart.set(None)  # a loss within: its sum is in `main`
        try:
            main = loss(*args, **kwargs)
        finally:
            _added.reset(token)
            _apart.reset(outer)
        if apart is not None:
            apart.update({MAIN: main, **terms})
        return functools.reduce(torch.add, terms.values(), main)

    return worn(total, loss)  # type: ignore[return-value]


@checked
def loss_terms(loss: Callable[..., Any], *args: Any) -> dict[str, Tensor]:
    """The terms of a loss on its arguments, each a scalar without a graph; `main` is what it returns itself.

    A loss without `with_terms` has the one term `main`.
    """
    apart: dict[str, Tensor] = {}
    token = _apart.set(apart)
    try:
        with torch.no_grad():
            total = loss(*args)
    finally:
        _apart.reset(token)
    return apart or {MAIN: total}
