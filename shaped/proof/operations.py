"""Operations whose result has a plain shape, in terms of others: as torch writes them they read sizes, or data, as
numbers. They apply at symbolic sizes within a trace, and give the same up to rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from shaped.proof.alignment import ctc_loss
from shaped.proof.ranges import linspace
from shaped.proof.recurrent import LAYERS


def max_pool1d(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
    """`F.max_pool1d`, as pooling over a plane of height 1."""
    if return_indices or x.dim() not in (2, 3):
        given: tuple[Any, ...] = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return F.max_pool1d(x, *given)
    kernel, over, around = _one(kernel_size), _one(stride), _one(padding)
    step = kernel if over is None else over
    pooled = F.max_pool2d(x.unsqueeze(-2), (1, kernel), (1, step), (0, around), (1, _one(dilation)), ceil_mode)
    return pooled.squeeze(-2)


def _one(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list | tuple) else value


def _window(original: Callable[..., Tensor], weights: Callable[..., Sequence[float]]) -> Callable[..., Tensor]:
    """A window that is a sum of cosines."""

    def window(window_length: Any, periodic: bool = True, *args: Any, **kwargs: Any) -> Tensor:
        plain = not isinstance(window_length, SymInt) or set(kwargs) - {"dtype", "device", "alpha", "beta"}
        if plain or not isinstance(periodic, bool):
            return original(window_length, periodic, *args, **kwargs)
        numbers = {name: kwargs.pop(name) for name in ("alpha", "beta") if name in kwargs}
        kwargs["dtype"] = kwargs.get("dtype") or torch.get_default_dtype()
        counted: Tensor = torch.arange(window_length, **kwargs)
        angle = counted * (2 * math.pi / (window_length if periodic else window_length - 1))
        first, *others = weights(*args, **numbers)
        result = torch.full_like(angle, first)
        for i, weight in enumerate(others, 1):
            result = result + weight * (angle * i).cos()
        return result

    return window


def _hamming(alpha: float = 0.54, beta: float = 0.46) -> Sequence[float]:
    return alpha, -beta


def _frequencies(original: Callable[..., Tensor], half: bool) -> Callable[..., Tensor]:
    """`fftfreq` or `rfftfreq`: the numbers from 0, the upper half of them below it unless left out, over n*d."""

    def frequencies(n: Any, d: float = 1.0, **kwargs: Any) -> Tensor:
        if not isinstance(n, SymInt) or set(kwargs) - {"dtype", "device"}:
            return original(n, d, **kwargs)
        kwargs["dtype"] = kwargs.get("dtype") or torch.get_default_dtype()
        size: Any = n
        counted: Tensor = torch.arange(size // 2 + 1 if half else size, **kwargs)
        return (counted if half else torch.where(counted >= (size + 1) // 2, counted - size, counted)) / (size * d)

    return frequencies


def _places(window_length: Any, periodic: bool, kwargs: dict[str, Any]) -> Tensor:
    """Where a window's entries lie, from -1 to 1."""
    kwargs["dtype"] = kwargs.get("dtype") or torch.get_default_dtype()
    counted: Tensor = torch.arange(window_length, **kwargs)
    return counted * (2 / (window_length if periodic else torch.sym_max(window_length - 1, 1))) - 1


def bartlett_window(window_length: Any, periodic: bool = True, **kwargs: Any) -> Tensor:
    """`torch.bartlett_window`: a triangle."""
    if not isinstance(window_length, SymInt) or set(kwargs) - {"dtype", "device"}:
        return torch.bartlett_window(window_length, periodic, **kwargs)
    return 1 - _places(window_length, periodic, kwargs).abs()


def kaiser_window(window_length: Any, periodic: bool = True, beta: float = 12.0, **kwargs: Any) -> Tensor:
    """`torch.kaiser_window`."""
    if not isinstance(window_length, SymInt) or set(kwargs) - {"dtype", "device"}:
        return torch.kaiser_window(window_length, periodic, beta, **kwargs)
    inner = (1 - _places(window_length, periodic, kwargs).square()).clamp_min(0)
    return torch.i0(beta * inner.sqrt()) / torch.i0(torch.full_like(inner, beta))


def vander(x: Tensor, N: Any = None, increasing: bool = False) -> Tensor:
    """`torch.vander`: the powers of each entry."""
    if x.dim() != 1 or (isinstance(x.shape[0], int) and not isinstance(N, SymInt)):
        return torch.vander(x, N, increasing)
    count: Any = x.shape[0] if N is None else N
    powers = torch.arange(count, device=x.device)
    return x.unsqueeze(-1) ** (powers if increasing else powers.flip(0))


def bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.bilinear`: a form of both for each row of the weight."""
    fit = weight.dim() == 3 and a.dim() == b.dim() >= 1 and a.dtype == b.dtype == weight.dtype
    if not fit or not any(isinstance(n, SymInt) for t in (a, b, weight) for n in t.shape):
        return F.bilinear(a, b, weight, bias)
    if not all(m == n for m, n in zip(a.shape[:-1], b.shape[:-1], strict=True)):
        raise RuntimeError("bilinear needs operands whose sizes are the same but for the last")
    if not (a.shape[-1] == weight.shape[1] and b.shape[-1] == weight.shape[2]):
        raise RuntimeError("bilinear needs a weight of [outputs, size of the first, size of the second]")
    result = torch.einsum("...i,kij,...j->...k", a, weight, b)
    return result if bias is None else result + bias


def corrcoef(x: Tensor) -> Tensor:
    """`torch.corrcoef` of several variables, each a row; of one, 1, or NaN where it does not vary."""
    if x.dim() == 1:
        return cov(x) / cov(x)
    rows: Any = x.shape[0] if x.dim() == 2 else 1
    if isinstance(rows, int):
        return torch.corrcoef(x)
    c = cov(x)
    deviation = c.diagonal().sqrt()
    c = c / deviation.unsqueeze(-1) / deviation.unsqueeze(0)
    return c if c.is_complex() else c.clip(-1, 1)


def logspace(start: Any, end: Any, steps: Any, base: float = 10.0, **kwargs: Any) -> Tensor:
    """`torch.logspace`, as powers of what `torch.linspace` gives."""
    if not isinstance(steps, SymInt) or not all(isinstance(x, int | float) for x in (start, end, base)):
        return torch.logspace(start, end, steps, base, **kwargs)
    return torch.pow(base, linspace(start, end, steps, **kwargs))


def cov(x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Tensor:
    """`torch.cov` without weights: rows are variables."""
    if x.dim() == 1 and fweights is None and aweights is None:
        return cov(x.unsqueeze(0), correction=correction).reshape(())
    if fweights is not None or aweights is not None or x.dim() != 2:
        return torch.cov(x, correction=correction, fweights=fweights, aweights=aweights)
    centred = x - x.mean(1, keepdim=True)
    result: Tensor = centred @ centred.mT.conj() / torch.sym_max(x.shape[1] - correction, 0)  # type: ignore[assignment]
    return result.squeeze() if isinstance(x.shape[0], int) else result  # of one variable: a number


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """`F.gaussian_nll_loss`, whose look at the variances is asserted where the program runs."""
    if not isinstance(var, Tensor) or reduction not in ("none", "mean", "sum"):
        return F.gaussian_nll_loss(input, target, var, full=full, eps=eps, reduction=reduction)
    said = "var has negative entry/entries"
    torch._assert_async((var >= 0).all(), said)  # type: ignore[call-overload]
    if var.dim() == input.dim() - 1 and all(a == b for a, b in zip(var.shape, input.shape, strict=False)):
        var = var.unsqueeze(-1)
    odd = [n for m, n in zip(input.shape, var.shape, strict=False) if m != n]
    if var.dim() != input.dim() or len(odd) > 1 or any(n != 1 for n in odd):
        raise ValueError("var is of incorrect size")
    var = var + (var.clamp(min=eps) - var).detach()  # torch clamps it without a gradient of its own
    loss = 0.5 * (var.log() + (input - target) ** 2 / var)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _drawn(original: Callable[..., Tensor], fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory that draws from a generator, which takes no symbolic size: made empty, then filled."""

    def draw(*size: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
        lengths = size[0] if len(size) == 1 and isinstance(size[0], list | tuple) else size
        if generator is None:  # left out, since torch's form with a generator takes no symbolic size even for None
            return original(*size, **kwargs)
        if not any(isinstance(n, SymInt) for n in lengths) or "out" in kwargs:
            return original(*size, generator=generator, **kwargs)
        wanted = kwargs.pop("requires_grad", False)
        with torch.no_grad():
            made = fill(torch.empty(*lengths, **kwargs), generator)
        return made.requires_grad_(wanted)

    return draw


def uniform_(x: Tensor, low: Any = 0.0, high: Any = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """`Tensor.uniform_`, whose kernel takes plain numbers: those of sizes are applied to what is drawn."""
    if not _is_symbolic(low, high):
        return x.uniform_(low, high, generator=generator)
    if not low <= high:
        raise RuntimeError("uniform_ expects to return a [from, to) range, and from is larger than to")
    return x.uniform_(generator=generator).mul_(high - low).add_(low)


def normal_(x: Tensor, mean: Any = 0.0, std: Any = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """`Tensor.normal_`, in the same way."""
    if not _is_symbolic(mean, std):
        return x.normal_(mean, std, generator=generator)
    if not std >= 0:
        raise RuntimeError("normal expects std >= 0.0")
    return x.normal_(generator=generator).mul_(std).add_(mean)


def _initial(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`nn.init.uniform_` or `nn.init.normal_`, within which no mode sees what they call."""

    def initialise(tensor: Tensor, *numbers: Any, generator: torch.Generator | None = None, **named: Any) -> Tensor:
        first, second = ("a", "b") if fill is uniform_ else ("mean", "std")
        given = [*numbers, *([named.get(first, 0.0)] if not numbers else []), *([named.get(second, 1.0)])][:2]
        with torch.no_grad():
            return fill(tensor, *given, generator=generator)

    return initialise


def random_(x: Tensor, *bounds: Any, generator: torch.Generator | None = None) -> Tensor:
    """`Tensor.random_`: a graph cannot be written with an argument that is named `from`."""
    if len(bounds) != 2 or None in bounds:
        return x.random_(*bounds, generator=generator)
    return x.random_(bounds[1] - bounds[0], generator=generator).add_(bounds[0])


def _is_symbolic(*numbers: Any) -> bool:
    return any(isinstance(number, SymInt | torch.SymFloat) for number in numbers)


def grouped_mm(mat_a: Tensor, mat_b: Tensor, *, offs: Tensor | None = None, bias: Tensor | None = None,
               out_dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
    """`F.grouped_mm` of rows by groups, whose shape function knows bfloat16 alone: each group's product, masked."""
    plain = mat_a.dtype is torch.bfloat16 or bias is not None or out_dtype not in (None, mat_a.dtype) or offs is None
    if plain or mat_a.dim() != 2 or mat_b.dim() != 3 or not isinstance(mat_b.shape[0], int) or offs is None:
        return F.grouped_mm(mat_a, mat_b, offs=offs, bias=bias, out_dtype=out_dtype)
    if mat_a.dtype is not mat_b.dtype or offs.dtype is not torch.int32 or offs.dim() != 1:
        return F.grouped_mm(mat_a, mat_b, offs=offs, bias=bias, out_dtype=out_dtype)
    strides = [n for t in (mat_a, mat_b) for n in t.stride()[-2:] if not (isinstance(n, int) and n == 1)]
    if any(n % (16 // mat_a.element_size()) != 0 for n in strides):
        raise RuntimeError("strides should be multiple of 16 bytes")
    row = torch.arange(mat_a.shape[0], device=mat_a.device)
    result = mat_a.new_zeros(mat_a.shape[0], mat_b.shape[2])
    for group in range(mat_b.shape[0]):
        within = row < offs[group] if group == 0 else (row >= offs[group - 1]) & (row < offs[group])
        result = torch.where(within.unsqueeze(1), mat_a @ mat_b[group], result)
    return result


def windows(x: Tensor, dim: int, size: Any, step: Any) -> Tensor:
    """What `Tensor.unfold` gives, looked up window by window."""
    axis, length = dim % x.dim(), x.shape[dim]
    if not (size >= 0 and size <= length and step > 0):
        raise RuntimeError(f"maximum size for tensor at dimension {dim} is {length} but size is {size}")
    count = (length - size) // step + 1
    places = torch.arange(count, device=x.device).unsqueeze(1) * step + torch.arange(size, device=x.device)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]).movedim(axis + 1, -1)


def unfold(x: Tensor, dimension: int, size: Any, step: Any) -> Tensor:
    """`Tensor.unfold`, which takes the length of a window as a plain number."""
    symbolic = isinstance(size, SymInt) or isinstance(step, SymInt)
    plain = not symbolic or not isinstance(dimension, int) or not -x.dim() <= dimension < x.dim()
    return x.unfold(dimension, size, step) if plain else windows(x, dimension, size, step)


def normalised(x: Tensor, groups: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """What `F.group_norm` gives, by the mean and variance of each group."""
    if not (groups > 0 and x.shape[1] % groups == 0):
        raise RuntimeError("Expected number of channels in input to be divisible by num_groups")
    grouped = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(grouped, 2, correction=0, keepdim=True)
    result = ((grouped - mean) * (var + eps).rsqrt()).reshape(x.shape)
    sizes = [1, -1, *[1] * (x.dim() - 2)]
    result = result if weight is None else result * weight.view(sizes)
    return result if bias is None else result + bias.view(sizes)


def group_norm(input: Tensor, num_groups: Any, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:  # fmt: skip
    """`F.group_norm`, whose kernel takes the number of groups as a plain number."""
    if not isinstance(num_groups, SymInt) or input.dim() < 2:
        return F.group_norm(input, num_groups, weight, bias, eps)
    values = input.shape[0] * input.shape[1] // num_groups
    for length in input.shape[2:]:
        values = values * length
    if not values > 1:
        raise ValueError("Expected more than 1 value per channel when training")
    return normalised(input, num_groups, weight, bias, eps)


OPERATIONS: dict[Any, Callable[..., Any]] = {
    F.ctc_loss: ctc_loss,
    F.max_pool1d: max_pool1d,
    torch.max_pool1d: max_pool1d,
    torch.hann_window: _window(torch.hann_window, lambda: (0.5, -0.5)),
    torch.hamming_window: _window(torch.hamming_window, _hamming),
    torch.blackman_window: _window(torch.blackman_window, lambda: (0.42, -0.5, 0.08)),
    torch.bartlett_window: bartlett_window,
    torch.kaiser_window: kaiser_window,
    torch.fft.fftfreq: _frequencies(torch.fft.fftfreq, half=False),
    torch.fft.rfftfreq: _frequencies(torch.fft.rfftfreq, half=True),
    F.bilinear: bilinear,
    torch.bilinear: bilinear,
    torch.vander: vander,
    torch.corrcoef: corrcoef,
    Tensor.corrcoef: corrcoef,
    torch.logspace: logspace,
    torch.cov: cov,
    Tensor.cov: cov,
    F.gaussian_nll_loss: gaussian_nll_loss,
    **LAYERS,
    Tensor.unfold: unfold,
    F.group_norm: group_norm,
    Tensor.uniform_: uniform_,
    Tensor.normal_: normal_,
    Tensor.random_: random_,
    torch.nn.init.uniform_: _initial(uniform_),
    torch.nn.init.normal_: _initial(normal_),
    torch.rand: _drawn(torch.rand, lambda x, g: x.uniform_(generator=g)),
    torch.randn: _drawn(torch.randn, lambda x, g: x.normal_(generator=g)),
    **{f: grouped_mm for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f is not None},
}
