"""Which operation made the first NaN or infinity: the loss and its gradients are computed again, watched."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from shaped.arguments import checked
from shaped.checkpoint.generators import generators_kept
from shaped.errors import NonFiniteError, Source
from shaped.proof.source import place_of_caller
from shaped.trainer import ScalarTrainer


@dataclass(frozen=True)
class Origin:
    """The first operation whose operands are finite and whose result, or gradient, is not."""

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    value: float  # nan, inf or -inf
    source: Source | None
    backward: bool  # it is the operation's gradient that is not finite

    def __str__(self) -> str:
        what = f"the gradient of {self.operation}" if self.backward else self.operation
        operands = ", ".join(map(str, self.shapes)) or "nothing"
        lines = [f"first made by {what}, of {operands}: {self.value}"]
        if self.source is not None:
            lead = f"  {self.source}   "
            lines += [lead + self.source.text, " " * len(lead) + self.source.marks]
        return "\n".join(line.rstrip() for line in lines)


@checked
def first_nonfinite(trainer: ScalarTrainer, *inputs: Any) -> Origin | None:
    """Where the first NaN or infinity of a batch comes from, or None if everything is finite.

    The loss runs eagerly, operation by operation, whichever backend the trainer has. Nothing is changed. Inputs and
    parameters that are not finite are named as such. A loss that draws at random draws anew.
    """
    flat = trainer._program.arrange(inputs, {})
    for name, tensor in [*zip(trainer.params.names, trainer.params, strict=True), *_named(flat)]:
        if (value := _wrong(tensor)) is not None:
            return Origin(f"{name}, which is given", (tuple(tensor.shape),), value, None, backward=False)
    watch = _Watch()
    with generators_kept(), torch.enable_grad():
        used = [p for p in trainer.params if p.requires_grad]
        for p in used:
            watch.follow(p)
        with watch:
            loss = trainer.proof.setting.run([*trainer.params, *flat])[0]
        if watch.found is None and loss.requires_grad:
            torch.autograd.grad(loss, used, allow_unused=True)
        watch.forget()
    return watch.found


def located(error: NonFiniteError, trainer: ScalarTrainer, inputs: Sequence[Any]) -> NonFiniteError:
    """An error with where the first value that is not finite comes from, as far as that is found."""
    origin = None
    with suppress(Exception):  # the search must not hide what was found
        origin = first_nonfinite(trainer, *inputs)
    return NonFiniteError(f"{error}\n  " + str(origin).replace("\n", "\n  ")) if origin is not None else error


def _named(inputs: Sequence[Any]) -> list[tuple[str, Tensor]]:
    return [(f"input {i}", tensor) for i, tensor in enumerate(inputs) if isinstance(tensor, Tensor)]


def _wrong(tensor: Tensor) -> float | None:
    """The first element that is not finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all()):
        return None
    wrong = tensor.detach().flatten()
    wrong = wrong[~torch.isfinite(wrong)]
    return float(wrong[0].real)


@dataclass
class _Call:
    operation: str
    shapes: tuple[tuple[int, ...], ...]
    source: Source | None
    clean: bool = True  # the gradient of its result was finite, as far as is known

    def origin(self, value: float, *, backward: bool) -> Origin:
        return Origin(self.operation, self.shapes, value, self.source, backward)


class _Watch(TorchFunctionMode):
    """Looks at every result, and at every gradient on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Origin | None = None
        self._users: dict[int, list[_Call]] = {}  # operations that take a tensor, by its id
        self._kept: list[Tensor] = []  # so that no id is given twice
        self._handles: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if self.found is not None or not results:
            return result
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        place = place_of_caller()
        shapes = tuple(tuple(tensor.shape) for tensor in operands)
        from shaped.proof.trace import operation_name  # the tracer is heavy, and not every run needs it

        call = _Call(operation_name(func), shapes, place.source() if place else None)
        finite = all(_wrong(tensor) is None for tensor in operands)  # -inf in a mask is no fault of who reads it
        value = next((wrong for tensor in results if (wrong := _wrong(tensor)) is not None), None)
        if value is not None and finite and not _meant(call.operation, args, kwargs):
            self.found = call.origin(value, backward=False)
        for tensor in operands:
            self._users.setdefault(id(tensor), []).append(call)
        for tensor in results:
            if all(tensor is not operand for operand in operands):
                self.follow(tensor, call)
        return result

    def follow(self, tensor: Tensor, made_by: _Call | None = None) -> None:
        """See this tensor's gradient."""
        self._kept.append(tensor)
        if not tensor.requires_grad:
            return

        def look(gradient: Tensor) -> None:
            value = _wrong(gradient)
            if value is None:
                return
            if made_by is not None:
                made_by.clean = False
            if self.found is None:
                users = self._users.get(id(tensor), [])
                guilty = next((call for call in reversed(users) if call.clean), None)
                if guilty is not None:
                    self.found = guilty.origin(value, backward=True)

        self._handles.append(tensor.register_hook(look))

    def forget(self) -> None:
        for handle in self._handles:
            handle.remove()


def _meant(operation: str, args: Any, kwargs: dict[str, Any] | None) -> bool:
    """Whether infinity was written down: `masked_fill(mask, -inf)`, `full(..., inf)`."""
    plain = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, float)]
    return operation in ("masked_fill", "masked_fill_", "full", "full_like", "tensor", "where", "fill_") and any(
        abs(number) == float("inf") for number in plain
    )
