"""An nn.Module as a program: its parameters as a list, a loss over it or over its output, and what it keeps.

One functional call swaps the parameters of a module and its loss. What a forward pass stores in the module is undone
after a trace, or refused.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from shaped.errors import Goal, ShapeError, SignatureError, Unprovable, listing
from shaped.params import ParamList
from shaped.proof import expect
from shaped.shapes import Argument, Entry, Signature, TensorSpec, annotated_part, read_signature, resolve_hints

_tracing: ContextVar[bool] = ContextVar("tracing", default=False)


@dataclass(frozen=True)
class Places:
    """Where a module keeps its tensors and layers: names, the mappings and keys, and what was there."""

    names: list[str]
    owners: list[dict[str, Any]]
    fields: list[str]
    held: list[Any]

    def check(self) -> None:
        """Raise ShapeError where something else is there now."""
        if not all(map(is_, map(dict.get, self.owners, self.fields), self.held)):
            there = zip(self.names, self.owners, self.fields, self.held, strict=True)
            changed = [name for name, owner, field, thing in there if owner.get(field) is not thing]
            raise ShapeError(
                f"replaced in the module: {listing(changed)}. Put it back (merged adapters: unmerge), or make a new "
                "trainer for what is there now"
            )


def places_in(module: nn.Module, params: ParamList) -> Places:
    """The places of a module's parameters, buffers and layers."""
    names = [*params.names, *(name for name, _ in module.named_modules() if name)]
    owners, fields, held = [], [], []
    for name in names:
        path, _, field = name.rpartition(".")
        owner = module.get_submodule(path)
        kept: Any = next(d for d in (owner._parameters, owner._buffers, owner._modules) if field in d)
        owners.append(kept)
        fields.append(field)
        held.append(kept[field])
    return Places(names, owners, fields, held)


@contextmanager
def kept_as_they_are(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Undo what a trace stores in modules; Unprovable where it is a tensor (a mask that is kept for the next time)."""
    before = [dict(vars(module)) for module in modules]
    stored: list[str] = []
    token = _tracing.set(True)
    try:
        yield
    finally:  # a trace that fails leaves symbolic tensors behind as well
        _tracing.reset(token)
        for module, old in zip(modules, before, strict=True):
            for name, value in list(vars(module).items()):
                if name in old and old[name] is value:
                    continue
                stored += [f"{type(module).__name__}.{name}"] if isinstance(value, Tensor) else []
                vars(module).update({name: old[name]}) if name in old else vars(module).pop(name)
    if stored:
        raise Unprovable(
            f"the program stores a tensor in {listing(stored)}, which is no part of a step.",
            None,
            Goal(hint="register it as a buffer, or compute it anew"),
        )


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
    return names[0], resolve_hints(annotated_part(bare)).get(names[0])


def module_program(loss: Callable[..., Any], module: nn.Module) -> tuple[ParamList, Signature]:
    """Parameters of a module, and a loss that takes them: over the module itself, or over its output."""
    params = ParamList.from_module(module)
    bare = inspect.unwrap(loss)
    name, declared = first_argument(loss)
    over_module = isinstance(declared, type) and issubclass(declared, nn.Module)
    bound = _Bound(module, bare)
    fields = [f"module.{name}" for name in params.names]

    def run(values: ParamList, *inputs: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(bound, dict(zip(fields, values, strict=True)), inputs)
        return result

    if over_module:
        own = read_signature(bare, {name: params._layout})
        return params, replace(own, function=run)
    forward = _signature_of_forward(module)
    rest = read_signature(bare).arguments[1:]
    taken = {argument.name for argument in rest}
    inputs = tuple(a if a.name not in taken else _renamed(a, f"input.{a.name}") for a in forward if a.entries)
    arguments = (Argument("params", "parameters", params.entries, params._layout), *inputs, *rest)
    result = read_signature(bare)
    bound.arity, bound.prediction = len(inputs), result.arguments[0].entries[0].spec
    return params, Signature(result.name, run, arguments, result.returns)


def _renamed(argument: Argument, name: str) -> Argument:
    return replace(argument, name=name, entries=tuple(Entry(name, e.spec, e.origin) for e in argument.entries))


def _signature_of_forward(module: nn.Module) -> tuple[Argument, ...]:
    """The annotated inputs of `forward`; SignatureError says what to write where there are none."""
    try:
        return read_signature(module.forward).arguments
    except SignatureError as error:
        raise SignatureError(
            f"{error}. Annotate {type(module).__name__}.forward, or write the loss over the module: "
            f'`def loss(model: {type(module).__name__}, x: Float[Tensor, "batch 64"], ...) -> Float[Tensor, ""]`'
        ) from None


class _Bound(nn.Module):
    """A module with its loss, so that one functional call swaps the parameters of both."""

    def __init__(self, module: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss
        self.arity = 0  # how many inputs are the module's own, where the loss is over its output
        self.prediction: TensorSpec | None = None  # what the loss declares that output to be

    def forward(self, *inputs: Tensor) -> Any:
        before = (
            [(m, name, b) for m in self.module.modules() for name, b in m._buffers.items()] if _tracing.get() else []
        )
        result = self._run(*inputs)
        if assigned := [f"{type(m).__name__}.{name}" for m, name, b in before if m._buffers.get(name) is not b]:
            raise Unprovable(
                f"the program assigns a new tensor to the buffer {listing(assigned)}, which is no part of a step.",
                None,
                Goal(hint=f"write into it: self.{assigned[0].rpartition('.')[2]}.copy_(...)"),
            )
        return result

    def _run(self, *inputs: Tensor) -> Any:
        if self.prediction is None:
            return self.loss(self.module, *inputs)
        output = self.module(*inputs[: self.arity])
        expect(output, self.prediction)
        return self.loss(output, *inputs[self.arity :])
