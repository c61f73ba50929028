"""An nn.Module as a program: its parameters as a list, a loss over it or over its output, and what it keeps.

The values of a call are put into the module's places for its length (`holding.py`), so that a loss over a module is a
function of its parameters.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from shaped.backends.holding import Places
from shaped.backends.trainable import refuse_foreign
from shaped.errors import Goal, SignatureError, Unprovable, listing
from shaped.params import ParamList
from shaped.proof import expect
from shaped.shapes import Argument, Entry, Signature, TensorSpec, annotated_part, read_signature, resolve_annotations


def first_argument(loss: Callable[..., Any]) -> tuple[str, Any]:
    """Name and annotation of the argument that takes the parameters."""
    bare = inspect.unwrap(loss)
    try:
        names = list(inspect.signature(bare).parameters)
    except (TypeError, ValueError):
        read_signature(loss)  # says what is wrong with it
        raise
    if not names:
        raise SignatureError(f"`{getattr(loss, '__name__', loss)}` takes no arguments; a loss takes params and inputs")
    return names[0], resolve_annotations(annotated_part(bare)).get(names[0])


def module_program(loss: Callable[..., Any], module: nn.Module) -> tuple[ParamList, Signature, Places]:
    """Parameters of a module, a loss that takes them (over the module itself, or over its output), and their places."""
    refuse_foreign(module)
    params = ParamList.from_module(module)
    places = Places.of(module, params)
    bare = inspect.unwrap(loss)
    name, declared = first_argument(loss)
    if isinstance(declared, type) and issubclass(declared, nn.Module):
        run = partial(run_over, places, partial(bare, module))
        return params, replace(read_signature(bare, {name: params._layout}), function=run), places
    if declared is None:
        kind = type(module).__name__
        raise SignatureError(
            f"`{getattr(bare, '__name__', loss)}`, argument `{name}` has no annotation: write `{name}: {kind}` where "
            f'it takes the module, or for example `{name}: Float[Tensor, "batch classes"]` where it takes its output'
        )
    forward = module_inputs(module)
    result = read_signature(bare)
    rest = result.arguments[1:]
    taken = {argument.name for argument in rest}
    inputs = tuple(a if a.name not in taken else _renamed(a, f"input.{a.name}") for a in forward if a.entries)
    arguments = (Argument("params", "parameters", params.entries, params._layout), *inputs, *rest)
    over_output = partial(_over_output, module, bare, len(inputs), result.arguments[0].entries[0].spec)
    return params, Signature(result.name, partial(run_over, places, over_output), arguments, result.returns), places


def run_over(places: Places, program: Callable[..., Any], values: ParamList, *inputs: Any, **named: Any) -> Any:
    """Run a program over a module with these values in the module."""
    kept = _kept.get()
    if kept is not None:
        return kept.run(places.filled(values.tensors), partial(program, *inputs, **named))
    with lasting():
        return run_over(places, program, values, *inputs, **named)


class _Kept:
    """What the last call put into a module, for the backward pass that follows it."""

    def __init__(self) -> None:
        self._filled = ExitStack()
        self._replaced: list[str] = []

    def run(self, filling: AbstractContextManager[list[str]], program: Callable[[], Any]) -> Any:
        """Run a program with other values, which stay."""
        self.close()
        self._replaced = self._filled.enter_context(filling)
        return program()

    def close(self) -> None:
        """Take them out again; Unprovable where the program has put something else there."""
        self._filled.close()
        replaced, self._replaced = self._replaced, []
        if replaced:
            raise _assigns(replaced)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def lasting() -> Iterator[None]:
    """Around a forward pass and its backward pass: what a call puts into the module stays until the next call.

    Checkpoints, hooks and functions with a backward pass of their own read the module again in the backward pass, and
    find what the forward pass was given.
    """
    kept = _Kept()
    token = _kept.set(kept)
    try:
        yield
    except BaseException:
        with suppress(Unprovable):
            kept.close()
        raise
    else:
        kept.close()
    finally:
        _kept.reset(token)


def _assigns(replaced: Sequence[str]) -> Unprovable:
    title = f"the program assigns a new tensor to {listing(replaced)}, which is no part of a step."
    error = Unprovable(title, None, Goal(hint=f"write into it: self.{replaced[0].rpartition('.')[2]}.copy_(...)"))
    error.assigns = True
    return error


def _over_output(
    module: nn.Module, loss: Callable[..., Any], arity: int, declared: TensorSpec, *inputs: Any, **named: Any
) -> Any:
    """A loss over what a module returns for the first inputs."""
    output = module(*inputs[:arity])
    expect(output, declared)
    return loss(output, *inputs[arity:], **named)


def _renamed(argument: Argument, name: str) -> Argument:
    return replace(argument, name=name, entries=tuple(Entry(name, e.spec, e.origin) for e in argument.entries))


def module_inputs(module: nn.Module) -> tuple[Argument, ...]:
    """The annotated inputs of `forward`; SignatureError says what to write where there are none."""
    try:
        return read_signature(module.forward).arguments
    except SignatureError as error:
        raise SignatureError(
            f"{error}. Annotate {type(module).__name__}.forward, or write the loss over the module: "
            f'`def loss(model: {type(module).__name__}, x: Float[Tensor, "batch 64"], ...) -> Float[Tensor, ""]`'
        ) from None
