"""Products in eight bits: E4M3 forward, E5M2 for gradients, one scale a tensor, parameters in float32.

    s = max(dtype)/max|x|        q = round(clip(x*s))        x ~= q/s

Each product of the three (y = x @ w, dx = g @ w.T, dw = x.T @ g) takes both operands in eight bits and adds up in
float32. The parameters of the trainer are the master weights: an update smaller than an eight-bit step is not lost.

Source: Micikevicius et al. 2022, arXiv:2209.05433; scales from the tensor itself ("dynamic", tensorwise), as torchao's.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped.arguments import checked, keyed, only_tensors, whole
from shaped.drawing import check_device
from shaped.errors import ShapeError, StateError
from shaped.lora.names import matching
from shaped.shapes import worn
from shaped.strategies import Loss, gradients

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_TINY = 1e-12  # torchao's floor for the largest absolute value: a tensor of zeros has a scale too
_LARGEST = torch.finfo(torch.float32).max
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
    return torch._scaled_mm(
        qa.contiguous(), columns, scale_a=sa.reciprocal(), scale_b=sb.reciprocal(), out_dtype=torch.float32
    )


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


class LossScaler:
    """A scale for the loss that grows while gradients are finite, and shrinks where they are not.

        trainer = ScalarTrainer(with_scale(loss), params, strategy=unscaled, nonfinite="skip", autocast=torch.float16)
        value = scaler.take(trainer.adamw_step, x, y, lr=1e-3)

    Small gradients of float16 or E5M2 vanish; those of a loss that is scaled up do not. The scale is an input of the
    step, so it changes without a recompile.

    Args:
        scale: Where it starts.
        interval: Finite steps in a row after which it is multiplied with `growth`, unless it would be infinite then.
        growth, backoff: Factors; `backoff` after a step that was skipped.
        floor: The scale never goes below.
        device: Of the parameters.

    Raises:
        ValueError: A number is out of range.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2, as torch.amp.GradScaler.
    """

    @checked
    def __init__(
        self,
        scale: float = 2.0**16,
        *,
        interval: int = 2000,
        growth: float = 2.0,
        backoff: float = 0.5,
        floor: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        if not (_LARGEST >= scale >= floor > 0 and growth > 1 > backoff > 0):
            raise ValueError(
                f"scale = {scale}, growth = {growth}, backoff = {backoff}, floor = {floor}: the scale is at least the "
                "floor, which is positive, and finite in float32; growth is above 1 and backoff between 0 and 1"
            )
        whole("interval", interval, 1)
        check_device(device)
        self.scale = torch.tensor(float(scale), device=device)
        self.interval, self.growth, self.backoff, self.floor = interval, growth, backoff, floor
        self.good = 0  # finite steps since the scale last changed

    def take(self, step: Callable[..., Tensor], *inputs: Any, **options: Any) -> Float[Tensor, ""]:
        """Take a step of a trainer with the scale, and learn from whether it was skipped.

        Args:
            step: A method of a ScalarTrainer with `nonfinite="skip"`: `trainer.adamw_step`.
            inputs, options: As for the method.

        Raises:
            ValueError: `step` is no method of a trainer.
        """
        trainer: Any = getattr(step, "__self__", None)
        if not hasattr(trainer, "skipped"):
            raise ValueError(f"step is {step!r}; pass a trainer's method, such as trainer.adamw_step")
        before = trainer.skipped
        value = step(*inputs, loss_scale=self.scale, **options)
        self.update(trainer.skipped == before)
        return value

    def update(self, finite: bool) -> None:
        """Tell it how a step went: False where it was skipped.

        Raises:
            ValueError: `finite` is neither True nor False.
        """
        if not isinstance(finite, bool):
            raise ValueError(f"finite is {finite!r}; it is True or False")
        if not finite:
            self.scale = (self.scale * self.backoff).clamp_min(self.floor)
            self.good = 0
            return
        self.good += 1
        if self.good >= self.interval:
            grown = self.scale * self.growth
            self.scale, self.good = torch.where(grown.isfinite(), grown, self.scale), 0

    def state_dict(self) -> dict[str, Any]:
        """The scale and the count, as plain numbers."""
        return {"scale": self.scale.item(), "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            StateError: It is none; nothing has changed.
        """
        keyed("state", state, error=StateError)
        scale, good = state.get("scale"), state.get("good")
        if (
            not isinstance(scale, float)
            or not isinstance(good, int)
            or not (_LARGEST >= scale >= self.floor and good >= 0)
        ):
            raise StateError(
                f"a scaler's state is a finite scale of at least {self.floor} and a count, not {dict(state)}"
            )
        self.scale, self.good = torch.full_like(self.scale, scale), good


@checked
def with_scale(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same loss with one more input, `loss_scale : []`, which it does not use: for the strategy `unscaled`."""
    extra = inspect.Parameter("loss_scale", inspect.Parameter.KEYWORD_ONLY, annotation=Float[Tensor, ""])

    def scaled(*args: Any, loss_scale: Tensor, **named: Any) -> Any:
        return loss(*args, **named)

    return worn(scaled, loss, {"loss_scale": Float[Tensor, ""]}, [extra])


def unscaled(loss: Loss, params: Any, /, *inputs: Tensor) -> tuple[Tensor, Any]:
    """A gradient strategy: the gradients of the loss times its last input, divided by it. The loss is the plain one."""
    value, scale = loss(params, *inputs), inputs[-1]
    found = gradients(value * scale.to(value.dtype), params)
    return value, found.like([gradient / scale.to(gradient.dtype) for gradient in found])
