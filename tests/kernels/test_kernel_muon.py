"""Muon's rule against torch.optim.Muon and against itself in other layouts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaped_kernels.muon import MuonRule
from shaped_kernels.rule import Rule

NUMBERS = (0.02, 0.1, 0.9, 1e-7)


def run(rule: Rule, p: Tensor, grads: list[Tensor]) -> Tensor:
    buffer = torch.zeros_like(p)
    for i, g in enumerate(grads):
        p, (buffer,) = rule.plain(p, g, (buffer,), NUMBERS, i + 1)
    return p


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (4, 16)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_torchs_for_weights_out_in(adjust: Any, shape: tuple[int, int], nesterov: bool) -> None:
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    peer = nn.Parameter(start.clone())
    optimizer = torch.optim.Muon(
        [peer], lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust
    )
    for g in grads:
        peer.grad = g.clone()
        optimizer.step()
    mine = run(MuonRule(nesterov=nesterov, adjust_lr_fn=adjust), start, grads)

    # torch multiplies in bfloat16, 8 bits, 15 products a step: relative to the distance gone.
    assert (mine - peer).norm() < 0.05 * (peer - start).norm()


LAYOUTS = {
    "in out": lambda w: w.T,
    "out in": lambda w: w,
    "in (2 out)": lambda w: torch.cat([w.T, w.T], 1),
    "(2 out) in": lambda w: torch.cat([w, w]),
    "batch in out": lambda w: torch.stack([w.T, w.T]),
    "in out out": lambda w: w.T.reshape(w.shape[1], 2, -1),
    "out in out": lambda w: w.reshape(2, -1, w.shape[1]).transpose(1, 2),
    "out in in": lambda w: w.reshape(w.shape[0], 3, -1),
    "in (8+8 out)": lambda w: torch.cat([w.T, w.T], 1),
}


@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_the_same_map_takes_the_same_step_in_any_layout(axes: str, adjust: str) -> None:
    start, grads = torch.randn(8, 6), [torch.randn(8, 6) for _ in range(2)]
    put = LAYOUTS[axes]
    plain = run(MuonRule(adjust_lr_fn=adjust), start, grads)
    mine = run(MuonRule(axes=axes, adjust_lr_fn=adjust), put(start).contiguous(), [put(g).contiguous() for g in grads])

    torch.testing.assert_close(mine, put(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 16)])
def test_products_in_bfloat16_are_those_of_float32_up_to_their_rounding(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    exact, narrow = (run(MuonRule(ns_dtype=dtype), start, grads) for dtype in (None, "bfloat16"))

    assert 0 < (narrow - exact).norm() < 0.05 * (exact - start).norm()


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"adjust_lr_fn": "rms"}, "adjust_lr_fn must be 'match_rms_adamw' or 'original', got 'rms'"),
        ({"ns_steps": 0}, "ns_steps must be a whole number from 1 to 99, got 0"),
        ({"ns_coefficients": (1.0,)}, "ns_coefficients must be three numbers, got (1.0,)"),
        ({"ns_dtype": "float16"}, "ns_dtype must be None, 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_switches_that_are_none_are_refused(switches: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        MuonRule(**switches).check(NUMBERS)

    assert str(raised.value) == said
