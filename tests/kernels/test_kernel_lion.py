"""Lion, schedule-free AdamW and the flags in Triton against `plain` in float64; interpreted without a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from shaped_kernels.adam import AdamRule
from shaped_kernels.calls import Extras, RuleCall
from shaped_kernels.launch_triton import launch
from shaped_kernels.lion import LionRule
from shaped_kernels.lists import TensorLists
from shaped_kernels.rule import Rule
from shaped_kernels.schedule_free import ScheduleFreeRule
from shaped_kernels.sgd import SgdRule
from tests.kernels.test_kernel_triton import BLOCK, DEVICE

SIZES = ((), (0,), (BLOCK - 1,), (2 * BLOCK + 3,), (19 * BLOCK + 3,))  # the last is of several chunks
CASES: list[tuple[Rule, tuple[float, ...]]] = [
    (LionRule(), (0.01, 0.9, 0.95, 0.1)),
    (LionRule(maximize=True, cautious_decay=True), (0.01, 0.9, 0.95, 0.5)),
    (LionRule(decoupled_weight_decay=False), (0.01, 0.9, 0.95, 0.1)),
    (AdamRule(True, cautious_decay=True), (0.01, 0.9, 0.95, 1e-8, 0.5)),
    (LionRule(cautious=True, maximize=True), (0.01, 0.9, 0.95, 0.1)),
    (LionRule(cautious=True, decoupled_weight_decay=False), (0.01, 0.9, 0.95, 0.1)),
    (AdamRule(True, cautious=True, cautious_decay=True), (0.01, 0.9, 0.95, 1e-8, 0.5)),
    (AdamRule(cautious=True, amsgrad=True), (0.01, 0.9, 0.95, 1e-8, 0.5)),
    (ScheduleFreeRule(), (0.01, 0.9, 0.95, 1e-8, 0.1, 2.0)),
    (ScheduleFreeRule(maximize=True), (0.01, 0.9, 0.95, 1e-8, 0.1, 0.0)),
    (SgdRule(decoupled_weight_decay=True, buffered=True), (0.01, 0.9, 0.0, 0.5)),
]


def drawn(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(DEVICE) for size in SIZES]


@pytest.mark.parametrize(("rule", "numbers"), CASES, ids=lambda x: repr(x) if isinstance(x, Rule) else "numbers")
def test_three_steps_in_triton_are_those_of_plain_torch_in_float64(
    rule: Any, numbers: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "triton")
    params = drawn(0)
    slots = {name: [torch.zeros_like(p) for p in params] for name in rule.slots}
    average = [p.clone() for p in params]
    exact = [p.double() for p in params]
    state = [[torch.zeros_like(p) for p in exact] for _ in slots]
    lists, taken = TensorLists(params, slots, ema=average), torch.zeros((), device=DEVICE)
    for step in (1, 2, 3):
        grads = drawn(step)
        launch([RuleCall(rule, lists, lists.admit(grads), numbers, taken)], Extras(ema_decay=0.5), block=BLOCK)
        exact, state = rule.plain_list(exact, [g.double() for g in grads], state, numbers, float(step))

    found = [*params, *(t for slot in slots.values() for t in slot)]
    for mine, theirs in zip(found, [*exact, *(t for slot in state for t in slot)], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rule", [AdamRule(True, cautious=True), SgdRule(buffered=True)], ids=repr)
def test_averages_that_are_not_moved_in_a_step_are_in_nobodys_way(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "triton")
    numbers, found = (0.01, 0.9, 0.95, 1e-8, 0.5)[: 5 if isinstance(rule, AdamRule) else 4], []
    for averaged in (False, True):
        params = [p.bfloat16() for p in drawn(0)]
        slots = {name: [torch.zeros_like(p, dtype=torch.float32) for p in params] for name in rule.slots}
        low = [torch.zeros_like(p, dtype=torch.int16) for p in params]
        average = [p.clone() for p in params] if averaged else None
        lists = TensorLists(params, slots, ema=average, low=low)
        grads = [g.bfloat16() for g in drawn(1)]
        call = RuleCall(
            replace(rule, store="split"), lists, lists.admit(grads), numbers, torch.zeros((), device=DEVICE)
        )
        launch([call], block=BLOCK)
        found.append([*params, *low, *(t for slot in slots.values() for t in slot)])

    assert all(map(torch.equal, *found))
