"""Indexing with sizes: `x[:, seq - 1]`, `x[[0, n // 2]]`; and what an index must not exceed.

torch reads a size among indices as a number, which holds for one size only, and its shape functions do not look at how
long an axis is that numbers index. These ask, so that the answer is part of the proof.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing


def getitem(x: Any, index: Any) -> Any:
    """`x[index]`"""
    return Tensor.__getitem__(*_indexed(x, index)) if isinstance(x, Tensor) else x[index]


def setitem(x: Any, index: Any, value: Any) -> None:
    """`x[index] = value`"""
    view, rest = _indexed(x, index, reads=False)
    if isinstance(value, Tensor):
        _fit(view, rest if isinstance(rest, tuple) else (rest,), value)
    Tensor.__setitem__(view, rest, value)


def putting(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`index_put` and `index_put_`, as `x[index] = value`."""

    def put(x: Tensor, indices: Any, values: Any, accumulate: bool = False) -> Tensor:
        if isinstance(values, Tensor) and isinstance(indices, list | tuple):
            _fit(x, tuple(indices), values)
        return operation(x, indices, values, accumulate)

    return put


def _fit(x: Tensor, index: tuple[Any, ...], value: Tensor) -> None:
    """What tensors index takes a value that broadcasts to it, which torch's shape functions do not look at."""
    tensors = [part for part in index if isinstance(part, Tensor) and part.dim()]
    if not tensors:
        return
    with disable_proxy_modes_tracing():
        if all(part.dtype not in (torch.bool, torch.uint8) for part in tensors):
            sizes: Sequence[Any] = Tensor.__getitem__(x.detach(), index).shape
        elif len(index) == 1 or (len(index) == 2 and index[1] is Ellipsis):  # how many a mask takes is data
            sizes = x.shape[_axes(index[0]) :]
        else:
            return
        beyond = max(0, value.dim() - len(sizes))
        value.detach().new_empty(value.shape[beyond:]).expand(sizes)


def select(x: Tensor, dim: int, index: Any) -> Tensor:
    """`x.select(dim, index)`"""
    return _one_of(x, dim, index) if isinstance(index, SymInt) else torch.select(x, dim, index)


def _indexed(x: Tensor, index: Any, reads: bool = True) -> tuple[Tensor, Any]:
    """The tensor with its symbolic positions taken, and what is left of the index.

    Args:
        reads: Nothing is written into what is returned, so that it need not be a view.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    plain = type(None) | type(Ellipsis) | int | SymInt | slice
    among = reads and all(isinstance(part, plain) or _is_position(part) for part in parts)
    if not any(isinstance(p, SymInt | list | tuple | range) or (among and _is_position(p)) for p in parts):
        return x, index
    taken, left, axis = x, list[Any](), 0
    for i, part in enumerate(parts):
        if isinstance(part, SymInt):
            taken = _one_of(taken, axis, part)
            continue
        if among and _is_position(part) and axis < taken.dim():  # torch would read its value
            taken = taken.index_select(axis, part.reshape(1).long()).squeeze(axis)
            continue
        if part is Ellipsis:
            axis = taken.dim() - sum(map(_axes, parts[i + 1 :]))
        elif isinstance(part, list | tuple | range) and axis < taken.dim():
            sliced = all(other is part or isinstance(other, slice) for other in parts)
            part = part if sliced and _is_empty(taken, axis) else _numbers(part, taken, axis)
        if part is not Ellipsis:
            axis += _axes(part)
        left.append(part)
    return taken, tuple(left)


def _is_position(part: Any) -> bool:
    """Whether a part of an index is one position that is data."""
    whole = (torch.int64, torch.int32, torch.int16, torch.int8)
    return type(part) is FakeTensor and part.dim() == 0 and part.dtype in whole and part.constant is None


def _axes(part: Any) -> int:
    """How many axes of a tensor a part of an index is about."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.dim() if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) else 1


def _one_of(x: Tensor, axis: int, position: Any) -> Tensor:
    size = x.shape[axis]
    if not (-size <= position and position < size):
        raise IndexError(f"index {position} is out of range for axis {axis} of size {size}")
    start = position if position >= 0 else position + size
    return x.narrow(axis, start, 1).squeeze(axis)


def _is_empty(x: Tensor, but: int) -> bool:
    """Whether another axis has no entries, so that torch looks up nothing and refuses no position."""
    return any(isinstance(size, int) and size == 0 for axis, size in enumerate(x.shape) if axis != but)


def _numbers(part: Any, x: Tensor, axis: int) -> Any:
    """A list of positions, held against the axis; as a tensor where some of them are sizes."""
    positions = list(part)
    if not positions or not all(isinstance(p, int | SymInt) and not isinstance(p, bool) for p in positions):
        return part
    for position in positions:
        if not (position < x.shape[axis] and -x.shape[axis] <= position):
            raise IndexError(f"index {position} is out of range for axis {axis} of size {x.shape[axis]}")
    if not any(isinstance(p, SymInt) for p in positions):
        return part
    return torch.stack([torch.full((), p, dtype=torch.int64, device=x.device) for p in positions])


def take_along_dim(x: Tensor, indices: Tensor, dim: Any = None) -> Tensor:
    """`torch.take_along_dim`, which C++ takes apart with sizes as plain numbers."""
    if dim is None:
        return x.reshape(-1).gather(0, indices.reshape(-1))
    if x.dim() != indices.dim() or not -x.dim() <= dim < x.dim():
        return torch.take_along_dim(x, indices, dim)  # which says what is wrong
    along, sizes = dim % x.dim(), list(zip(x.shape, indices.shape, strict=True))
    both = [-1 if i == along else b if a == 1 else a for i, (a, b) in enumerate(sizes)]
    return x.expand(both).gather(dim, indices.expand(both).remainder(x.shape[along]))  # as torch's own wraps it


def tensor_split(x: Tensor, indices_or_sections: Any, dim: int = 0) -> Any:
    """`torch.tensor_split` into a number of parts, of which torch asks whether the first are longer."""
    count = indices_or_sections
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or not -x.dim() <= dim < x.dim():
        return torch.tensor_split(x, count, dim)
    lengths = [(x.shape[dim] + count - 1 - i) // count for i in range(count)]
    return tuple(x.narrow(dim, sum(lengths[:i]), length) for i, length in enumerate(lengths))


def within(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`scatter` and its like, whose index must fit into what is written to and into what is written."""

    def scattered(x: Tensor, dim: Any, index: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        source = args[0] if args else kwargs.get("src")
        if isinstance(index, Tensor) and isinstance(dim, int) and index.dim() == x.dim() and x.dim():
            _hold(index, x, dim % x.dim())
            if isinstance(source, Tensor) and source.dim() == index.dim():
                _hold(index, source, None)
        return operation(x, dim, index, *args, **kwargs)

    return scattered


def _hold(index: Tensor, other: Tensor, but: int | None) -> None:
    sizes: Sequence[Any] = index.shape
    for axis, (length, most) in enumerate(zip(sizes, other.shape, strict=True)):
        if axis != but and not length <= most:
            if index.numel() == 0:
                return
            raise RuntimeError(f"the index has {length} entries along axis {axis}, which is more than {most}")


def as_long(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`index_add` and its like, whose source is as long as what it goes into, but along the index."""

    def added(x: Tensor, dim: Any, index: Any, source: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(source, Tensor) and isinstance(index, Tensor) and isinstance(dim, int):
            with disable_proxy_modes_tracing():
                bare = (t.detach().new_empty(t.shape, dtype=torch.float32) for t in (x, source))
                next(bare).index_copy(dim, index.detach().long(), next(bare))
        return operation(x, dim, index, source, *args, **kwargs)

    return added


def select_scatter(x: Tensor, src: Tensor, dim: int, index: Any) -> Tensor:
    """`torch.select_scatter`, whose source is as long as what is selected."""
    with disable_proxy_modes_tracing():
        bare = (t.detach().new_empty(t.shape, dtype=torch.float32) for t in (x, src.unsqueeze(dim)))
        next(bare).index_copy(dim, torch.zeros(1, dtype=torch.int64, device=x.device), next(bare))
    return torch.select_scatter(x, src, dim, index)


_SCATTERS = ("scatter", "scatter_add", "scatter_reduce", "gather")
REWRITES: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: getitem,
    Tensor.__setitem__: setitem,
    Tensor.select: select,
    torch.select: select,
    torch.take_along_dim: take_along_dim,
    Tensor.take_along_dim: take_along_dim,
    torch.tensor_split: tensor_split,
    Tensor.tensor_split: tensor_split,
    torch.select_scatter: select_scatter,
    Tensor.select_scatter: select_scatter,
    **{
        one: as_long(one)
        for name in ("index_add", "index_reduce")
        for one in (getattr(torch, name), getattr(Tensor, name), getattr(Tensor, f"{name}_"))
    },
    **{one: putting(one) for one in (torch.index_put, Tensor.index_put, torch.index_put_, Tensor.index_put_)},
    **{getattr(owner, name): within(getattr(owner, name)) for name in _SCATTERS for owner in (torch, Tensor)},
    **{getattr(Tensor, f"{n}_"): within(getattr(Tensor, f"{n}_")) for n in _SCATTERS[:3]},
}
