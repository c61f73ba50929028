"""Parameters and moments in fewer bytes, in plain torch: what the kernels do, and what the torch path uses.

    stochastic   bfloat16, rounded up with the probability of the dropped part: right on average,
                 so that updates smaller than half an ulp are not lost
    split        bfloat16 high half + int16 low half = float32, exactly
    8-bit        m: int8, sign and root of |m|/scale;  v: uint8, fourth root of v/scale;
                 one float32 scale for each GROUP neighbours; Lion has an m alone

Random bits are a hash of tensor, place and step (murmur3's finalizer), the same as in the kernels:
a resumed run rounds alike. Each function here is bit for bit the kernel's, as the tests hold.

| parameter, gradient, moments | bytes a parameter, gradient included |
|---|---|
| float32, float32, float32 | 16 |
| bfloat16 split, bfloat16, float32 | 14 |
| bfloat16 stochastic, bfloat16, float32 | 12 |
| bfloat16 stochastic, bfloat16, bfloat16 | 8 |
| bfloat16 stochastic, bfloat16, 8-bit | 6.03 |
| the same of Lion | 5.02 |

Sources: stochastic rounding, Gupta et al. 2015, arXiv:1502.02551; block-wise 8-bit moments, Dettmers et
al. 2022, arXiv:2110.02861, here with roots instead of a table of quantiles.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .lists import GROUP, is_dense

_LOW32 = 0xFFFFFFFF
_TINY = 1e-37  # below it the inverse of a scale is no float32


def move(
    p: Tensor,
    g: Tensor,
    slots: Sequence[Tensor],
    low: Tensor | None,
    scales: Sequence[Tensor] | None,
    plain: Callable[[Tensor, Tensor, list[Tensor]], tuple[Tensor | None, ...]],
    place: tuple[int, int],
    *,
    stochastic_store: bool,
) -> None:
    """Take one step of one parameter in place: widen, apply a rule, narrow.

    Args:
        p, g, slots: A parameter, its gradient and its state.
        low: The low half of a split parameter.
        scales: Those of 8-bit moments; `slots` are their codes.
        plain: The rule: new parameter and state from wide ones, all in the parameter's shape.
        place: Which tensor of its list, and which step: what the random bits depend on.
        stochastic_store: Round bfloat16 stochastically, moments too.
    """
    walked = [in_memory_order(t) for t in (p, *slots)]
    gradient = in_memory_order(g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)).float()
    wide = walked[0].float() if low is None else joined(walked[0], in_memory_order(low))
    state = [t.float() for t in walked[1:]] if scales is None else decoded(walked[1:], scales)
    given = [_in_shape_of(p, t) for t in (wide, gradient, *state)]
    new_p, *new_state = [_walked_as(p, t) for t in plain(given[0], given[1], given[2:]) if t is not None]
    if scales is not None:
        for mine, value in zip((*slots, *scales), encoded(*new_state), strict=True):
            _write(mine, value)
        new_state = []
    bits = noise(p.numel(), *place, device=p.device) if stochastic_store else None
    draws = [] if bits is None else [drawn_again(bits), bits >> 16][-min(len(slots), 2) :]
    for at, (mine, value) in enumerate(zip(slots, new_state, strict=False)):
        random = bits is not None and mine.dtype == torch.bfloat16 and at < len(draws)
        _write(mine, stochastic(value, draws[at]) if random else value)
    if low is not None:
        high, left = split(new_p)
        _write(p, high)
        _write(low, left)
    else:
        _write(p, new_p if bits is None or p.dtype != torch.bfloat16 else stochastic(new_p, bits & 0xFFFF))


def _write(mine: Tensor, value: Tensor) -> None:
    """Store one axis into a tensor of any layout, in the order of `in_memory_order`."""
    if is_dense(mine):
        in_memory_order(mine).copy_(value)
    else:
        mine.copy_(value.view(mine.shape))


def in_memory_order(t: Tensor) -> Tensor:
    """A tensor as one axis: of a dense one, a view that walks its memory; of another, a copy in order of indices."""
    if is_dense(t):
        return t.as_strided((t.numel(),), (1,))
    return t.flatten()


def _in_shape_of(p: Tensor, walked: Tensor) -> Tensor:
    """What `in_memory_order` made one axis of, in the parameter's shape again."""
    return walked.as_strided(p.shape, p.stride()) if is_dense(p) else walked.view(p.shape)


def _walked_as(p: Tensor, value: Tensor) -> Tensor:
    """A tensor of the parameter's shape as one axis, in the order of the parameter's memory."""
    if is_dense(p) and value.stride() != p.stride():
        value = torch.empty_strided(p.shape, p.stride(), dtype=value.dtype, device=value.device).copy_(value)
    return in_memory_order(value) if is_dense(p) else value.flatten()


def noise(count: int, tensor: int, step: int, device: torch.device | None = None) -> Tensor:
    """32 random bits for each element, as int64.

    Args:
        count: Elements.
        tensor: Which tensor of its list.
        step: Which step.
        device: Where.
    """
    at = torch.arange(count, dtype=torch.int64, device=device)
    seed = (step * 0x9E3779B9 + tensor * 0x85EBCA77 + (at >> 32) * 0x27D4EB2F) & _LOW32
    return _scrambled((_times(at & _LOW32, 0xC2B2AE3D)) ^ seed)


def drawn_again(bits: Tensor) -> Tensor:
    """16 more bits from 32 that are well mixed already: the kernels' second draw."""
    return _times(bits, 0x9E3779B1) >> 16


def _scrambled(x: Tensor) -> Tensor:
    x = _times(x ^ (x >> 16), 0x85EBCA6B)
    x = _times(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)


def _times(x: Tensor, factor: int) -> Tensor:
    """The low 32 bits of a product, without leaving int64."""
    low, high = factor & 0xFFFF, factor >> 16
    return (x * low + (((x * high) & 0xFFFF) << 16)) & _LOW32


def stochastic(x: Tensor, bits16: Tensor) -> Tensor:
    """float32 to bfloat16: add 16 random bits below the last kept bit, then cut the rest off.

    Args:
        x: float32.
        bits16: int64 in [0, 2**16), of its shape.
    """
    raised = (x.view(torch.int32).long() + bits16) >> 16
    return _bfloat16(torch.where(x.isnan(), 0x7FC0, raised))


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as the nearest bfloat16 (halves away from zero) and what is left of its bits, as int16.

    A NaN loses its payload; all else comes back from `joined` bit for bit.
    """
    bits = x.view(torch.int32).long()
    high = (bits + 0x8000) >> 16
    left = torch.where(x.isnan(), 0, bits - (high << 16))
    return _bfloat16(torch.where(x.isnan(), 0x7FC0, high)), left.to(torch.int16)


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The float32 that was `split`."""
    bits = (high.contiguous().view(torch.int16).long() << 16) + low.long()
    return _signed32(bits).to(torch.int32).view(torch.float32)


def _bfloat16(bits: Tensor) -> Tensor:
    low = bits & 0xFFFF
    return torch.where(low >= 0x8000, low - 0x10000, low).to(torch.int16).view(torch.bfloat16)


def _signed32(bits: Tensor) -> Tensor:
    low = bits & _LOW32
    return torch.where(low >= 2**31, low - 2**32, low)


def encoded(m: Tensor, v: Tensor | None = None) -> list[Tensor]:
    """Moments as codes and scales.

    Args:
        m, v: float32 of one axis; v is >= 0, and not there for a rule that has no second moment.

    Returns:
        int8 and uint8 codes of that length, then float32 scales, one for each GROUP neighbours. A v above 0 never
        becomes 0, since the update divides by its root.
    """
    groups = _grouped(m)
    m_scale = groups.abs().amax(1)
    unit = groups.abs() * _inverse(m_scale)[:, None]
    code = torch.copysign(torch.floor(unit.sqrt() * 127 + 0.5), groups)
    codes, scales = [code.flatten()[: m.numel()].to(torch.int8)], [m_scale]
    if v is not None:
        top = _grouped(v)
        v_scale = top.amax(1)
        share = top * _inverse(v_scale)[:, None]
        code = torch.floor(share.sqrt().sqrt() * 255 + 0.5).clamp(min=1).mul(top > 0)
        codes, scales = [*codes, code.flatten()[: v.numel()].to(torch.uint8)], [m_scale, v_scale]
    return [*codes, *scales]


def decoded(codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    """The moments that `encoded` wrote, as float32 of one axis."""
    m_unit = _grouped(codes[0].float()) / 127
    moments = [m_unit * m_unit.abs() * scales[0][:, None]]
    if len(codes) > 1:
        v_unit = _grouped(codes[1].float()) / 255
        square = v_unit * v_unit
        moments.append(square * square * scales[1][:, None])
    return [moment.flatten()[: codes[0].numel()] for moment in moments]


def _grouped(t: Tensor) -> Tensor:
    return torch.nn.functional.pad(t, (0, -t.numel() % GROUP)).view(-1, GROUP)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > _TINY, 1.0 / scale, 0.0)
