"""Products in eight bits: E4M3 forward, E5M2 for gradients, one scale a tensor, parameters in float32.

    s = max(dtype)/max|x|        q = round(clip(x*s))        x ~= q/s

Each product of the three (y = x @ w, dx = g @ w.T, dw = x.T @ g) takes both operands in eight bits and adds up in
float32. The parameters of the trainer are the master weights: an update smaller than an eight-bit step is not lost.

Source: Micikevicius et al. 2022, arXiv:2209.05433; scales from the tensor itself ("dynamic", tensorwise), as torchao's.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from shaped.arguments import checked, only_tensors
from shaped.errors import ShapeError
from shaped.lora.names import matching
from shaped.scaling import LossScaler as LossScaler
from shaped.scaling import unscaled as unscaled
from shaped.scaling import with_scale as with_scale

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_TINY = 1e-12  # torchao's floor for the largest absolute value: a tensor of zeros has a scale too
# The public operator, whose form for CPUs came after 2.11.
_PUBLIC = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
Product = Literal["emulated", "scaled"]


def scale_of(x: Tensor, dtype: torch.dtype) -> Float[Tensor, ""]:
    """What x is multiplied with before it is rounded, so that its largest entry becomes the dtype's.

    Raises:
        ShapeError: `x` is no tensor. ValueError: `dtype` is no floating-point dtype.
    """
    only_tensors("scale_of", x=x)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; it is a floating-point dtype, such as {E4M3}")
    with torch.no_grad():
        largest = (
            x.abs().amax() if x.numel() else x.new_zeros(())
        ).double()  # in float64, so that eager and compiled code divide alike
        return (torch.finfo(dtype).max / largest.clamp_min(_TINY)).float()


def to_fp8(x: Tensor, dtype: torch.dtype = E4M3) -> tuple[Tensor, Float[Tensor, ""]]:
    """x in eight bits, and the scale it was multiplied with. What is too large becomes the largest, not infinite.

    A value is off by at most 2**-4 of itself in E4M3 and 2**-3 in E5M2; below the smallest normal number (2**-6 and
    2**-14, divided by the scale) by half the spacing there (2**-10 and 2**-17).
    """
    scale = scale_of(x, dtype)
    limit = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-limit, limit).to(dtype), scale


def round_to_fp8(x: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """x as eight bits would keep it, in its own dtype. Has no gradient of its own. Raises as `scale_of`."""
    only_tensors("round_to_fp8", x=x)
    q, scale = to_fp8(x.detach(), dtype)
    return (q.float() / scale).to(x.dtype)


def _product(a: Tensor, b: Tensor, a_dtype: torch.dtype, b_dtype: torch.dtype, how: Product) -> Tensor:
    """a @ b of two matrices in eight bits, added up in float32."""
    (qa, sa), (qb, sb) = to_fp8(a, a_dtype), to_fp8(b, b_dtype)
    if how == "emulated":
        return (qa.float() / sa) @ (qb.float() / sb)
    columns = qb.t().contiguous().t()  # the instruction reads the second operand by columns
    return _scaled_product(qa.contiguous(), columns, sa.reciprocal(), sb.reciprocal(), torch.float32)


def _scaled_product(
    a: Float[Tensor, "rows inner"],
    b: Float[Tensor, "inner columns"],
    a_scale: Float[Tensor, ""],
    b_scale: Float[Tensor, ""],
    dtype: torch.dtype,
) -> Float[Tensor, "rows columns"]:
    """(a*a_scale) @ (b*b_scale) of matrices in eight bits by torch's operator; `b` is laid out by columns."""
    if _PUBLIC:
        whole = ScalingType.TensorWise
        return scaled_mm(a, b, a_scale, whole, b_scale, whole, output_dtype=dtype)
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype)


class _Linear(torch.autograd.Function):
    """x @ w over matrices, with all three products in eight bits."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, how: Product) -> Tensor:
        return _product(x, w, E4M3, E4M3, how).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.how = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        dx = _product(grad, w.t(), E5M2, E4M3, ctx.how)
        dw = _product(grad.t(), x, E5M2, E4M3, ctx.how).t()  # the gradient stands first, as torchao has it
        return dx.to(x.dtype), dw.to(w.dtype), None


def fp8_linear(
    x: Float[Tensor, "*batch inputs"],
    w: Float[Tensor, "inputs outputs"],
    b: Float[Tensor, " outputs"] | None = None,
    *,
    product: Product = "emulated",
) -> Float[Tensor, "*batch outputs"]:
    """x @ w + b, with the product and both of its gradients in eight bits. The bias is added in x's dtype.

    Args:
        x: Any number of axes before the last.
        w: As a parameter list has it; `module.weight.T` of a linear layer.
        b: Optional.
        product: "emulated" rounds to eight bits and multiplies in float32, on any device. "scaled" calls torch's
            eight-bit product, which on a GPU needs a Hopper or Ada one and sizes that are multiples of 16.

    Raises:
        ShapeError: `w` is no matrix, its rows are not x's last axis, or they are no floating-point tensors.
        ValueError: There is no such `product`.
    """
    if product not in ("emulated", "scaled"):
        raise ValueError(f"product is {product!r}; it is 'emulated' or 'scaled'")
    only_tensors("fp8_linear", x=x, w=w, **({} if b is None else {"b": b}))
    if w.dim() != 2 or x.dim() < 1 or not x.shape[-1] == w.shape[0]:
        raise ShapeError(f"fp8_linear: x is {list(x.shape)} and w {list(w.shape)}; the last axis of x is the rows of w")
    if not (x.is_floating_point() and w.is_floating_point()):
        raise ShapeError(f"fp8_linear: x is {x.dtype} and w {w.dtype}; both are floating-point")
    if b is not None and b.shape != w.shape[1:]:
        raise ShapeError(
            f"fp8_linear: b is {list(b.shape)} and w {list(w.shape)}; b has one entry for each column of w"
        )
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y: Tensor = _Linear.apply(rows, w, product)
    y = y if x.dim() == 2 else y.reshape(*x.shape[:-1], w.shape[1])
    return y if b is None else y + b


class Fp8Linear(nn.Linear):
    """A linear layer whose products are in eight bits; made by `convert`. Its parameters stay as they were."""

    product: Product = "emulated"

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return fp8_linear(input, self.weight.T, self.bias, product=self.product)


@checked
def convert(
    module: nn.Module, targets: Sequence[str] = ("*",), *, product: Product | Literal["torchao"] = "emulated"
) -> tuple[str, ...]:
    """Let linear layers of a module compute in eight bits, in place; parameters keep their names, dtype and storage.

    Args:
        module: Its `nn.Linear` layers are the candidates.
        targets: Names, ends of names, or patterns. The last layer of a network is best left out.
        product: As for `fp8_linear`; or "torchao" for its `Float8Linear`, which runs on a Hopper or Ada GPU and is
            emulated elsewhere. The numbers are the same up to rounding.

    Returns:
        The names of the layers.

    Raises:
        ShapeError: A target means no linear layer. ImportError: torchao is asked for and not installed. Nothing has
            changed.
    """
    linear = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    if not linear:
        raise ShapeError(f"{type(module).__name__} has no torch.nn.Linear")
    chosen = matching(type(module).__name__, list(linear), targets)
    if product == "torchao":
        _convert_by_torchao(module, chosen)
        return tuple(chosen)
    for name in chosen:
        linear[name].__class__ = Fp8Linear
        linear[name].product = product  # type: ignore[assignment]
    return tuple(chosen)


def _convert_by_torchao(module: nn.Module, chosen: Sequence[str]) -> None:
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ImportError('product="torchao" needs torchao: pip install "shaped-trainer[fp8]"') from None
    real = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    convert_to_float8_training(
        module, config=Float8LinearConfig(emulate=not real), module_filter_fn=lambda _, name: name in chosen
    )
