"""The Triton kernels against float64 references: in the interpreter here, on a GPU where there is one."""

import struct
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from shaped_kernels import adam_reference, adamw_, sgd_reference
from shaped_kernels.adam_triton import launch_adam
from shaped_kernels.dispatch import interpreting
from shaped_kernels.rounding_triton import rounded
from shaped_kernels.sgd_triton import launch_sgd

BLOCK = 16  # the interpreter takes 10 ms a program, whatever its width
SIZES = [(), (0,), (1,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (3 * BLOCK + 7,)]
RULE: dict[str, Any] = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and not interpreting():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)


def draw(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE) for s in SIZES]


# One rounding of p a step (half an ulp), three steps; the update, at most lr a step here, carries the roundings
# of m and v: a few ulp of lr. In units of the dtype's eps that is well below 8.
def assert_near(mine: list[Tensor], exact: list[Tensor], dtype: torch.dtype, scale: float = 1.0) -> None:
    tolerance = 8 * torch.finfo(dtype).eps
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("decoupled", "amsgrad", "maximize"), [(True, False, False), (False, True, True), (False, False, False)]
)
def test_adam_in_triton_follows_the_reference_over_three_steps(
    dtype: torch.dtype, decoupled: bool, amsgrad: bool, maximize: bool
) -> None:
    params = [p.requires_grad_() for p in draw(dtype, 0)]
    slots = [[torch.zeros_like(p, requires_grad=False) for p in params] for _ in range(3 if amsgrad else 2)]
    exact = [p.detach().double().clone() for p in params]
    state: list[Any] = [[torch.zeros_like(p) for _ in slots] for p in exact]
    flags: dict[str, Any] = {"decoupled": decoupled, "maximize": maximize}
    reference: Any = partial(adam_reference, **RULE, **flags)
    for step in (1, 2, 3):
        grads = draw(dtype, step)
        launch_adam(params, grads, slots, tuple(RULE.values()), step, block=BLOCK, **flags)
        for i, g in enumerate(grads):
            exact[i], *new = reference(exact[i], g.double(), *state[i], step=step)
            state[i] = [slot for slot in new if slot is not None]

    assert_near([p.detach() for p in params], exact, dtype)
    for k, slot in enumerate(slots):
        assert_near(slot, [s[k] for s in state], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("momentum", "nesterov", "maximize"), [(0.0, False, True), (0.9, False, False), (0.9, True, False)]
)
def test_sgd_in_triton_follows_the_reference_over_three_steps(
    dtype: torch.dtype, momentum: float, nesterov: bool, maximize: bool
) -> None:
    params = draw(dtype, 0)
    bufs = [torch.zeros_like(p) for p in params] if momentum else None
    exact = [p.double().clone() for p in params]
    exact_bufs: list[Tensor | None] = [torch.zeros_like(p) if momentum else None for p in exact]
    for step in range(3):
        rule: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "damp": 0.7 if step else 1.0, "weight_decay": 0.1}
        grads = draw(dtype, 1 + step)
        launch_sgd(params, grads, bufs, tuple(rule.values()), nesterov=nesterov, maximize=maximize, block=BLOCK)
        for i, g in enumerate(grads):
            exact[i], exact_bufs[i] = sgd_reference(
                exact[i], g.double(), exact_bufs[i], nesterov=nesterov, maximize=maximize, **rule
            )

    assert_near(params, exact, dtype, scale=4.0)  # the buffer reaches a few units


def test_amsgrad_in_triton_keeps_a_nan() -> None:
    p, g, m, v, top = (torch.ones(3, device=DEVICE) for _ in range(5))
    g[1] = float("nan")
    launch_adam([p], [g], [[m], [v], [top]], tuple(RULE.values()), 1, decoupled=True, maximize=False, block=BLOCK)

    assert p.isnan().tolist() == [False, True, False]
    assert top.isnan().tolist() == [False, True, False]


def test_float32_moments_of_a_bfloat16_parameter_stay_float32_in_triton() -> None:
    p, g = (torch.ones(4, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    m, v = torch.zeros(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    launch_adam([p], [g], [[m], [v]], (0.125, 0.9, 0.999, 1e-8, 0.0), 1, decoupled=True, maximize=False, block=BLOCK)

    assert p.tolist() == [0.875] * 4
    torch.testing.assert_close(m, torch.full((4,), 1 - 0.9, device=DEVICE))


def test_the_public_entry_reaches_triton_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "triton")
    p = torch.ones(4, 3, device=DEVICE).t()
    holey = torch.ones(8, device=DEVICE)[::2]  # no flat memory: it goes through the reference
    lists: list[Any] = [[torch.zeros_like(p), torch.zeros(4, device=DEVICE)] for _ in range(2)]
    adamw_([p, holey], [torch.ones(3, 4, device=DEVICE), torch.ones(4, device=DEVICE)], *lists, step=1, lr=0.5)

    torch.testing.assert_close(p, torch.full_like(p, 1 - 0.005 - 0.5))
    torch.testing.assert_close(holey, torch.full_like(holey, 1 - 0.005 - 0.5))


@triton.jit  # type: ignore[untyped-decorator]
def _round_kernel(x_ptr: tl.tensor, y_ptr: tl.tensor, N: tl.constexpr) -> None:
    offs = tl.arange(0, N)
    tl.store(y_ptr + offs, rounded(tl.load(x_ptr + offs), tl.bfloat16))


def test_stores_round_to_the_nearest_even_bfloat16_as_torch_does() -> None:
    # Ties to even both ways, just off ties, carries into the exponent and to infinity, subnormals, NaN payloads.
    patterns = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x3FFFFFFF, 0x7F7FFFFF, 0x00008000, 0x00018000]
    patterns += [0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xBF808000, 0x00000001]
    x = torch.tensor([struct.unpack("<f", struct.pack("<I", b))[0] for b in patterns], device=DEVICE)
    x = torch.cat([x, torch.randn(48, device=DEVICE) * 1e3])
    y = torch.empty(64, dtype=torch.bfloat16, device=DEVICE)
    _round_kernel[(1,)](x, y, N=64)
    expected = x.to(torch.bfloat16)

    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(0.0), expected.nan_to_num(0.0))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_follows_the_reference_at_the_real_block_size(dtype: torch.dtype) -> None:
    from shaped_kernels.adam_triton import BLOCK as REAL

    for n in (1, REAL - 1, REAL, REAL + 1, 3 * REAL + 7):
        p, m, v = torch.randn(n, device="cuda").to(dtype), *(torch.zeros(n, device="cuda", dtype=dtype) for _ in "mv")
        exact = [t.double().clone() for t in (p, m, v)]
        for step in (1, 2, 3):
            g = torch.randn(n, device="cuda").to(dtype)
            adamw_([p], [g], [m], [v], step=step, lr=0.1, weight_decay=0.1)
            new = adam_reference(exact[0], g.double(), *exact[1:], step=step, decoupled=True, **RULE)
            exact = [t for t in new if t is not None]

        assert_near([p, m, v], exact, dtype)
