"""What is asked of gradients before an update: whether everything is finite, their mean, and in a graph their norm."""

import logging
import math
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

_SMALL = 2**14  # mean elements of tensors: at 2,048 norms take 2.4 times as long, at 65,536 four fifths (1 thread)
_ONE = torch.ones(1, dtype=torch.float32, device="cpu")
_is_cpu: Callable[[Tensor], bool] = attrgetter("is_cpu")
_log = logging.getLogger("torch.autograd.graph")


def gradients_of(loss: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """`torch.autograd.grad` of a scalar; on the CPU by its engine, which saves the Python around it.

    That is 24 us for 64-128-10, where the pass itself takes 90 (torch 2.13).
    """
    plain = type(loss) is Tensor and loss.is_cpu and loss.is_floating_point() and loss.requires_grad and not loss.dim()
    if not plain or _log.isEnabledFor(logging.DEBUG):
        return list(torch.autograd.grad(loss, tensors))
    engine: Any = torch.autograd.Variable._execution_engine
    start = (torch.ones_like(loss),)
    return list(engine.run_backward((loss,), start, False, False, tensors, False, accumulate_grad=False))


def all_finite(tensors: Sequence[Tensor], own: bool = True) -> bool:
    """Whether every element is finite; waits for the device once if so. Each element is left as it is.

    Args:
        own: Whether their memory is ours to write the same number to; a strategy's may be a file that is only read.
    """
    if own and _small(tensors):
        # GradScaler's look, in one call: it multiplies by 1 where it looks. Four gradients of 64-128-10 take 4 us, 1000
        # of 1024 elements 460; their norms 5 and 1250, isfinite of each 33 and more (torch 2.13).
        found = torch.zeros_like(_ONE)
        torch._amp_foreach_non_finite_check_and_unscale_(list(tensors), found, _ONE)
        return not found.item()
    norms = torch._foreach_norm(list(tensors))
    if math.isfinite(sum(norm.item() for norm in norms) if norms[0].device.type == "cpu" else _total(norms)):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)  # a norm may overflow where no element does


def _small(tensors: Sequence[Tensor]) -> bool:
    """Whether writing each element back costs less than a call for each tensor, and may be done."""
    return (
        all(map(is_, map(type, tensors), repeat(Tensor)))
        and all(map(_is_cpu, tensors))
        and sum(map(Tensor.numel, tensors)) <= _SMALL * len(tensors)
        and all(map(Tensor.is_contiguous, tensors))  # an expanded one cannot be written to
        and not any(map(Tensor.is_complex, tensors))
    )


def _total(norms: Sequence[Tensor]) -> float:
    return torch.stack([norm.double() for norm in norms]).sum().item()


def finite_flag(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The same as a 0-dim bool tensor, for a traced step.

    Spelled with isfinite: of `gradient * 0` and its like, Inductor's constant folding makes 0.
    """
    verdict = torch.isfinite(loss)
    for gradient in gradients:
        verdict = verdict & torch.isfinite(gradient).all()
    return verdict


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, 0-dim: in float64 if a gradient is, else in float32."""
    wide = torch.float64 if any(gradient.dtype == torch.float64 for gradient in gradients) else torch.float32
    norms = [torch.linalg.vector_norm(gradient, dtype=wide) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def clipped(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> list[Tensor]:
    """Gradients of this norm scaled to one of at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` scales them.

    For a traced step; an eager one is clipped by shaped_kernels, on the way through the update.
    """
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return [gradient * factor.to(gradient.dtype) for gradient in gradients]


def of_counted(loss: Tensor, finite: Tensor, samples: Tensor | float) -> tuple[Tensor, Tensor]:
    """The loss and whether all is finite, of a batch with so many samples; of one without any, 0 and that it is.

    A count that is negative or not finite is not finite either.
    """
    if not isinstance(samples, Tensor):  # filled on the device, which does not wait for it as for a copy
        samples = torch.full((), samples, dtype=torch.float64, device=loss.device)
    count = samples.to(loss.device, torch.float64)
    empty = count == 0
    return torch.where(empty, torch.zeros_like(loss), loss), (finite | empty) & (count >= 0) & torch.isfinite(count)


def mean_with(
    means: Sequence[Tensor], weight: Tensor, gradients: Sequence[Tensor], samples: Tensor | float, finite: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The mean of `weight` samples with `samples` more in it, and how many those are; as before if not `finite`.

    A batch without samples leaves the mean as it was, whatever its gradient is: 0/0 of a mean over nothing is NaN.
    """
    total = weight + samples
    share, some = samples / total, finite & (total > weight)
    pairs = zip(means, gradients, strict=True)
    taken = [torch.where(some, torch.lerp(mean, g, share.to(g.dtype)), mean) for mean, g in pairs]
    return taken, torch.where(finite, total, weight)
