"""`F.ctc_loss` over a static time, in terms of tensor operations: a table in torch's kernel is as large as the longest
target, which is data.

    alpha[t, s] = y[t, l[s]] + log(exp alpha[t-1, s] + exp alpha[t-1, s-1] + exp alpha[t-1, s-2])

over the target with blanks between its labels, l; the last only where l[s] is a label other than l[s-2].
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def ctc_loss(log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0,
             reduction: str = "mean", zero_infinity: bool = False) -> Tensor:  # fmt: skip
    """`F.ctc_loss` of [time, batch, classes] and targets [batch, labels] where the time is a plain number."""
    static = log_probs.dim() == 3 and targets.dim() == 2 and isinstance(log_probs.shape[0], int)
    if not static or reduction not in ("none", "mean", "sum"):
        return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
    time, batch, classes = log_probs.shape
    given, wanted = (_lengths(n, batch, log_probs.device) for n in (input_lengths, target_lengths))
    if not targets.shape[0] == batch:
        raise RuntimeError("targets must have a row for each entry of the batch")
    place = torch.arange(targets.shape[1], device=targets.device)
    labels = torch.where(place < wanted.unsqueeze(1), targets.long(), blank)
    right = ((given >= 1) & (given <= time)).all() & ((wanted >= 0) & (wanted <= targets.shape[1])).all()
    right = right & ((labels >= 0) & (labels < classes)).all()
    said = "ctc_loss takes lengths within the time and the labels, and labels below the number of classes"
    torch._assert_async(right, said)  # type: ignore[call-overload]
    losses = _as_of_logits(log_probs, given) - _likelihood(log_probs, labels, given, wanted, blank)
    losses = torch.where(losses == float("inf"), 0.0, losses) if zero_infinity else losses
    if reduction == "mean":
        return (losses / wanted.clamp(min=1).to(losses.dtype)).mean()
    return losses.sum() if reduction == "sum" else losses


def _as_of_logits(y: Tensor, given: Tensor) -> Tensor:
    """Zeros, whose gradient torch's kernel adds: it takes `y` for a log_softmax, and differentiates that too."""
    chances = y.exp()
    within = torch.arange(y.shape[0], device=y.device).unsqueeze(1) < given
    return torch.where(within, (chances - chances.detach()).sum(2), 0.0).sum(0)


def _lengths(given: Any, batch: Any, device: torch.device) -> Tensor:
    if not isinstance(given, Tensor):
        if not isinstance(given, Sequence) or not all(isinstance(n, int) for n in given):
            raise RuntimeError("lengths are whole numbers, one for each entry of the batch")
        given = torch.tensor(given, dtype=torch.int64, device=device)
    if given.dim() != 1 or not given.shape[0] == batch:
        raise RuntimeError("lengths must have one number for each entry of the batch")
    return given.to(device=device, dtype=torch.int64)


def _likelihood(y: Tensor, labels: Tensor, given: Tensor, wanted: Tensor, blank: int) -> Tensor:
    """The logarithm of the probability of each row's labels."""
    between = torch.full_like(labels, blank)
    path = torch.cat([torch.stack([between, labels], -1).flatten(1), between[:, :1]], 1)  # [batch, 2*labels + 1]
    never = float("-inf")
    skips = F.pad((path[:, 2:] != blank) & (path[:, 2:] != path[:, :-2]), (2, 0), value=False)
    alpha = torch.where(torch.arange(path.shape[1], device=y.device) < 2, y[0].gather(1, path), never)
    for t in range(1, y.shape[0]):
        before = [F.pad(alpha, (n, 0), value=never)[:, : path.shape[1]] for n in (1, 2)]
        ways = torch.stack([alpha, before[0], torch.where(skips, before[1], never)])
        alpha = torch.where((t < given).unsqueeze(1), _total(ways, 0) + y[t].gather(1, path), alpha)
    last = alpha.gather(1, 2 * wanted.unsqueeze(1))
    label = torch.where(wanted.unsqueeze(1) > 0, alpha.gather(1, (2 * wanted.unsqueeze(1) - 1).clamp(min=0)), never)
    return _total(torch.cat([last, label], 1), 1)


def _total(x: Tensor, axis: int) -> Tensor:
    """`x.logsumexp(axis)`, whose gradient is NaN where all of it is -inf."""
    most = x.detach().amax(axis, keepdim=True)
    most = torch.where(most == float("-inf"), 0.0, most)
    total = (x - most).exp().sum(axis)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1.0).log() + most.squeeze(axis), float("-inf"))
