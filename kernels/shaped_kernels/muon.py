"""Muon: momentum, made orthogonal as a matrix.

    b <- b + (1 - momentum)*(g - b)
    d <- g + momentum*(b - g)                if nesterov, otherwise d = b
    O <- orthogonal factor of d              as matrices [batch, fan-out, fan-in]; see polar.py
    p <- p - lr*weight_decay*p
    p <- p - lr*scale*O

    scale = sqrt(max(1, fan-out/fan-in))     adjust_lr_fn "original"
            0.2*sqrt(max(fan-out, fan-in))   "match_rms_adamw": steps as large as AdamW's, so that one lr serves both

What are rows and what columns is said by `axes` (see matrices.py), and not by the order in which they are stored: the
same map takes the same step in any layout. Products dominate: 2*short^2*(2*long + short) operations a step of
Newton-Schulz; besides, fp32 reads p g b and writes p b = 20 bytes per element (36 in Triton, see
muon_triton.py).

Sources: Jordan 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982, for the second scale; order
and constants are those of torch.optim.Muon, for weights `[out, in]`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .lists import WIDE
from .matrices import Axes, axes_of, read_axes
from .polar import MUON, chains, iterate, lying, norms, orthogonal_list
from .rule import Hyper, Kernels, Rule, State
from .scalars import Scalar, Store, narrow

SCALES = ("match_rms_adamw", "original")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def scale_of(fan_in: int, fan_out: int, adjust_lr_fn: str) -> float:
    """What lr is multiplied with for matrices of these fans."""
    if adjust_lr_fn == "original":
        return math.sqrt(max(1.0, fan_out / fan_in))
    return 0.2 * math.sqrt(max(fan_in, fan_out))


@dataclass(frozen=True)
class MuonRule(Rule):
    """Muon for tensors whose axes are known.

    Attributes:
        axes: What the axes of each tensor are, as `read_axes` reads it.
        nesterov: Look ahead along the momentum.
        adjust_lr_fn: "match_rms_adamw" or "original".
        ns_steps, ns_coefficients: Of Newton-Schulz.
        ns_dtype: What its products are computed in, "float32" or "bfloat16"; None is bfloat16 on a GPU, and on a CPU
            float32.
    """

    name: ClassVar[str] = "Muon"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        Hyper("lr", 1e-3),
        Hyper("weight_decay", 0.1),
        Hyper("momentum", 0.95, below=1.0),
        Hyper("eps", 1e-7),
    )
    every_slot: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    counts: ClassVar[bool] = False  # torch.optim.Muon keeps no step either

    axes: str = "out in"
    nesterov: bool = True
    adjust_lr_fn: str = "match_rms_adamw"
    ns_steps: int = 5
    ns_coefficients: tuple[float, float, float] = MUON
    ns_dtype: str | None = None

    @classmethod
    def of(cls, group: Mapping[str, Any], store: Store = "nearest", eight_bit: bool = False) -> Self:
        """The variant that a group asks for; a list of coefficients, as files have it, is a tuple."""
        given = dict(group)
        if isinstance(given.get("ns_coefficients"), list):
            given["ns_coefficients"] = tuple(given["ns_coefficients"])
        return super().of(given, store, eight_bit)

    def check(self, numbers: Sequence[float]) -> None:
        """Refuse numbers out of range, and switches that are none."""
        super().check(numbers)
        if self.adjust_lr_fn not in SCALES:
            raise ValueError(f"adjust_lr_fn must be {' or '.join(map(repr, SCALES))}, got {self.adjust_lr_fn!r}")
        if type(self.ns_steps) is not int or not 0 < self.ns_steps < 100:
            raise ValueError(f"ns_steps must be a whole number from 1 to 99, got {self.ns_steps!r}")
        if self.ns_dtype not in (None, *DTYPES):
            raise ValueError(f"ns_dtype must be None, {' or '.join(map(repr, DTYPES))}, got {self.ns_dtype!r}")
        if len(self.ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients must be three numbers, got {self.ns_coefficients!r}")

    def plain(
        self, p: Tensor, g: Tensor, slots: State, numbers: Sequence[Scalar], step: Scalar
    ) -> tuple[Tensor, State]:
        """Compute a step of one parameter."""
        params, state = self.plain_list([p], [g], [[slot] for slot in slots], numbers, step)
        return params[0], (state[0][0],)

    def plain_list(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        numbers: Sequence[Scalar],
        step: Scalar,
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Compute a step of many parameters: all matrices of one shape are one chain of products."""
        lr, weight_decay, momentum, eps = numbers
        moved, ahead = [], []
        for p, g, b in zip(params, grads, slots[0], strict=True):
            wide = WIDE[p.dtype]
            grad, old = g.to(wide), b.to(wide)
            new = old + narrow(1 - momentum, wide) * (grad - old)
            moved.append(new.to(b.dtype))
            ahead.append(grad + narrow(momentum, wide) * (new - grad) if self.nesterov else new)
        directions = self._orthogonal(ahead, narrow(eps, torch.float32))
        stepped = [self._step(p, direction, lr, weight_decay) for p, direction in zip(params, directions, strict=True)]
        return stepped, [moved]

    def fused(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        slots: Sequence[list[Tensor]],
        numbers: Sequence[float],
        step: Tensor,
        factor: float | None,
    ) -> None:
        """Take a step in place, by torch's operators over lists around the products."""
        lr, weight_decay, momentum, eps = numbers
        if any(WIDE[p.dtype] != p.dtype or p.dtype != b.dtype for p, b in zip(params, slots[0], strict=True)):
            grads = [g if factor is None else g * factor for g in grads]
            new, state = self.plain_list(params, grads, slots, numbers, 1.0)
            torch._foreach_copy_([*params, *slots[0]], [*new, *state[0]])
            return
        # Tensor by tensor, so that each pass finds in the cache what the one before it wrote.
        ahead = []
        for g, b in zip(grads, slots[0], strict=True):
            slope = g if factor is None else g * factor
            b.lerp_(slope, 1.0 - momentum)
            ahead.append(torch.lerp(slope, b, momentum) if self.nesterov else b)
        kept, rate = 1.0 - lr * weight_decay, -lr
        blocks = [
            (p, d, block) for p, d in zip(params, ahead, strict=True) for block in axes_of(self.axes, p.shape).blocks
        ]
        taken = [lying(block.take(d)) for _, d, block in blocks]
        for kind, members in chains(taken, None if self.ns_dtype is None else DTYPES[self.ns_dtype]):
            sizes = [len(taken[i]) for i in members]
            x = taken[members[0]].new_empty((sum(sizes), *taken[members[0]].shape[1:]), dtype=kind)
            for i, place in zip(members, x.split(sizes), strict=True):
                torch.div(taken[i], norms(taken[i], eps), out=place)
            for i, made in zip(
                members, iterate(x, self.ns_coefficients, self.ns_steps, reuse=True).split(sizes), strict=True
            ):
                p, _, block = blocks[i]
                _, rows, columns = block.size
                moved = block.part(p).mul_(kept)
                scale = scale_of(columns, rows, self.adjust_lr_fn)
                moved.add_(block.put(made.mT if rows > columns else made), alpha=rate * scale)

    def kernels(self) -> Kernels:
        """Those of muon_triton.py."""
        from .muon_triton import muon_ahead, muon_chunk
        from .rows_triton import muon_row

        return Kernels(muon_row, muon_chunk, (self.nesterov,), 5, ahead=muon_ahead, between=self._between)

    def _between(self, ahead: Sequence[Tensor], own: Tensor) -> None:
        """Put scaled orthogonal factors in place of momenta; eps is where a captured step reads it."""
        torch._foreach_copy_(list(ahead), self._orthogonal(ahead, own[4]))

    def _orthogonal(self, momenta: Sequence[Tensor], eps: Scalar) -> list[Tensor]:
        """Where to go, scaled: an orthogonal factor of each matrix in each of these, laid out as they are."""
        views = [read_axes(self.axes, m.shape) for m in momenta]
        blocks = [(i, block) for i, axes in enumerate(views) for block in axes.blocks]
        taken = [block.take(momenta[i]) for i, block in blocks]
        scales = [scale_of(block.size[2], block.size[1], self.adjust_lr_fn) for _, block in blocks]
        dtype = None if self.ns_dtype is None else DTYPES[self.ns_dtype]
        made = orthogonal_list(taken, scales, self.ns_coefficients, self.ns_steps, eps, dtype)
        pieces: list[list[Tensor]] = [[] for _ in momenta]
        for (i, block), matrices in zip(blocks, made, strict=True):
            pieces[i].append(block.put(matrices).to(momenta[i].dtype))
        return [_whole(axes, parts) for axes, parts in zip(views, pieces, strict=True)]

    @staticmethod
    def _step(p: Tensor, direction: Tensor, lr: Scalar, weight_decay: Scalar) -> Tensor:
        wide = direction.dtype
        kept = p.to(wide) * narrow(1 - lr * weight_decay, wide)
        return (kept - narrow(lr, wide) * direction).to(p.dtype)


def _whole(axes: Axes, parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if axes.cut is None else torch.cat(list(parts), axes.cut[0])
