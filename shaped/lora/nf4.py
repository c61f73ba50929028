"""NF4: four bits a weight, in blocks with a scale each; what QLoRA keeps a frozen base in.

    code  = the nearest of 16 quantiles of a normal distribution to w/scale        scale = max|w| of its block
    w    ~= CODEBOOK[code] * scale

Codes, and with `scale_block` the scales too, are those of torchao's NF4Tensor.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3; the codebook's four digits are torchao's.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shaped.arguments import checked, only_tensors
from shaped.errors import ShapeError

BLOCK = 64
_CODEBOOK = (
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
)  # fmt: skip


@checked
def quantise_nf4(
    w: Float[Tensor, "rows columns"], block: int = BLOCK, scale_block: int | None = None
) -> tuple[UInt8[Tensor, "rows columns//block block//2"], Float[Tensor, "rows columns//block"]]:
    """Two codes a byte, the first in the upper half, and a scale for each `block` neighbours of a row.

    A weight is off by at most 0.1519 of its block's scale, which is half the widest gap of the codebook.

    Args:
        w: A matrix whose columns are a multiple of `block`.
        block: Neighbours with one scale; an even number.
        scale_block: Round the scales to int8 as well, in groups of this many (torchao's default is 256); or None.

    Raises:
        ValueError: The sizes do not divide.
    """
    if w.dim() != 2 or block < 2 or block % 2 or w.shape[1] % block:
        raise ValueError(f"NF4 takes a matrix whose columns are a multiple of block = {block}, not {list(w.shape)}")
    with torch.no_grad():
        blocks = w.detach().reshape(w.shape[0], w.shape[1] // block, block)
        scales = blocks.abs().amax(-1)
        book = torch.tensor(_CODEBOOK, dtype=w.dtype, device=w.device)
        # an empty block has the scale 0: its codes are those of 0, and 0 * scale is 0
        unit = blocks / torch.where(scales == 0, 1, scales).unsqueeze(-1)
        codes = torch.stack([(unit - level).abs() for level in book]).argmin(0).to(torch.uint8)
        packed = codes[..., ::2] << 4 | codes[..., 1::2]
        return packed, scales if scale_block is None else _rounded(scales, scale_block)


def _rounded(scales: Tensor, group: int) -> Tensor:
    """Scales as int8 around their mean, and back."""
    if scales.numel() % group:
        raise ValueError(f"{scales.numel()} scales are no multiple of scale_block = {group}")
    mean = scales.flatten().mean()
    groups = (scales.flatten() - mean).view(-1, group)
    largest = groups.abs().amax(-1, keepdim=True)
    factor = 256 / (2 * torch.where(largest == 0, 1, largest))
    codes = (groups * factor).round().clamp(-128, 127)
    return ((codes / factor).flatten() + mean).view_as(scales)


def dequantise_nf4(
    codes: UInt8[Tensor, "rows blocks half"], scales: Float[Tensor, "rows blocks"]
) -> Float[Tensor, "rows blocks*half*2"]:
    """The weights that codes and scales stand for, in the scales' dtype. Raises ShapeError where these do not fit."""
    only_tensors("dequantise_nf4", codes=codes, scales=scales)
    if codes.dtype != torch.uint8 or codes.dim() != 3 or codes.shape[:2] != scales.shape:
        raise ShapeError(
            f"dequantise_nf4: codes are {codes.dtype} {list(codes.shape)} and scales {list(scales.shape)}; expected "
            "uint8 [rows, blocks, half] and [rows, blocks]"
        )
    book = torch.tensor(_CODEBOOK, dtype=scales.dtype, device=scales.device)
    halves = torch.stack([codes >> 4, codes & 15], -1).long()
    return (book[halves].flatten(-2) * scales.unsqueeze(-1)).flatten(1)


class Nf4Product(torch.autograd.Function):
    """x @ w.T with w in NF4: backward computes w again, so no full matrix waits for it."""

    @staticmethod
    def forward(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        return x @ dequantise_nf4(codes, scales).T.to(x.dtype)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        codes, scales = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad @ dequantise_nf4(codes, scales).to(grad.dtype), None, None
