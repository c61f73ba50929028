"""Gradient strategies: how the gradients of one batch come from a loss.

A strategy is any callable

    strategy(loss, params, *inputs) -> (value, gradients)

`loss(params, *inputs)` is the user's own, `gradients` is of the parameters' class. It is traced with symbolic sizes
like the loss itself, so what it computes is part of the proof and of the compiled step. It keeps no state of its own:
the compiled backend runs what was traced.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shaped.errors import GradientError, listing
from shaped.params import ParamList

T = TypeVar("T")
Loss = Callable[..., Tensor]


class GradientStrategy(Protocol):
    """What `ScalarTrainer(strategy=...)` takes; a plain function will do.

    Args:
        loss: `loss(params, *inputs)`, a scalar: the trainer's loss. May be called any number of times, with the
            parameters or any tensors of their shapes (`[p + d for p, d in zip(params, moved)]`).
        params: The parameters, of the class that the loss takes.
        inputs: The tensors of the batch, in the order of the signature.

    Returns:
        The loss to report, a scalar; and the gradients: a list of the parameters' class (or one tensor, or None, for
        each parameter in order).
    """

    # with both stars of Any, a type checker takes a function of (loss, params, x, y) too
    def __call__(self, loss: Loss, params: Any, /, *inputs: Any, **named: Any) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class FullBackpropagation:
    """The gradients of the loss as it is written. What a trainer does where no strategy is given."""

    def __call__(self, loss: Loss, params: ParamList, /, *inputs: Any, **named: Any) -> tuple[Tensor, ParamList]:
        value = loss(params, *inputs)
        return value, gradients(value, params)


@dataclass(frozen=True)
class OneStep:
    """Backpropagation through time, truncated at one step: what `carry` marks counts as a constant.

    The loss keeps its value. A parameter's gradient is what each time step adds to it by itself, so memory and time of
    the backward pass do not chain over the sequence.

    Raises:
        GradientError: The loss marks nothing with `carry`, or the module holds a recurrent layer that runs its time
            loop inside torch, which cannot be cut.

    Source: truncated backpropagation through time of length 1, Williams & Peng 1990, doi:10.1162/neco.1990.2.4.490.
    """

    def __call__(self, loss: Loss, params: ParamList, /, *inputs: Any, **named: Any) -> tuple[Tensor, ParamList]:
        with _cutting() as marks:
            value = loss(params, *inputs)
            if not marks.count:
                raise GradientError(
                    "OneStep found no carried state to cut: mark it where a time step takes it, "
                    f"`h = cell(x[:, t], carry(h))`. {_CELLS}"
                )
            return value, gradients(value, params)  # what a checkpoint runs again is cut like the first time


_CELLS = "torch.nn.RNN, LSTM and GRU loop inside and cannot be cut: use RNNCell, LSTMCell or GRUCell in a loop"


@dataclass
class _Marks:
    """How many states were cut."""

    count: int = 0


@dataclass
class _Run:
    """What the strategy under way has differentiated so far, by position among the parameters."""

    found: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)
    plain: Tensor | None = None  # the loss of the trainer's own parameters and batch


_cut: ContextVar[_Marks | None] = ContextVar("cut", default=None)
_run: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextmanager
def _cutting() -> Iterator[_Marks]:
    token = _cut.set(_Marks())
    try:
        marks = _cut.get()
        assert marks is not None
        yield marks
    finally:
        _cut.reset(token)


def carry(state: T) -> T:
    """Mark the state that a recurrent model carries into a time step.

        for t in range(steps):
            h = torch.tanh(x[:, t] @ p.wx + carry(h) @ p.wh)

    Under `OneStep` the tensors come back detached; otherwise this is the identity. Mark it where a step takes the
    state: marked where a step leaves it, the last step would be cut off too, and the proof would miss its gradients.

    Args:
        state: A tensor, or any nesting of tuples, lists and mappings of tensors (an LSTM's `(h, c)`).
    """
    marks = _cut.get()
    if marks is None:
        return state
    marks.count += 1
    cut: T = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, state)
    return cut


def gradients(
    value: Tensor, params: ParamList, *, retain_graph: bool | None = None, create_graph: bool = False
) -> ParamList:
    """The gradients of a scalar, as a list of the parameters' class. For the strategies that you write.

    A parameter that is frozen, or that the scalar does not depend on, gets zeros. Where no scalar of a strategy depends
    on a parameter, the trainer misses its gradient and says so.

    Args:
        value: A scalar that depends on `params`.
        params: What was given to the loss.
        retain_graph, create_graph: As for `torch.autograd.grad`.
    """
    wanted = [i for i, p in enumerate(params) if p.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if value.requires_grad:
        found = run_backward(value, [params[i] for i in wanted], retain_graph, create_graph)
    by_place = dict(zip(wanted, found, strict=True))
    run = _run.get()
    if run is not None:
        run.found |= {i for i, gradient in by_place.items() if gradient is not None}
        run.missing |= {i for i, gradient in by_place.items() if gradient is None}
    with torch._C.DisableTorchFunction():
        filled = [_or_zero(by_place.get(i), p) for i, p in enumerate(params)]
    return params.like(filled)


def run_backward(
    value: Tensor, tensors: Sequence[Tensor], retain_graph: bool | None = None, create_graph: bool = False
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad`, under the modes of a trace: what a checkpoint runs again is rewritten like the first time.

    torch's own is an operation to such modes, which are off while they run one.
    """
    with torch._C.DisableTorchFunction():  # autograd's own operations are no lines of the user's derivation
        start = (torch.ones_like(value),)
    retain = create_graph if retain_graph is None else retain_graph
    engine: Any = torch.autograd.Variable._execution_engine
    found: Sequence[Tensor | None] = engine.run_backward(
        (value,), start, retain, create_graph, tuple(tensors), allow_unreachable=True, accumulate_grad=False
    )
    return found


def _or_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Zeros, as a read-only view of one zero, where there is no gradient."""
    return parameter.detach().new_zeros(()).expand(parameter.shape) if gradient is None else gradient


@dataclass(frozen=True)
class Pass:
    """What a strategy gave for one batch."""

    value: Tensor
    gradients: list[Tensor | None]  # one for each parameter; None where no scalar depends on it
    plain: Tensor  # the loss of this batch, without what a strategy adds


def differentiate(strategy: GradientStrategy, loss: Loss, params: ParamList, inputs: Sequence[Tensor]) -> Pass:
    """Run a strategy on one batch.

    Raises:
        GradientError: It gives no scalar, or not one gradient for each parameter.
    """
    run = _Run()

    def known(values: Sequence[Tensor], *batch: Tensor) -> Tensor:
        result = loss(values, *batch)
        own = [*values, *batch], [*params, *inputs]
        if run.plain is None and len(own[0]) == len(own[1]) and all(a is b for a, b in zip(*own, strict=True)):
            run.plain = result
        return result

    token = _run.set(run)
    try:
        answer = strategy(known, params, *inputs)
    finally:
        _run.reset(token)
    value, found = _checked(strategy, answer, params)
    missing = run.missing - run.found
    kept = [None if g is None or i in missing else g.detach() for i, g in enumerate(found)]
    plain = run.plain if run.plain is not None else loss(params, *inputs)
    return Pass(value, kept, plain)


def _checked(strategy: GradientStrategy, answer: Any, params: ParamList) -> tuple[Tensor, list[Tensor | None]]:
    name, owner = strategy_name(strategy), type(params).__name__
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Tensor):
        got = f"a {_kind(answer)}" + (f" of {len(answer)}" if isinstance(answer, tuple | list) else "")
        raise GradientError(f"strategy `{name}` gives {got}; it returns the loss and the gradients")
    value, found = answer
    if not value.is_floating_point():
        raise GradientError(f"strategy `{name}` gives a loss of {value.dtype}; it is a floating-point scalar")
    if not isinstance(found, ParamList | list | tuple):
        raise GradientError(f"strategy `{name}` gives a {_kind(found)} as gradients; they are of {owner}")
    if len(found) != len(params):
        raise GradientError(
            f"strategy `{name}` gives {len(found)} gradients, and {owner} has {len(params)} parameters: "
            f"{listing(params.names)}"
        )
    wrong = [n for n, g in zip(params.names, found, strict=True) if g is not None and not isinstance(g, Tensor)]
    if wrong:
        raise GradientError(f"strategy `{name}` gives no tensor as the gradient of {listing(wrong)}")
    return value, list(found)


def _kind(value: object) -> str:
    return "Tensor" if isinstance(value, Tensor) else type(value).__name__


def refuse_shapes(strategy: GradientStrategy, wrong: Sequence[tuple[str, str, str]]) -> None:
    """Raise GradientError if there are gradients that do not fit: (parameter, what it is, what the gradient is)."""
    if wrong:
        rows = "".join(f"\n  {name}: the parameter is {one}, its gradient {other}" for name, one, other in wrong)
        raise GradientError(f"strategy `{strategy_name(strategy)}` gives gradients that do not fit.{rows}")


def strategy_name(strategy: object) -> str:
    """A function's own name, or its class's."""
    return str(getattr(strategy, "__name__", type(strategy).__name__))


def refuse_modules(strategy: object, modules: Sequence[nn.Module]) -> None:
    """Raise GradientError where one step is asked for and a recurrent layer runs its time loop inside torch."""
    layers = sorted({type(module).__name__ for module in modules if isinstance(module, nn.RNNBase)})
    if layers and isinstance(strategy, OneStep):
        raise GradientError(f"OneStep cannot cut {listing(layers)}. {_CELLS} and mark `carry(h)`")
