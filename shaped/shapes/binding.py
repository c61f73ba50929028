"""Binding: give each dimension name the one size that a set of tensors agrees on, or say all that disagrees.

A name means one number across everything that is bound together (params ++ inputs). Each entry of every list is
checked, none is sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shaped.errors import ShapeError
from shaped.shapes.annotations import Entry, class_of, dtype_name
from shaped.shapes.dims import Dim


@dataclass
class Binding:
    """Sizes by dimension name, and for each the entry that fixed it."""

    sizes: dict[str, int] = field(default_factory=dict)
    fixed_by: dict[str, str] = field(default_factory=dict)  # "w1 (64, 128)"

    @classmethod
    def given(cls, entries: Sequence[Entry], sizes: Mapping[str, int]) -> "Binding":
        """Sizes that were said of names that stand in products alone, and so follow from no tensor."""
        made, dims = cls(), [dim for entry in entries for dim in entry.spec.dims]
        named, plain = {name for dim in dims for name in dim.names}, {dim.text for dim in dims if dim.is_name}
        for name in sizes.keys() & (named - plain):
            made.fix(name, sizes[name], f"init({name}={sizes[name]})")
        return made

    def copy(self) -> "Binding":
        """Another binding, which may be added to."""
        return Binding(dict(self.sizes), dict(self.fixed_by))

    def fix(self, name: str, size: int, by: str) -> None:
        """Give a name its size."""
        self.sizes[name] = size
        self.fixed_by[name] = by


def bind(
    entries: Sequence[Entry],
    tensors: Sequence[Any],
    *,
    owner: str,
    start: Binding | None = None,
    device: torch.device | None = None,
) -> Binding:
    """Check each tensor against its entry and return the sizes of all names.

    Args:
        entries: What is expected, in order.
        tensors: What is there; anything that is not a tensor is a mismatch.
        owner: Who is speaking, for the message's first line: "MLP", "the batch".
        start: Names that are known already (the parameters', when a batch is bound). Not changed.
        device: Where every tensor must be; None takes the first tensor's device.

    Raises:
        ShapeError: With every mismatch: rank, sizes, dtype and device of each entry.
    """
    if len(entries) != len(tensors):
        raise ShapeError(_count_message(owner, entries, tensors))
    binding = start.copy() if start else Binding()
    complaints: dict[str, list[str]] = {}
    pairs = [(e, t) for e, t in zip(entries, tensors, strict=True) if _has_rank(e, t, complaints)]
    _bind_names(pairs, binding)
    _solve_expressions(pairs, binding)
    for entry, tensor in pairs:
        complaints.setdefault(entry.path, []).extend(_size_complaints(entry, tensor, binding))
    device = device or next((t.device for t in tensors if isinstance(t, Tensor)), None)
    for entry, tensor in zip(entries, tensors, strict=True):
        if isinstance(tensor, Tensor):
            complaints.setdefault(entry.path, []).extend(_type_complaints(entry, tensor, device, complaints))
    wrong = {path: lines for path, lines in complaints.items() if lines}
    if wrong:
        by_path = {e.path: (e, t) for e, t in zip(entries, tensors, strict=True)}
        raise ShapeError(_message(owner, len(entries), wrong, by_path, binding))
    return binding


def ranks_of(entries: Sequence[Entry], tensors: Sequence[Any]) -> dict[str, int]:
    """How many axes each `*batch` has, as the first tensor with it tells; whether all agree is for `bind` to say."""
    ranks: dict[str, int] = {}
    for entry, tensor in zip(entries, tensors, strict=False):
        if entry.spec.axes is not None and isinstance(tensor, Tensor):
            ranks.setdefault(entry.spec.axes, max(tensor.dim() - len(entry.spec.dims) + 1, 0))
    return ranks


def describe(tensor: Any) -> str:
    """`float32 (64, 128)`, or the type's name where it is no tensor with a shape."""
    if not isinstance(tensor, Tensor) or tensor.is_nested:
        name = type(tensor).__name__
        return f"a{'n' * (name[0] in 'aeiouAEIOU')} {name}"
    return f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"


def _has_rank(entry: Entry, tensor: Any, complaints: dict[str, list[str]]) -> bool:
    if not isinstance(tensor, Tensor):
        complaints[entry.path] = [f"not a tensor: pass a torch.Tensor of shape {entry.spec}"]
        return False
    if tensor.layout is not torch.strided or tensor.is_nested:
        complaints[entry.path] = ["it is sparse or nested: pass a dense tensor"]
        return False
    if tensor.dim() != len(entry.spec.dims):
        complaints[entry.path] = [f"rank {tensor.dim()} instead of {len(entry.spec.dims)}"]
        return False
    return True


def _bind_names(pairs: Sequence[tuple[Entry, Tensor]], binding: Binding) -> None:
    for entry, tensor in pairs:
        for dim, size in zip(entry.spec.dims, tensor.shape, strict=True):
            if dim.is_name and dim.text not in binding.sizes:
                binding.fix(dim.text, size, f"{entry.path} {tuple(tensor.shape)}")


def _solve_expressions(pairs: Sequence[tuple[Entry, Tensor]], binding: Binding) -> None:
    """`4*dim` of size 256 fixes dim = 64 when nothing else does; repeated, since one may wait for another."""
    waiting = [(e, t, d, n) for e, t in pairs for d, n in zip(e.spec.dims, t.shape, strict=True) if not d.is_name]
    progress = True
    while progress:
        progress = False
        for entry, tensor, dim, size in waiting:
            solved = dim.solve(size, binding.sizes)
            if solved:
                binding.fix(solved[0], solved[1], f"{entry.path} {tuple(tensor.shape)}")
                progress = True


def _expected(dim: Dim, binding: Binding) -> int | None:
    try:
        return int(dim.evaluate(binding.sizes))
    except (KeyError, ZeroDivisionError):
        return None


def _size_complaints(entry: Entry, tensor: Tensor, binding: Binding) -> list[str]:
    lines = []
    for dim, size in zip(entry.spec.dims, tensor.shape, strict=True):
        expected = _expected(dim, binding)
        if expected == size:
            continue
        unknown = [name for name in dim.names if name not in binding.sizes]
        if unknown:
            lines.append(f"axis {dim} = {size} does not tell {', '.join(unknown)}: not exactly one size fits")
        elif dim.constant is not None:
            lines.append(f"axis {dim} is fixed by the annotation, not {size}")
        else:
            setters = "; ".join(f"{n} = {binding.sizes[n]}, set by {binding.fixed_by[n]}" for n in dim.names)
            value = "no whole number" if expected is None else expected
            lines.append(f"axis {dim} is {value}, {setters.removeprefix(f'{dim} = {expected}, ')}")
    return lines


def _type_complaints(
    entry: Entry, tensor: Tensor, device: torch.device | None, complaints: Mapping[str, list[str]]
) -> list[str]:
    lines = []
    if tensor.dtype not in entry.spec.dtypes:
        want = dtype_name(entry.spec.default_dtype())
        agrees = "" if complaints.get(entry.path) else "the shape agrees, the dtype does not: "
        lines.append(f"{agrees}pass {entry.path}.to(torch.{want}), or declare it {class_of(tensor.dtype)}")
    if tensor.device != device:
        lines.append(f"on {tensor.device}, the others on {device}: move it with .to({str(device)!r})")
    return lines


def _message(
    owner: str,
    count: int,
    wrong: Mapping[str, list[str]],
    by_path: Mapping[str, tuple[Entry, Any]],
    binding: Binding,
) -> str:
    entries = f"{len(wrong)} of {count} entries" if count > 1 else "its one entry"
    lines = [f"{owner} breaks its signature in {entries}."]
    for path, complaints in wrong.items():
        entry, tensor = by_path[path]
        sizes = [_expected(dim, binding) for dim in entry.spec.dims]
        shape = "(" + ", ".join(str(d) if n is None else str(n) for d, n in zip(entry.spec.dims, sizes, strict=True))
        shape += ",)" if len(sizes) == 1 else ")"
        lines.append(f"  {path}: expected {entry.spec.quoted} = {shape}, got {describe(tensor)}")
        lines.extend(f"      {complaint}" for complaint in complaints)
    return "\n".join(lines)


def _count_message(owner: str, entries: Sequence[Entry], tensors: Sequence[Any]) -> str:
    expected = ", ".join(f"{entry.path} {entry.spec}" for entry in entries) or "nothing"
    got = ", ".join(map(describe, tensors)) or "nothing"
    return f"{owner} takes {len(entries)} tensors, got {len(tensors)}.\n  expected: {expected}\n  got:      {got}"
