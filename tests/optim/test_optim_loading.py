"""State dicts cross between torch's classes and ours mid-run, and misfits are listed and change nothing."""

import copy
from typing import Any

import pytest
import torch

from shaped.errors import StateError
from shaped.optim import SGD, Adam, AdamW, FusedOptimizer
from tests.optim.optim_cases import advance, assert_alike, each_case, parameters, theirs_of


@each_case
@pytest.mark.parametrize("skip", [(), (1,)], ids=["all moved", "one rests"])
def test_a_run_begun_in_torch_goes_on_here(ours: Any, given: dict[str, Any], skip: tuple[int, ...]) -> None:
    theirs = parameters()
    begun = theirs_of(ours)(theirs, **{"lr": 0.01, **given, "foreach": False})
    advance(begun, theirs, range(5), skip)
    mine = [p.detach().clone().requires_grad_() for p in theirs]
    optimizer = ours(mine)
    optimizer.load_state_dict(begun.state_dict())
    advance(optimizer, mine, range(5, 10))
    advance(begun, theirs, range(5, 10))

    assert_alike(mine, theirs)


@each_case
@pytest.mark.parametrize("how", [{"foreach": False}, {"fused": True}], ids=str)
def test_a_run_begun_here_goes_on_in_torch(ours: Any, given: dict[str, Any], how: dict[str, Any]) -> None:
    mine = parameters()
    optimizer = ours(mine, **{"lr": 0.01, **given, **how})
    # torch's fused SGD cannot take up a parameter that has no buffer while others do.
    skip = () if ours is SGD and "fused" in how else (2,)
    advance(optimizer, mine, range(5), skip)
    theirs = [p.detach().clone().requires_grad_() for p in mine]
    continued = theirs_of(ours)(theirs, **how)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(continued, theirs, range(5, 10))
    advance(optimizer, mine, range(5, 10))

    assert_alike(mine, theirs)


def test_every_parameter_gets_a_step_of_its_own_in_the_state_dict_and_a_shared_one_after_loading() -> None:
    params = parameters()
    optimizer = AdamW(params)
    advance(optimizer, params, range(2))
    steps = [entry["step"] for entry in optimizer.state_dict()["state"].values()]
    other = AdamW(parameters())
    other.load_state_dict(optimizer.state_dict())

    assert len({id(s) for s in steps}) == len(params)
    assert len({id(entry["step"]) for entry in other.state.values()}) == 1
    assert [float(s) for s in steps] == [2.0] * len(params)


def test_loading_copies_and_keeps_float32_moments_of_bfloat16_parameters() -> None:
    params = parameters(torch.float32)
    optimizer = AdamW(params)
    advance(optimizer, params, range(2))
    saved = optimizer.state_dict()
    narrow = [p.detach().bfloat16().requires_grad_() for p in params]
    other = AdamW(narrow)
    other.load_state_dict(saved)
    before = saved["state"][0]["exp_avg"].clone()
    advance(other, narrow, range(2, 4))

    assert other.state[narrow[0]]["exp_avg"].dtype == torch.float32
    assert torch.equal(saved["state"][0]["exp_avg"], before)
    wide = AdamW(parameters(torch.float64))
    wide.load_state_dict(saved)
    assert wide.state[wide.param_groups[0]["params"][0]]["exp_avg"].dtype == torch.float64


def snapshot(optimizer: FusedOptimizer) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def assert_refused(optimizer: FusedOptimizer, loaded: dict[str, Any], lines: list[str]) -> None:
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="does not fit") as caught:
        optimizer.load_state_dict(loaded)
    head = f"the state dict does not fit this {type(optimizer).__name__}; nothing was changed."

    assert str(caught.value) == "\n  ".join([head, *lines])
    torch.testing.assert_close(snapshot(optimizer), before, rtol=0, atol=0)


def moved(kind: Any, **given: Any) -> FusedOptimizer:
    params = parameters()
    optimizer: FusedOptimizer = kind(params, **given)
    advance(optimizer, params, range(2))
    return optimizer


def test_every_misfit_in_the_state_is_listed_and_nothing_changes() -> None:
    optimizer = moved(AdamW)
    loaded = snapshot(optimizer)
    loaded["state"][0]["exp_avg"] = torch.zeros(4, 3, dtype=torch.float64)
    loaded["state"][0]["step"] = torch.tensor(1.5)
    del loaded["state"][1]["exp_avg_sq"]
    loaded["state"][2]["momentum_buffer"] = torch.zeros(5)
    loaded["state"][3]["exp_avg"] = "none"
    loaded["state"][9] = {"step": torch.tensor(1.0)}

    assert_refused(
        optimizer,
        loaded,
        [
            "state[0].step: expected a whole number of steps >= 0, got tensor(1.5000)",
            "state[0].exp_avg: expected float64 (3, 4), got float64 (4, 3) on cpu",
            "state[1]: lacks exp_avg_sq",
            "state[2]: unknown entry momentum_buffer",
            "state[3].exp_avg: expected a tensor, got str",
            "state[9]: belongs to no parameter of the state dict's own groups",
        ],
    )


def test_every_misfit_in_the_groups_is_listed_and_nothing_changes() -> None:
    optimizer = moved(AdamW)
    loaded = snapshot(optimizer)
    loaded["param_groups"][0]["params"].pop()
    loaded["param_groups"][0]["lr"] = -1.0
    del loaded["param_groups"][0]["eps"]
    loaded["param_groups"].append(copy.deepcopy(loaded["param_groups"][0]))

    assert_refused(
        optimizer,
        loaded,
        [
            "param_groups: expected 1 groups, got 2",
            "param_groups[0]: expected 4 parameters, got 3",
            "param_groups[0]: lacks eps",
            "param_groups[0]: lr must be a finite number >= 0, got -1.0",
        ],
    )
    assert_refused(optimizer, {}, ["state: missing", "param_groups: missing"])


def test_state_that_would_lose_precision_is_refused() -> None:
    params = parameters(torch.float32)
    optimizer = SGD(params, momentum=0.9)
    advance(optimizer, params, range(1))
    loaded = snapshot(optimizer)
    loaded["state"][0]["momentum_buffer"] = loaded["state"][0]["momentum_buffer"].double()

    assert_refused(optimizer, loaded, ["state[0].momentum_buffer: expected float32 (3, 4), got float64 (3, 4) on cpu"])


def test_the_state_of_another_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"param_groups\[0\]: lacks momentum"):
        moved(SGD, momentum=0.9).load_state_dict(snapshot(moved(AdamW)))


def test_adam_and_adamw_load_each_other_as_torchs_do() -> None:
    plain, decoupled = moved(Adam, weight_decay=0.1), moved(AdamW, weight_decay=0.1)
    into_plain, into_decoupled = Adam(parameters()), AdamW(parameters())
    into_plain.load_state_dict(decoupled.state_dict())
    into_decoupled.load_state_dict(plain.state_dict())

    assert into_plain.param_groups[0]["decoupled_weight_decay"]
    assert into_decoupled.param_groups[0]["decoupled_weight_decay"]


def test_a_buffer_that_torch_wrote_as_none_is_a_first_step_to_come() -> None:
    params = parameters()
    optimizer = SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    loaded = optimizer.state_dict()
    loaded["state"] = {i: {"momentum_buffer": None} for i in range(len(params))}
    optimizer.load_state_dict(loaded)

    assert [u.fresh for u in optimizer.updates()] == [True]


def test_old_dicts_without_the_newer_switches_load_with_their_defaults() -> None:
    optimizer = moved(Adam)
    loaded = snapshot(optimizer)
    for key in ("foreach", "maximize", "capturable", "differentiable", "fused", "amsgrad", "decoupled_weight_decay"):
        del loaded["param_groups"][0][key]
    for entry in loaded["state"].values():
        entry["step"] = int(entry["step"])
    optimizer.load_state_dict(loaded)

    assert set(optimizer.param_groups[0]) == set(Adam(parameters()).param_groups[0])


def test_load_hooks_see_and_may_replace_the_dict() -> None:
    optimizer = moved(AdamW)
    seen: list[str] = []

    def pre(_: Any, loaded: dict[str, Any]) -> dict[str, Any]:
        seen.append("pre")
        return {**loaded, "state": {}}

    optimizer.register_load_state_dict_pre_hook(pre)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("post"))
    optimizer.load_state_dict(optimizer.state_dict())

    assert seen == ["pre", "post"]
    assert not optimizer.state


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": b"x"}, "state: expected a dict, got a bytes"),
        ({"state": {0: 2.5}}, r"state\[0\]: expected a dict, got a float"),
        ({"param_groups": 3}, "param_groups: expected a list, got a int"),
        ({"param_groups": [[1, 2]]}, r"param_groups\[0\]: expected a dict, got a list"),
        ({"param_groups": [{"params": [set()]}]}, r"param_groups\[0\]\.params: expected a list of keys"),
        ({"param_groups": [{"params": [0], "param_names": [[1]]}]}, r"\.param_names: expected a list of names"),
    ],
)
def test_a_state_dict_that_is_built_otherwise_is_refused_in_our_words(changes: dict[str, Any], said: str) -> None:
    optimizer = AdamW([torch.ones(2, requires_grad=True)], lr=0.1)
    with pytest.raises(StateError, match=said):
        optimizer.load_state_dict({**optimizer.state_dict(), **changes})
