"""Several optimizers in one trainer: each steps its own parameters, on both backends, saved and loaded by name."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.optim import SGD, AdamW, Lion, MultiOptimizer, Muon


class Net(ParamList):
    w: Float[Tensor, "pixels hidden"]
    b: Float[Tensor, " hidden"]
    v: Float[Tensor, "hidden hidden"]
    u: Float[Tensor, "hidden classes"]


def net_loss(p: Net, x: Float[Tensor, "batch pixels"], y: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    return F.mse_loss(torch.tanh(torch.tanh(x @ p.w + p.b) @ p.v) @ p.u, y)


def net() -> Net:
    return Net.init(pixels=6, hidden=8, classes=3, seed=0)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)


def two(params: Net) -> list[Any]:
    return [AdamW([params.w, params.v], lr=0.01), SGD([params.b, params.u], lr=0.1, momentum=0.9)]


@pytest.fixture(scope="module")
def expected() -> Net:
    params = net()
    peers = [
        torch.optim.AdamW([params.w, params.v], lr=0.01),
        torch.optim.SGD([params.b, params.u], lr=0.1, momentum=0.9),
    ]
    for step in range(4):
        for peer in peers:
            peer.zero_grad()
        net_loss(params, *batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(list(params), 0.5)
        for peer in peers:
            peer.step()
    return params


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_each_steps_its_own_parameters_as_torchs_two_do(backend: Any, expected: Net) -> None:
    params = net()
    trainer = ScalarTrainer(net_loss, params, optimizer=two(params), max_norm=0.5, backend=backend)
    for step in range(4):
        trainer.train_step(*batch(step))

    for mine, theirs in zip(params, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_run_is_saved_and_goes_on_by_name() -> None:
    params, again = net(), net()
    first, second = (ScalarTrainer(net_loss, p, optimizer=two(p)) for p in (params, again))
    for step in range(2):
        first.train_step(*batch(step))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    twin = copy.deepcopy(second)
    for trainer in (first, second, twin):
        trainer.train_step(*batch(2))

    assert all(torch.equal(a, b) for a, b in zip(params, twin.params, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    assert [g["optimizer"] for g in first.state_dict()["optimizers"]["train"]["state"]["param_groups"]] == [
        "AdamW",
        "SGD",
    ]


def test_a_scheduler_of_one_moves_its_own_rate_also_after_loading() -> None:
    params = net()
    parts = two(params)
    trainer = ScalarTrainer(net_loss, params, optimizer=parts)
    trainer.train_step(*batch(0))
    trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(parts[1], 0.5)
    trainer.train_step(*batch(1))
    scheduler.step()

    assert isinstance(trainer.optimizer, MultiOptimizer)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.01, 0.05]


def test_muon_leaves_to_the_others_what_they_have() -> None:
    params = net()
    trainer = ScalarTrainer(net_loss, params, optimizer=[partial(Muon, lr=0.01), Lion([params.b, params.u], lr=0.01)])
    before = params.b.detach().clone()
    trainer.train_step(*batch(0))

    assert trainer.optimizer is not None
    assert {(g["optimizer"], len(g["params"])) for g in trainer.optimizer.param_groups} == {("Muon", 2), ("Lion", 2)}
    torch.testing.assert_close((params.b - before).abs(), torch.full_like(before, 0.01))


def test_what_does_not_go_together_is_refused() -> None:
    params = net()
    for parts, said in (
        ([AdamW(params)], "a list of 1"),
        ([AdamW([params.w]), SGD([params.w, params.b])], r"AdamW and SGD share a parameter of shape \[6, 8\]"),
        ([AdamW([params.w], max_norm=1.0), SGD([params.b])], "fused around a step is one for all"),
    ):
        with pytest.raises(ValueError, match=said):
            MultiOptimizer(parts)
    for given, said in (
        ([AdamW([params.w, params.b]), SGD([params.v])], "`u` not in it"),
        ([AdamW([params.w]), torch.optim.SGD([params.b])], r"optimizer\[1\] is a torch.optim.SGD"),
    ):
        with pytest.raises(ValueError, match=said):
            ScalarTrainer(net_loss, params, optimizer=given)
    stepped = two(params)
    ScalarTrainer(net_loss, params, optimizer=stepped).train_step(*batch(0))
    with pytest.raises(ValueError, match="AdamW has stepped already"):
        MultiOptimizer(stepped)
