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
from shaped_kernels.adam import AdamRule
from shaped_kernels.calls import NOTHING, Extras, RuleCall
from shaped_kernels.dispatch import interpreting
from shaped_kernels.launch_triton import launch
from shaped_kernels.lists import TensorLists
from shaped_kernels.rounding_triton import rounded
from shaped_kernels.sgd import SgdRule

BLOCK = 64  # the interpreter takes 10 ms a block, whatever its width; the ragged path walks an eighth of it
SIZES = [(), (0,), (1,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (9 * BLOCK + 7,)]
RULE: dict[str, Any] = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and not interpreting():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "triton")


def draw(dtype: torch.dtype, seed: int, sizes: Any = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE) for s in sizes]


def zeros(like: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p, requires_grad=False) for p in like]


def count(steps: int = 0) -> Tensor:
    return torch.tensor(float(steps), device=DEVICE)


def copies(*lists: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for tensors in lists for t in tensors]


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
    slots = [zeros(params) for _ in range(3 if amsgrad else 2)]
    exact = [p.detach().double().clone() for p in params]
    state: list[Any] = [[torch.zeros_like(p) for _ in slots] for p in exact]
    reference: Any = partial(adam_reference, **RULE, decoupled=decoupled, maximize=maximize)
    lists, taken = TensorLists(params, dict(zip("mvu", slots, strict=False))), count()
    for step in (1, 2, 3):
        grads = draw(dtype, step)
        rule = AdamRule(decoupled, maximize, amsgrad)
        launch([RuleCall(rule, lists, lists.admit(grads), tuple(RULE.values()), taken)], block=BLOCK)
        for i, g in enumerate(grads):
            exact[i], *new = reference(exact[i], g.double(), *state[i], step=step)
            state[i] = [slot for slot in new if slot is not None]

    assert float(taken) == 3.0
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
    bufs = zeros(params) if momentum else None
    exact = [p.double().clone() for p in params]
    exact_bufs: list[Tensor | None] = [torch.zeros_like(p) if momentum else None for p in exact]
    lists, taken = TensorLists(params, {} if bufs is None else {"b": bufs}), count()
    for step in range(3):
        rule: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "damp": 0.7 if step else 1.0, "weight_decay": 0.1}
        grads = draw(dtype, 1 + step)
        call = RuleCall(
            SgdRule(nesterov, maximize, buffered=momentum > 0),
            lists,
            lists.admit(grads),
            (0.1, momentum, 0.3, 0.1),
            taken,
        )
        launch([call], block=BLOCK)
        for i, g in enumerate(grads):
            exact[i], exact_bufs[i] = sgd_reference(
                exact[i], g.double(), exact_bufs[i], nesterov=nesterov, maximize=maximize, **rule
            )

    assert_near(params, exact, dtype, scale=4.0)  # the buffer reaches a few units


class Run:
    """AdamW or SGD with everything fused around it, over sizes that are ragged, whole and empty."""

    def __init__(self, rule: str, sizes: Any = ((), (0,), (BLOCK + 5,), (3 * BLOCK,))) -> None:
        self.params = draw(torch.float32, 0, sizes)
        self.slots = [zeros(self.params) for _ in range(2 if rule == "adamw" else 1)]
        self.ema = copies(self.params)
        self.lists = TensorLists(self.params, dict(zip("mv", self.slots, strict=False)), ema=self.ema)
        self.rule: Any = AdamRule(True) if rule == "adamw" else SgdRule(buffered=True)
        self.scalars = tuple(RULE.values()) if rule == "adamw" else (0.1, 0.9, 0.5, 0.1)
        self.taken = count()

    def step(self, grads: list[Tensor], extras: Extras) -> tuple[Tensor | None, Tensor]:
        call = RuleCall(self.rule, self.lists, self.lists.admit(grads), self.scalars, self.taken)
        return launch([call], extras, block=BLOCK)

    def everything(self) -> list[Tensor]:
        return copies(self.params, *self.slots, self.ema, [self.taken])


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_what_is_fused_equals_the_separate_operations(rule: str) -> None:
    fused, apart = Run(rule), Run(rule)
    scale = torch.tensor(8.0, device=DEVICE)
    for step in (1, 2):
        grads = draw(torch.float32, step, [p.shape for p in fused.params])
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]).double())
        scaled = [g * scale for g in grads]
        told, skipped = fused.step(
            scaled, Extras(1.0, True, 0.75, True, grad_scale=scale, found_inf=torch.zeros((), device=DEVICE))
        )
        clipped = [(g.double() / (norm + 1e-6)).float() for g in grads]
        before = copies(apart.ema)
        apart.step(clipped, NOTHING)

        assert told is not None
        torch.testing.assert_close(told.double(), norm, rtol=1e-6, atol=0.0)
        assert not bool(skipped)
        assert all(int(g.count_nonzero()) == 0 for g in scaled)
        expected = [e.lerp(p, 0.25) for e, p in zip(before, apart.params, strict=True)]
        for e, x in zip(apart.ema, expected, strict=True):
            e.copy_(x)
        for a, b in zip(fused.everything(), apart.everything(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_a_non_finite_gradient_leaves_parameters_state_and_step_bit_for_bit(rule: str, bad: float) -> None:
    run = Run(rule)
    shapes = [p.shape for p in run.params]
    run.step(draw(torch.float32, 1, shapes), Extras(ema_decay=0.9))
    before = run.everything()
    grads = draw(torch.float32, 2, shapes)
    grads[2][-1] = bad
    _, skipped = run.step(grads, Extras(max_norm=1.0, skip_nonfinite=True, ema_decay=0.9, zero_grads=True))

    assert bool(skipped)
    assert all(torch.equal(a, b) for a, b in zip(run.everything(), before, strict=True))
    assert all(int(g.count_nonzero()) == 0 for g in grads)  # or the next accumulation would not be finite either
    _, skipped = run.step(draw(torch.float32, 2, shapes), Extras(found_inf=torch.ones(1, device=DEVICE)))
    assert bool(skipped)
    assert all(torch.equal(a, b) for a, b in zip(run.everything(), before, strict=True))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's numpy squares 3e38
def test_finite_gradients_of_infinite_norm_are_no_reason_to_skip() -> None:
    run = Run("sgd", [(4,)])
    _, skipped = run.step([torch.full((4,), 3e38, device=DEVICE)], Extras(skip_nonfinite=True))

    assert not bool(skipped)


def test_the_norm_has_the_same_bits_on_every_run() -> None:
    norms = []
    for _ in range(2):
        run = Run("sgd", [(5,), (7 * BLOCK,)])
        norms.append(run.step(draw(torch.float32, 1, [(5,), (7 * BLOCK,)]), Extras(max_norm=1.0))[0])

    assert norms[0] is not None
    assert torch.equal(norms[0], norms[1])  # type: ignore[arg-type]


def test_views_that_begin_anywhere_are_updated_like_others() -> None:
    whole, apart = Run("adamw", [(2 * BLOCK + 1,), (BLOCK,)]), Run("adamw", [(2 * BLOCK + 1,), (BLOCK,)])
    shifted = [torch.zeros(p.numel() + 1, device=DEVICE)[1:].copy_(p) for p in apart.params]
    apart.lists = TensorLists(shifted, dict(zip("mv", apart.slots, strict=True)), ema=apart.ema)
    grads = draw(torch.float32, 1, [p.shape for p in whole.params])
    for run in (whole, apart):
        run.step(grads, Extras(max_norm=1.0))

    assert shifted[0].data_ptr() % 16
    assert all(torch.equal(a, b) for a, b in zip(whole.params, shifted, strict=True))


def test_dtypes_that_are_mixed_move_in_one_step_under_one_norm() -> None:
    kinds = [torch.float64, torch.float32, torch.bfloat16]
    params = [torch.ones(5, dtype=kind, device=DEVICE) for kind in kinds]
    lists, taken = TensorLists(params, {"b": zeros(params)}), count()
    grads = [torch.full((5,), 2.0, dtype=kind, device=DEVICE) for kind in kinds]
    norm, _ = launch(
        [RuleCall(SgdRule(buffered=True), lists, grads, (0.5, 0.9, 0.0, 0.0), taken)], Extras(max_norm=1e9), block=BLOCK
    )

    assert float(taken) == 1.0
    assert norm is not None
    torch.testing.assert_close(norm.double(), torch.tensor(60.0, device=DEVICE).double().sqrt())
    assert all(p.tolist() == [0.0] * 5 for p in params)


def test_amsgrad_in_triton_keeps_a_nan() -> None:
    p, g, m, v, top = (torch.ones(3, device=DEVICE) for _ in range(5))
    g[1] = float("nan")
    lists = TensorLists([p], {"m": [m], "v": [v], "u": [top]})
    launch([RuleCall(AdamRule(True, amsgrad=True), lists, [g], tuple(RULE.values()), count())], block=BLOCK)

    assert p.isnan().tolist() == [False, True, False]
    assert top.isnan().tolist() == [False, True, False]


def test_float32_moments_of_a_bfloat16_parameter_stay_float32_in_triton() -> None:
    p, g = (torch.ones(4, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    m, v = torch.zeros(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    lists = TensorLists([p], {"m": [m], "v": [v]})
    launch([RuleCall(AdamRule(True), lists, [g], (0.125, 0.9, 0.999, 1e-8, 0.0), count())], block=BLOCK)

    assert p.tolist() == [0.875] * 4
    torch.testing.assert_close(m, torch.full((4,), 1 - 0.9, device=DEVICE))


def test_the_public_entry_reaches_triton_when_asked() -> None:
    p = torch.ones(4, 3, device=DEVICE).t()
    holey = torch.ones(8, device=DEVICE)[::2]  # no flat memory: it is updated as a dense copy
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
    from shaped_kernels.tables import BLOCK as REAL

    for n in (1, REAL - 1, REAL, REAL + 1, 11 * REAL + 7):
        p, m, v = torch.randn(n, device="cuda").to(dtype), *(torch.zeros(n, device="cuda", dtype=dtype) for _ in "mv")
        exact = [t.double().clone() for t in (p, m, v)]
        for step in (1, 2, 3):
            g = torch.randn(n, device="cuda").to(dtype)
            adamw_([p], [g], [m], [v], step=step, lr=0.1, weight_decay=0.1)
            new = adam_reference(exact[0], g.double(), *exact[1:], step=step, decoupled=True, **RULE)
            exact = [t for t in new if t is not None]

        assert_near([p, m, v], exact, dtype)
