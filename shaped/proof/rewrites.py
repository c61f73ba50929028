"""A few operations in terms of others, or with a check that torch's shape function for them lacks.

The others are those that torch reads as numbers at symbolic sizes, or that hide what they write. They apply within a
trace only, and give the same up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from shaped.errors import Unprovable
from shaped.proof import indexing, packed
from shaped.proof.demands import as_bool, as_item
from shaped.proof.margins import multi_margin_loss, multilabel_margin_loss
from shaped.proof.operations import OPERATIONS
from shaped.proof.ranges import arange, linspace
from shaped.proof.reads import is_traced
from shaped.proof.triangles import combinations, tril_indices, triu_indices
from shaped.proof.views import reshape
from shaped.proof.ways import way_under_way


def one_hot(labels: Tensor, num_classes: Any = -1) -> Tensor:
    """`F.one_hot`, whose kernel takes the number of classes as a plain number."""
    if not isinstance(num_classes, SymInt) or labels.dtype is not torch.int64:
        return F.one_hot(labels, num_classes)
    if not torch._C._functorch.is_batchedtensor(labels):  # `vmap` has no rule for an assertion
        right = ((labels >= 0) & (labels < num_classes)).all()
        said = "one_hot takes class numbers of at least 0 and below the number of classes, and got others"
        torch._assert_async(right, said)  # type: ignore[call-overload]
    numbers: Tensor = torch.arange(num_classes, device=labels.device)  # type: ignore[call-overload]
    return (labels.unsqueeze(-1) == numbers).long()


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, whose kernel updates the running statistics although its schema says that it does not."""
    if not training or running_mean is None or running_var is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = [0, *range(2, x.dim())]
    with torch.no_grad():
        var, mean = torch.var_mean(x.detach().to(running_mean.dtype), axes)
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        running_var.mul_(1 - momentum).add_(var, alpha=momentum)
    # The last, since a checkpoint's second run ends when all that is needed is there.
    return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)


def equal(a: Tensor, b: Tensor) -> bool:
    """`torch.equal`: a question about sizes, then one about data."""
    if a.dim() != b.dim() or any(n != m for n, m in zip(a.shape, b.shape, strict=True)):
        return False
    return bool((a == b).all())


def tensor_of(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` of a list with numbers in tensors, which C++ reads one by one; gradients end there."""

    def made(data: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        if args or not isinstance(data, list | tuple) or set(kwargs) - {"device", "requires_grad"}:
            return create(data, *args, dtype=dtype, **kwargs)
        leaves = list(_leaves(data))
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves):
            return create(data, dtype=dtype, **kwargs)
        kinds = [leaf.dtype if isinstance(leaf, Tensor) else _dtype_of(leaf) for leaf in leaves]
        kind = dtype or reduce(torch.promote_types, kinds)
        result = _stacked(data, kind).to(kwargs.get("device"))
        return result.requires_grad_() if kwargs.get("requires_grad") else result

    return made


def _leaves(data: Any) -> Iterator[Any]:
    for part in data:
        yield from _leaves(part) if isinstance(part, list | tuple) else (part,)


def _dtype_of(number: Any) -> torch.dtype:
    known = {SymBool: torch.bool, SymInt: torch.int64, SymFloat: torch.get_default_dtype()}.get(type(number))
    return known or torch.tensor(number).dtype


def _stacked(data: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(data, Tensor):
        if data.numel() != 1:
            raise ValueError("only one element tensors can be converted to Python scalars")
        return data.detach().to(dtype).reshape(())
    if isinstance(data, list | tuple):
        return torch.stack([_stacked(part, dtype) for part in data]) if data else torch.empty(0, dtype=dtype)
    return torch.full((), data, dtype=dtype)


def kron(a: Tensor, b: Tensor) -> Tensor:
    """`torch.kron`, which C++ takes apart with sizes as plain numbers."""
    rank = max(a.dim(), b.dim())
    one, other = ([1] * (rank - x.dim()) + list(x.shape) for x in (a, b))
    parts = a.reshape([n for size in one for n in (size, 1)]) * b.reshape([n for size in other for n in (1, size)])
    return parts.reshape([n * m for n, m in zip(one, other, strict=True)])


def cross_entropy(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.cross_entropy` over class numbers, which `vmap` takes apart in C++ with sizes as plain numbers."""
    _hold_classes(x, target)
    reduction = kwargs.get("reduction", "mean")
    mapped = torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_gradtrackingtensor(x)
    plain = ("reduction", "ignore_index")
    others = [name for name, value in kwargs.items() if name not in plain and value is not None and value is not False]
    others = [name for name in others if isinstance(kwargs[name], Tensor) or kwargs[name] != 0]
    if not mapped or args or others or target.is_floating_point() or target.dim() != max(x.dim() - 1, 0):
        return F.cross_entropy(x, target, *args, **kwargs)
    ignored = kwargs.get("ignore_index", -100)
    axis = 1 if x.dim() > 1 else 0
    numbers = torch.arange(x.shape[axis], device=x.device).view(-1, *[1] * (x.dim() - 1 - axis))
    hit = (target.unsqueeze(axis) == numbers) & (target != ignored).unsqueeze(axis)  # gather too reads numbers there
    each = torch.where(hit, -x.log_softmax(axis), 0.0).sum(axis)
    if reduction == "none":
        return each
    return each.sum() / (target != ignored).sum() if reduction == "mean" else each.sum()


def nll_loss(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.nll_loss`, as `cross_entropy`."""
    _hold_classes(x, target)
    return F.nll_loss(x, target, *args, **kwargs)


def _hold_classes(x: Tensor, target: Tensor) -> None:
    """A class for each entry beside axis 1, which torch's shape functions look at for matrices only."""
    if x.dim() > 2 and target.dim() == x.dim() - 1 and not target.is_floating_point():
        with disable_proxy_modes_tracing():
            x.detach().new_empty((x.shape[0], *x.shape[2:])) + target.detach().new_empty(target.shape)


def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.scaled_dot_product_attention`, whose kernels take a number as the scale: one of sizes goes to the query.

    Nor does its kernel for the CPU look whether there are as many keys as values.
    """
    if isinstance(scale := kwargs.get("scale"), SymFloat):
        query, kwargs["scale"] = query * (scale * torch.sym_sqrt(query.shape[-1])), None
    named = {**dict(zip(("key", "value"), args, strict=False)), **kwargs}
    key, value = named.get("key"), named.get("value")
    if isinstance(key, Tensor) and isinstance(value, Tensor) and min(key.dim(), value.dim()) >= 2:
        with disable_proxy_modes_tracing():
            key.detach().new_empty(key.shape[-2:]).mT @ value.detach().new_empty(value.shape[-2:])
    return F.scaled_dot_product_attention(query, *args, **kwargs)


def affine_grid(theta: Tensor, size: Sequence[Any], align_corners: bool | None = None) -> Tensor:
    """`F.affine_grid`, whose kernel takes the size as plain numbers."""
    axes = len(size) - 2
    whole = axes in (2, 3) and theta.dim() == 3 and theta.is_floating_point()
    if not whole or not any(isinstance(length, SymInt) for length in (*size, theta.shape[0])):
        return F.affine_grid(theta, list(size), align_corners)
    if not (theta.shape[1] == axes and theta.shape[2] == axes + 1 and theta.shape[0] == size[0]):
        raise ValueError(f"expected theta of [{size[0]}, {axes}, {axes + 1}], got {list(theta.shape)}")
    columns = []
    for axis, length in enumerate(size[2:]):
        step = torch.sym_max(length - 1, 1) if align_corners else length
        numbers = torch.arange(length, dtype=theta.dtype, device=theta.device)
        column = (2 * numbers - (length - 1)) / step  # one point alone lies in the middle, as torch has it
        columns.append(column.view([-1 if i == axis else 1 for i in range(axes)]).expand(*size[2:]))
    points = torch.stack([*reversed(columns), torch.ones_like(columns[0])], -1)
    flat = points.reshape(1, -1, axes + 1).expand(size[0], -1, -1)
    return flat.bmm(theta.transpose(1, 2)).view(size[0], *size[2:], axes)


def _not_empty(operation: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction that has no value over an empty axis, which its shape function does not mind."""

    def reduce(x: Any, *args: Any, **kwargs: Any) -> Any:
        axis = kwargs.get("dim", args[0] if args and isinstance(args[0], int) else None)
        if isinstance(x, Tensor) and not (args and isinstance(args[0], Tensor)):
            length = x.numel() if axis is None else x.shape[axis] if -x.dim() <= axis < x.dim() else 1
            way = way_under_way()
            if way is not None and not way.sizes and isinstance(length, SymInt) and free_unbacked_symbols(length):
                raise DynamicOutputShapeException(getattr(torch.ops.aten, operation.__name__).default)  # of how many?
            if not length >= 1:
                raise IndexError("a maximum, minimum, median or mode needs an axis that is not empty")
        return operation(x, *args, **kwargs)

    return reduce


def _not_beyond(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A convolution whose kernel must not be larger than what it runs over, dilation included."""

    def convolve(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = operation(x, weight, *args, **kwargs)
        if any(not size >= 1 for size in result.shape[result.dim() - (weight.dim() - 2) :]):
            raise RuntimeError("the kernel is larger than the padded input")
        return result

    return convolve


def interpolate(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.interpolate`, whose kernels refuse a result without elements and whose shape functions do not."""
    result = F.interpolate(x, *args, **kwargs)
    if any(not size >= 1 for size in result.shape[2:]):
        raise RuntimeError("Input and output sizes should be greater than 0")
    return result


def as_strided(x: Tensor, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None) -> Tensor:
    """`torch.as_strided` of a tensor that lies in its own memory, beyond which it must not read."""
    offset = 0 if storage_offset is None else storage_offset
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not last < x.numel():
        raise RuntimeError("as_strided reads beyond the storage")
    return torch.as_strided(x, size, stride, storage_offset)


def multinomial(x: Tensor, num_samples: Any, replacement: bool = False, **kwargs: Any) -> Tensor:
    """`torch.multinomial`, which cannot draw more than there is."""
    if not replacement and not num_samples <= x.shape[-1]:
        raise RuntimeError("multinomial cannot draw more samples than there are, without replacement")
    return torch.multinomial(x, num_samples, replacement, **kwargs)


def data_set(x: Tensor, value: Tensor) -> None:
    """`x.data = value`, which a graph would not see: a write into `x`, which it does."""
    if x.shape != value.shape or x.dtype is not value.dtype:
        raise Unprovable("the program gives a tensor data of another shape or dtype, through .data.")
    with torch.no_grad():
        x.copy_(value)


def as_array(read: Callable[..., Any]) -> Callable[..., Any]:
    """`numpy()` and its like of a tensor from outside: within a trace they would read memory that is not there."""

    def outside(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if is_traced(x) else _disable_current_modes():
            return read(x, *args, **kwargs)

    return outside


def deep_copy(x: Tensor, memo: dict[int, Any]) -> Tensor:
    """`copy.deepcopy` of a tensor: torch's own writes into a storage, which no graph sees."""
    if type(x) not in (Tensor, FakeTensor) or not x.is_leaf or id(x) in memo:
        return Tensor.__deepcopy__(x, memo)  # type: ignore[no-any-return]
    memo[id(x)] = x.detach().clone().requires_grad_(x.requires_grad)
    return memo[id(x)]  # type: ignore[no-any-return]


def as_float(x: Tensor) -> float:
    """`float(x)`: within `torch.Tensor([x])` C++ lets no mode see that a number is read, and so finds no data."""
    key = torch._C.DispatchKey.Python
    if not isinstance(x, FakeTensor) or not torch._C._dispatch_tls_is_dispatch_key_excluded(key):
        return Tensor.__float__(x)
    with torch._C._SetExcludeDispatchKeyGuard(key, False):
        return float(x.item())


_REDUCTIONS = ("max", "min", "median", "nanmedian", "mode")
_REWRITES: dict[Any, Callable[..., Any]] = {
    getattr(Tensor.data, "__get__"): Tensor.detach,  # noqa: B009  # `.data` hides what is written through it
    getattr(Tensor.data, "__set__"): data_set,  # noqa: B009
    **{read: as_array(read) for read in (Tensor.numpy, Tensor.__array__)},
    **OPERATIONS,
    F.one_hot: one_hot,
    torch.kron: kron,
    Tensor.kron: kron,
    F.batch_norm: batch_norm,
    F.cross_entropy: cross_entropy,
    F.nll_loss: nll_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    torch.arange: arange,
    torch.linspace: linspace,
    torch.tril_indices: tril_indices,
    torch.triu_indices: triu_indices,
    torch.combinations: combinations,
    Tensor.reshape: reshape,
    torch.reshape: reshape,
    F.affine_grid: affine_grid,
    F.scaled_dot_product_attention: attention,
    F.interpolate: interpolate,
    torch.equal: equal,
    Tensor.__float__: as_float,
    Tensor.__bool__: as_bool,
    Tensor.item: as_item,
    Tensor.__deepcopy__: deep_copy,
    torch.tensor: tensor_of(torch.tensor),
    torch.as_tensor: tensor_of(torch.as_tensor),
    Tensor.equal: equal,
    torch.as_strided: as_strided,
    Tensor.as_strided: as_strided,
    torch.multinomial: multinomial,
    Tensor.multinomial: multinomial,
    **{f: _not_empty(f) for name in _REDUCTIONS for f in (getattr(torch, name), getattr(Tensor, name))},
    **indexing.REWRITES,
    **packed.REWRITES,
    **{f: _not_beyond(f) for f in (F.conv1d, F.conv2d, F.conv3d)},
}


class Rewrites(TorchFunctionMode):
    """Puts them in the originals' place."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _REWRITES.get(func, func)(*args, **(kwargs or {}))
