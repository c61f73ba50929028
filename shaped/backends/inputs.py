"""What a batch is before it is admitted: flat, in the signature's order, numbers as tensors, what is left out as None.

A Python number for an input without axes becomes a tensor on the parameters' device, so that another number is another
value and compiles nothing. An optional input that is left out is None for each of its tensors; a program is proved for
each set of inputs that is left out, and its graph has no place for them.
"""

import operator
from collections.abc import Mapping, Sequence
from numbers import Complex, Integral, Real
from typing import Any

import torch
from torch import Tensor

from shaped.errors import ShapeError, listing
from shaped.shapes import Entry, Signature


class Inputs:
    """The inputs of a loss.

    Args:
        signature: Of the loss, parameters first.
        params: How many tensors these are.
        known: Dimensions that the parameters fix.
        floating: The dtype that a number takes where its annotation admits it.
        device: Where numbers go.

    Attributes:
        entries: Every tensor of a batch, in order.
        flat: Whether a batch is its tensors, one for each argument.
    """

    def __init__(
        self, signature: Signature, params: int, known: Mapping[str, int], floating: torch.dtype, device: torch.device
    ) -> None:
        self._signature, self._known, self._device = signature, known, device
        self.entries: tuple[Entry, ...] = signature.entries[params:]
        self.flat = all(argument.kind != "container" for argument in signature.arguments)
        self._floating = floating
        self._numbers = [i for i, entry in enumerate(self.entries) if not entry.spec.dims]
        self._optional: dict[str, range] = {}
        at = 0
        for argument in (a for a in signature.arguments if a.kind in ("tensor", "container")):
            if argument.optional:
                self._optional[argument.name] = range(at, at + len(argument.entries))
            at += len(argument.entries)
        self._lenient = any(a.optional or a.default is not None for a in signature.arguments if a.entries)

    @property
    def optional(self) -> tuple[str, ...]:
        """The inputs that may be left out."""
        return tuple(self._optional)

    def arrange(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Sequence[Any]:
        """The flat tensors of a batch that is given by position, by name and in containers.

        Raises:
            ShapeError: Inputs are missing or extra, or a number is none of the kind that is declared.
        """
        if named or not self.flat or (self._lenient and len(inputs) != len(self.entries)):
            inputs = self._signature.arrange(inputs, named)
        for i in self._numbers:
            if i < len(inputs) and not isinstance(inputs[i], Tensor) and isinstance(inputs[i], Complex):
                inputs = [*inputs]
                inputs[i] = self._tensor(self.entries[i], inputs[i])
        return inputs

    def _tensor(self, entry: Entry, value: Any) -> Tensor:
        """A number as an input; filled on the device, which does not wait for it as for a copy."""
        dtype = self.dtype(entry)
        kind: type = Complex if dtype.is_complex else Real if dtype.is_floating_point else Integral
        fits = (
            isinstance(value, bool) if dtype is torch.bool else isinstance(value, kind) and not isinstance(value, bool)
        )
        if not fits:
            said = f"{entry.path} is {value!r}, and declared {entry.spec.quoted}"
            raise ShapeError(f"The batch breaks its signature: {said}")
        if kind is Integral and dtype is not torch.bool:
            value, limits = operator.index(value), torch.iinfo(dtype)
            if not limits.min <= value <= limits.max:
                raise ShapeError(f"The batch breaks its signature: {entry.path} is {value}, which is no {dtype}")
        return torch.full((), value, dtype=dtype, device=self._device)

    def dtype(self, entry: Entry) -> torch.dtype:
        """The dtype to assume where no tensor says."""
        return entry.spec.default_dtype(self._floating)

    def absent(self, inputs: Sequence[Any]) -> tuple[str, ...]:
        """The optional inputs that a flat batch leaves out."""
        return tuple(
            name for name, at in self._optional.items() if at.stop <= len(inputs) and all(inputs[i] is None for i in at)
        )

    def present(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """A flat batch without what it leaves out."""
        if not self._optional:
            return inputs
        left = {i for name in self.absent(inputs) for i in self._optional[name]}
        return [x for i, x in enumerate(inputs) if i not in left] if left else inputs

    def filled(self, inputs: Sequence[Tensor], absent: Sequence[str]) -> list[Any]:
        """The flat batch again, with None for each tensor of what it leaves out."""
        left = {i for name in absent for i in self._optional[name]}
        present = iter(inputs)
        return [None if i in left else next(present) for i in range(len(self.entries))]

    def examples(self, shapes: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
        """A batch of zeros: of given shapes (or like given tensors), or of given sizes by dimension name.

        Raises:
            ValueError: Both are given, or a dimension is missing or unknown.
        """
        if not shapes:
            known = {**self._known, **sizes}
            free = dict.fromkeys(
                n for e in self.entries for dim in e.spec.dims for n in dim.names if n not in self._known
            )
            missing, unknown = [n for n in free if n not in sizes], [n for n in sizes if n not in free]
            if missing or unknown or any(entry.spec.axes is not None for entry in self.entries):
                raise ValueError(
                    f"give a size for each of {listing(list(free))}, which the parameters do not fix"
                    f"{f', and not for {listing(unknown)}' if unknown else ''}; or a shape for each input"
                )
            shapes = [[dim.evaluate(known) for dim in entry.spec.dims] for entry in self.entries]
        elif sizes or len(shapes) != len(self.entries):
            raise ValueError(f"give {len(self.entries)} shapes, one for each input, or sizes by name")
        return [
            shape
            if isinstance(shape, Tensor) or (shape is None and self._optional)
            else torch.zeros(tuple(shape), dtype=self.dtype(e), device=self._device)
            for e, shape in zip(self.entries, shapes, strict=True)
        ]
