"""The way in without `.grad`: updates, update, commit and reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.optim import SGD, Adam, AdamW, FusedOptimizer
from tests.optim.optim_cases import CASES, advance, each_case, give_gradients, parameters


def gradients(params: list[Tensor], seed: int) -> list[Tensor]:
    give_gradients(params, seed)
    grads = [p.grad for p in params if p.grad is not None]
    for p in params:
        p.grad = None
    return grads


def by_reference(optimizer: FusedOptimizer, params: list[Tensor], grads: list[Tensor], wrap: Any) -> None:
    """One step as the compiled backend will take it: pure rule, then copies, then commit."""
    for u in optimizer.updates():
        scalars = [wrap(x) for x in u.scalars()]
        step = u.counted + 1
        for i, p in enumerate(u.params):
            new_p, new_slots = optimizer.reference(
                u, p.detach(), grads[u.indices[i]], tuple(s[i] for s in u.slots), scalars, step
            )
            p.detach().copy_(new_p)
            for slot, new in zip(u.slots, new_slots, strict=True):
                slot[i].copy_(new)
        if u.step is not None:
            u.step.add_(1)
        u.commit()


@each_case
@pytest.mark.parametrize("wrap", [float, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["floats", "tensors"])
def test_reference_equals_update_and_may_alternate_with_it(ours: Any, given: dict[str, Any], wrap: Any) -> None:
    mine, pure = parameters(), parameters()
    direct, traced = (ours(ps, **{"lr": 0.01, **given}) for ps in (mine, pure))
    for step in range(6):
        grads = gradients(mine, step)
        direct.update(grads)
        if step % 3 == 2:
            traced.update(grads)
        else:
            by_reference(traced, pure, grads, wrap)

    for a, b in zip(mine, pure, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    assert [float(e.get("step", 0)) for e in direct.state.values()] == [
        float(e.get("step", 0)) for e in traced.state.values()
    ]


def test_scalars_come_in_the_order_of_the_rule_and_follow_a_schedule() -> None:
    params = parameters()
    sgd = SGD(params, lr=torch.tensor(0.5, dtype=torch.float64), momentum=0.9, dampening=0.25, weight_decay=0.1)
    (update,) = sgd.updates()

    assert update.scalars() == (0.5, 0.9, 0.25, 0.1)
    sgd.update(gradients(params, 0))
    sgd.param_groups[0]["lr"] = 0.25
    assert update.scalars() == (0.25, 0.9, 0.25, 0.1)
    assert Adam(params).updates()[0].scalars() == (1e-3, 0.9, 0.999, 1e-8, 0)


def test_a_fresh_update_leaves_no_trace_until_it_is_committed() -> None:
    params = parameters()
    optimizer = AdamW(params)
    (update,) = optimizer.updates()

    assert [u.fresh for u in optimizer.updates()] == [True]
    assert not optimizer.state
    assert update.step is not None
    update.step.add_(1)
    update.commit()
    assert not update.fresh
    assert optimizer.state[params[0]]["exp_avg"] is update.slots[0][0]
    assert all(optimizer.state[p]["step"] is update.step for p in params)
    assert optimizer.updates()[0] is update


def test_updates_are_the_same_objects_until_something_changes() -> None:
    params = parameters()
    optimizer = AdamW([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)
    advance(optimizer, params, range(2))
    first = optimizer.updates()

    def renewed() -> bool:
        nonlocal first
        before, first = first, optimizer.updates()
        return before[0] is not first[0]

    assert not renewed()
    optimizer.param_groups[0]["lr"] = 0.5
    assert not renewed()
    optimizer.update(gradients(params, 2))
    assert not renewed()
    optimizer.state[params[0]]["exp_avg"] = torch.zeros_like(params[0]).detach()
    assert renewed()
    optimizer.state[params[0]] = dict(optimizer.state[params[0]])
    assert not renewed()  # another dict of the same tensors is the same state
    params[0].requires_grad_(False)
    assert renewed()
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    assert renewed()
    optimizer.load_state_dict(optimizer.state_dict())
    assert renewed()
    optimizer.param_groups[0]["amsgrad"] = False
    assert not renewed()


def test_a_part_of_the_parameters_moves_with_its_own_step_and_loading_ties_even_counts_again() -> None:
    params = parameters()
    optimizer = AdamW(params)
    optimizer.update(gradients(params, 0))
    some = [params[2], params[0]]
    optimizer.update([torch.ones_like(p) for p in some], some)

    assert [float(optimizer.state[p]["step"]) for p in params] == [2.0, 1.0, 2.0, 1.0]
    assert optimizer.state[params[0]]["step"] is optimizer.state[params[2]]["step"]
    assert len(optimizer.updates()) == 2
    rest = [params[1], params[3]]
    optimizer.update([torch.ones_like(p) for p in rest], rest)
    optimizer.load_state_dict(optimizer.state_dict())
    (together,) = optimizer.updates()
    assert all(optimizer.state[p]["step"] is together.step for p in params)


def test_gradients_are_matched_to_parameters_in_the_callers_order() -> None:
    params = [torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1.0)
    optimizer.update([torch.full((2,), 1.0), torch.full((2,), 2.0)], [params[1], params[0]])

    assert [p.tolist() for p in params] == [[-2.0, -2.0], [-1.0, -1.0]]


def test_state_replaced_by_the_user_is_what_moves() -> None:
    p = torch.zeros(1, requires_grad=True)
    optimizer = SGD([p], lr=1.0, momentum=0.5)
    optimizer.update([torch.ones(1)])
    optimizer.state[p] = {"momentum_buffer": torch.full((1,), 10.0)}
    optimizer.update([torch.zeros(1)])

    assert p.item() == -6.0


def test_frozen_parameters_are_left_out_of_the_default() -> None:
    params = parameters()
    params[1].requires_grad_(False)
    (update,) = AdamW(params).updates()

    assert [id(p) for p in update.params] == [id(params[i]) for i in (0, 2, 3)]


@pytest.mark.parametrize(("ours", "given"), CASES[:1] + CASES[-1:])
def test_gradients_that_do_not_fit_change_nothing(ours: Any, given: dict[str, Any]) -> None:
    params = parameters()
    optimizer = ours([{"params": params[:2]}, {"params": params[2:]}], **given)
    grads = gradients(params, 0)
    before = [p.detach().clone() for p in params]
    for bad, says in (
        (grads[:3], "expected 4 gradients, one for each parameter, got 3"),
        ([*grads[:3], torch.zeros(1, dtype=torch.float64)], r"grads\[1\]: expected float64 \(0,\)"),
    ):
        with pytest.raises(ValueError, match=says):
            optimizer.update(bad)

    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state


def test_strangers_and_twins_are_refused() -> None:
    params = parameters()
    optimizer = AdamW(params)
    with pytest.raises(ValueError, match=r"not this optimizer's: \[1\]"):
        optimizer.updates([params[0], torch.ones(1)])
    with pytest.raises(ValueError, match="given twice"):
        optimizer.updates([params[0], params[0]])


def test_incomplete_state_is_refused_by_name() -> None:
    params = parameters()
    optimizer = AdamW(params)
    optimizer.update(gradients(params, 0))
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="lacks max_exp_avg_sq"):
        optimizer.updates()


def test_state_made_in_inference_mode_may_be_updated_outside_it() -> None:
    for kind, given in CASES:
        optimizer = kind([torch.ones(2, requires_grad=True)], **given)
        with torch.inference_mode():
            optimizer.update([torch.ones(2)])
        optimizer.update([torch.ones(2)])

        assert not any(t.is_inference() for entry in optimizer.state.values() for t in entry.values())


@pytest.mark.parametrize("steps_before", [0, 2])
def test_parameters_that_get_other_data_under_them_go_on_as_in_torch(steps_before: int) -> None:
    kinds: list[Any] = [AdamW, torch.optim.AdamW]
    runs = []
    for kind in kinds:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3)
        optimizer = kind(layer.parameters(), lr=0.01)
        if kind is AdamW:
            optimizer.updates()
        advance(optimizer, list(layer.parameters()), range(steps_before))
        if not steps_before:  # later, the state would have another dtype than its parameter
            layer.double()
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        advance(optimizer, list(layer.parameters()), range(2, 4))
        runs.append(list(layer.parameters()))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_model_narrowed_mid_run_keeps_its_float32_moments() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = AdamW(layer.parameters(), lr=0.125)
    advance(optimizer, list(layer.parameters()), range(1))
    layer.bfloat16()
    before = layer.weight.detach().clone()
    advance(optimizer, list(layer.parameters()), range(1, 2))

    assert optimizer.state[layer.weight]["exp_avg"].dtype == torch.float32
    assert not torch.equal(layer.weight, before)
    assert float(optimizer.state[layer.weight]["step"]) == 2.0
