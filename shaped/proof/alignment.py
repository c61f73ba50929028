"""`F.ctc_loss` as one operation of the graph: the table of torch's kernel is as large as the longest target: data.

    aligned             the loss of each row, by torch's own kernel
    aligned_backward    the gradient of the logarithms: that kernel once more, differentiated by torch

So a proof holds for every time, batch and number of labels. That lengths and labels are within them is data: a check
beside it, and where it fails the kernel, which would read beyond its memory, is given what is harmless.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_OPERANDS = "Tensor log_probs, Tensor labels, Tensor given, Tensor wanted, int blank, bool zero_infinity"


def ctc_loss(log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0,
             reduction: str = "mean", zero_infinity: bool = False) -> Tensor:  # fmt: skip
    """`F.ctc_loss` of [time, batch, classes] and targets [batch, labels]; how many others there are is data."""
    if not _is_plain(log_probs, targets) or reduction not in ("none", "mean", "sum"):
        return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
    time, batch, classes = log_probs.shape
    given, wanted = (_lengths(n, batch, log_probs.device) for n in (input_lengths, target_lengths))
    if not targets.shape[0] == batch:
        raise RuntimeError("targets must have a row for each entry of the batch")
    if not time >= 1:
        raise RuntimeError("the time must not be empty")
    if not 0 <= blank < classes:
        raise RuntimeError(f"blank must be one of the classes, and is {blank}")
    place = torch.arange(targets.shape[1], device=targets.device)
    labels = torch.where(place < wanted.unsqueeze(1), targets.long(), blank)
    right = ((given >= 1) & (given <= time)).all() & ((wanted >= 0) & (wanted <= targets.shape[1])).all()
    right = right & ((labels >= 0) & (labels < classes)).all()
    said = "ctc_loss takes lengths within the time and the labels, and labels below the number of classes"
    torch._assert_async(right, said)  # type: ignore[call-overload]
    harmless = (torch.where(right, t, other) for t, other in ((labels, blank), (given, 1), (wanted, 0)))
    losses: Tensor = _Aligned.apply(log_probs, *harmless, blank, zero_infinity)  # type: ignore[no-untyped-call]
    if reduction == "mean":
        return (losses / wanted.clamp(min=1).to(losses.dtype)).mean()
    return losses.sum() if reduction == "sum" else losses


def _is_plain(log_probs: Any, targets: Any) -> bool:
    """Whether it may be one operation: in numbers that torch's kernel takes, and neither mapped nor cast."""
    if not isinstance(log_probs, Tensor) or not isinstance(targets, Tensor):
        return False
    if log_probs.dim() != 3 or targets.dim() != 2 or log_probs.dtype not in (torch.float32, torch.float64):
        return False
    mapped = torch._C._functorch.is_batchedtensor(log_probs) or torch._C._functorch.is_gradtrackingtensor(log_probs)
    return not (mapped or torch.is_autocast_enabled(log_probs.device.type))


def _lengths(given: Any, batch: Any, device: torch.device) -> Tensor:
    if not isinstance(given, Tensor):
        if not isinstance(given, Sequence) or not all(isinstance(n, int) for n in given):
            raise RuntimeError("lengths are whole numbers, one for each entry of the batch")
        given = torch.tensor(given, dtype=torch.int64, device=device)
    if given.dim() != 1 or not given.shape[0] == batch:
        raise RuntimeError("lengths must have one number for each entry of the batch")
    return given.to(device=device, dtype=torch.int64)


class _Aligned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, *rest: Any) -> Tensor:
        *data, blank, zero_infinity = rest
        ctx.save_for_backward(log_probs, *data)
        ctx.options = blank, zero_infinity
        losses: Tensor = operations()[0](log_probs, *data, blank, zero_infinity)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return operations()[1](gradient, *ctx.saved_tensors, *ctx.options), *[None] * 5


@cache
def operations() -> tuple[Any, Any]:
    """The losses of a batch, and the gradient of its logarithms."""
    forward, backward = "shaped::aligned", "shaped::aligned_backward"
    torch.library.define(forward, f"({_OPERANDS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
    torch.library.define(backward, f"(Tensor gradient, {_OPERANDS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(forward, "default", _run)
    torch.library.impl(backward, "default", _differentiate)
    torch.library.register_fake(forward, lambda y, labels, given, *_: y.new_empty(given.shape))
    torch.library.register_fake(backward, lambda _, y, *__: y.new_empty(y.shape))
    return torch.ops.shaped.aligned.default, torch.ops.shaped.aligned_backward.default


def _run(y: Tensor, labels: Tensor, given: Tensor, wanted: Tensor, blank: int, zero_infinity: bool) -> Tensor:
    with torch.no_grad():
        return F.ctc_loss(y, labels, given, wanted, blank, "none", zero_infinity).contiguous()


def _differentiate(gradient: Tensor, y: Tensor, labels: Tensor, given: Tensor, wanted: Tensor, blank: int,
                   zero_infinity: bool) -> Tensor:  # fmt: skip
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        losses = F.ctc_loss(y, labels, given, wanted, blank, "none", zero_infinity)
    return torch.autograd.grad(losses, y, gradient)[0].contiguous()
