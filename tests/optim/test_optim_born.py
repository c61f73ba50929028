"""Born's interface: lr, time step, and a flat state from which a run really resumes."""

from typing import Any

import pytest
import torch

from shaped.optim import SGD, Adam, AdamW, FusedOptimizer
from tests.optim.optim_cases import advance, each_case, parameters


@each_case
def test_a_flat_state_resumes_the_run_with_step_and_hyper_parameters(ours: Any, given: dict[str, Any]) -> None:
    params = parameters()
    optimizer = ours(params, **{"lr": 0.02, **given})
    advance(optimizer, params, range(3))
    again = [p.detach().clone().requires_grad_() for p in params]
    resumed = ours(again, **{**given, "lr": 0.5})
    resumed.load_flat_state_dict(optimizer.flat_state_dict())
    advance(optimizer, params, range(3, 6))
    advance(resumed, again, range(3, 6))

    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    assert resumed.timestep == optimizer.timestep == (0 if ours is SGD else 6)


def test_flat_names_are_borns() -> None:
    params = parameters()
    names = []
    for optimizer in (Adam(params, amsgrad=True), SGD(params, momentum=0.9)):
        advance(optimizer, params, range(1))
        names.append({name.partition(".")[0] for name in optimizer.flat_state_dict()})

    assert names == [{"t", "m", "v", "top", "group"}, {"velocity", "group"}]


def test_lr_is_got_and_set_for_all_groups() -> None:
    params = parameters()
    tensor = torch.tensor(0.25)
    optimizer: FusedOptimizer = AdamW([{"params": params[:2]}, {"params": params[2:], "lr": tensor}], lr=0.5)
    with pytest.raises(ValueError, match=r"different learning rates, \[0.25, 0.5\]"):
        optimizer.get_lr()
    optimizer.set_lr(0.125)

    assert optimizer.get_lr() == 0.125
    assert optimizer.param_groups[1]["lr"] is tensor
    with pytest.raises(ValueError, match="lr must be a finite number >= 0, got -1"):
        optimizer.set_lr(-1.0)
    assert optimizer.get_lr() == 0.125


def test_a_flat_state_that_does_not_fit_changes_nothing() -> None:
    params = parameters()
    optimizer = AdamW(params)
    advance(optimizer, params, range(2))
    before = optimizer.flat_state_dict()
    wrong: dict[str, Any] = {**before, "m.0": torch.zeros(2), "v.1": None}
    with pytest.raises(
        ValueError, match=r"state\[0\].exp_avg: expected float64 \(3, 4\)(.|\n)*state\[1\]: lacks exp_avg_sq"
    ):
        optimizer.load_flat_state_dict(wrong)
    with pytest.raises(ValueError, match=r"mean nothing here: w\.0, m\.x"):
        optimizer.load_flat_state_dict({**before, "w.0": 1, "m.x": 2})

    torch.testing.assert_close(optimizer.flat_state_dict(), before)
