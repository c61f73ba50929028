"""Muon in Triton against `plain_list` in float64; interpreted without a GPU."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from shaped_kernels import lowmemory
from shaped_kernels.calls import Extras, RuleCall
from shaped_kernels.fusion import take
from shaped_kernels.launch_triton import launch
from shaped_kernels.lists import TensorLists
from shaped_kernels.muon import MuonRule
from shaped_kernels.rule import Kernels
from tests.kernels.test_kernel_triton import BLOCK, DEVICE

NUMBERS = (0.02, 0.1, 0.9, 1e-7)
SHAPES = {
    "in out": ((3, 5), (BLOCK, 4), (6, 2 * BLOCK + 1), (5, 3)),
    "batch in out": ((2, 4, 6), (3, BLOCK, 2)),
    "out in in": ((4, 3, 3), (2, 5, 7)),
    "in (2+3 out)": ((4, 5), (BLOCK, 5)),
}


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "triton")


def drawn(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]


@pytest.mark.parametrize(("axes", "nesterov"), [*((axes, True) for axes in SHAPES), ("in out", False)])
def test_three_steps_in_triton_are_those_of_plain_torch_in_float64(axes: str, nesterov: bool) -> None:
    rule = MuonRule(axes=axes, nesterov=nesterov, ns_dtype="float32")
    params = drawn(0, SHAPES[axes])
    params[0] = torch.stack([params[0], params[0]], -1)[..., 0]  # no dense block
    params[1] = params[1].mT.contiguous().mT  # dense, but not in order
    buffers, average = [torch.zeros_like(p) for p in params], [p.clone() for p in params]
    exact = [p.double() for p in params]
    kept, state = [p.clone() for p in exact], [[torch.zeros_like(p) for p in exact]]
    lists, taken = TensorLists(params, {"momentum_buffer": buffers}, ema=average), torch.zeros((), device=DEVICE)
    for step in (1, 2, 3):
        grads = drawn(step, SHAPES[axes])
        extras = Extras(ema_decay=0.5, max_norm=1.0)
        launch([RuleCall(rule, lists, lists.admit(grads), NUMBERS, taken)], extras, block=BLOCK)
        total = torch.nn.utils.get_total_norm([g.double() for g in grads])
        slopes = [g.double() / (total + 1e-6) for g in grads]  # their norm is far above 1
        exact, state = MuonRule(axes=axes, nesterov=nesterov).plain_list(exact, slopes, state, NUMBERS, float(step))
        kept = [e + 0.5 * (p - e) for e, p in zip(kept, exact, strict=True)]

    for mine, theirs in zip([*params, *buffers, *average], [*exact, *state[0], *kept], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-6, atol=2e-6)


def test_a_step_that_is_skipped_changes_no_bit_and_zeroes_gradients() -> None:
    params = drawn(0, SHAPES["in out"])
    buffers, grads = drawn(1, SHAPES["in out"]), drawn(2, SHAPES["in out"])
    before = [t.clone() for t in (*params, *buffers)]
    grads[1][0, 0] = float("nan")
    lists = TensorLists(params, {"momentum_buffer": buffers})
    call = RuleCall(MuonRule(axes="in out"), lists, lists.admit(grads), NUMBERS, torch.zeros((), device=DEVICE))
    _, skipped = launch([call], Extras(skip_nonfinite=True, zero_grads=True), block=BLOCK)

    assert bool(skipped)
    assert all(map(torch.equal, (*params, *buffers), before))
    assert not any(bool(g.any()) for g in grads)


def test_nothing_of_a_step_is_held_after_it_but_parameters_and_state() -> None:
    params, buffers = drawn(0, SHAPES["in out"]), drawn(1, SHAPES["in out"])
    held: list[Any] = []

    @dataclass(frozen=True)
    class Watched(MuonRule):
        def kernels(self) -> Kernels:
            return super().kernels()._replace(between=lambda ahead, own: held.extend(map(weakref.ref, ahead)))

    lists = TensorLists(params, {"momentum_buffer": buffers})
    grads = drawn(2, SHAPES["in out"])
    launch([RuleCall(Watched(axes="in out"), lists, lists.admit(grads), NUMBERS, torch.zeros((), device=DEVICE))],
           block=BLOCK)  # fmt: skip
    held += map(weakref.ref, grads)
    del grads

    assert len(held) == 8
    assert [ref() for ref in held] == [None] * 8


@dataclass(frozen=True)
class OutOfMemory(MuonRule):
    """Muon on a device that has no room for the products."""

    def kernels(self) -> Kernels:
        return super().kernels()._replace(between=self._none)

    def _none(self, ahead: Sequence[Tensor], own: Tensor) -> None:
        raise torch.OutOfMemoryError("no room")


def test_products_for_which_there_is_no_memory_leave_everything_as_it_was() -> None:
    params, buffers = drawn(0, SHAPES["in out"]), drawn(1, SHAPES["in out"])
    before = [t.clone() for t in (*params, *buffers)]
    lists, taken = TensorLists(params, {"momentum_buffer": buffers}), torch.zeros((), device=DEVICE)
    call = RuleCall(OutOfMemory(axes="in out"), lists, lists.admit(drawn(2, SHAPES["in out"])), NUMBERS, taken)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        launch([call], block=BLOCK)

    assert float(taken) == 0.0
    assert all(map(torch.equal, (*params, *buffers), before))


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("store", ["stochastic", "split"])
def test_triton_stores_as_torch_does(store: Any, moments: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cuda":
        pytest.skip("a GPU fuses multiply and add, and its last bits differ")
    results = []
    for path in ("torch", "triton"):
        monkeypatch.setenv("SHAPED_KERNELS", path)
        params = [p.bfloat16() for p in drawn(0, SHAPES["in out"])]
        params[1] = params[1].mT.contiguous().mT
        buffers = [torch.zeros_like(p, dtype=moments) for p in params]
        low = [torch.zeros_like(p, dtype=torch.int16) for p in params] if store == "split" else None
        lists, taken = TensorLists(params, {"momentum_buffer": buffers}, low=low), torch.tensor(0.0)
        rule = MuonRule(axes="in out", store=store, ns_dtype="float32")
        for step in (1, 2):
            grads = [g.bfloat16() for g in drawn(step, SHAPES["in out"])]
            call = RuleCall(rule, lists, lists.admit(grads), NUMBERS, taken)
            _ = take([call]) if path == "torch" else launch([call], block=BLOCK)
        whole = params if low is None else [lowmemory.joined(*both) for both in zip(params, low, strict=True)]
        results.append([t.float() for t in (*whole, *buffers)])

    for ours, theirs in zip(*results, strict=True):
        # Products in another order may tip one narrow rounding in a few hundred.
        near = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert float((~near).float().mean()) < 0.02
