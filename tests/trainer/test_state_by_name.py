"""State goes by name: parameters, moments, groups. torch's own dicts, and those of older versions, by position."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from shaped import Checkpoints, Loop, ParamList, ScalarTrainer, StateError
from shaped.optim import SGD, AdamW

X = torch.linspace(-1, 1, 48).reshape(16, 3).sin()
FORMAT_1 = Path(__file__).parents[1] / "checkpoint" / "fixtures" / "format-1.zip"


class First(ParamList):
    w: Float[Tensor, " n"]
    a: Float[Tensor, " n"]


class Sorted(ParamList):
    a: Float[Tensor, " n"]
    w: Float[Tensor, " n"]


def fitted(p: Any, x: Tensor) -> Tensor:
    return ((x @ p.w) - (x * x) @ p.a.exp() + x.sum(1)).square().mean()


def loss(p: First, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    return fitted(p, x)


def sorted_loss(p: Sorted, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    return fitted(p, x)


def made(kind: type[ParamList], optimizer: Any) -> ScalarTrainer:
    params = kind(w=torch.ones(3), a=torch.zeros(3))
    return ScalarTrainer(loss if kind is First else sorted_loss, params, optimizer=optimizer(params))


def groups(*names: str, **options: Any) -> Any:
    """A function of parameters to AdamW over groups `w`, `a` in some order, each with its own decay and rate."""
    known = {"a": {"weight_decay": 0.0, "lr": 0.05}}
    return lambda p: AdamW([{"params": [p[n] for n in group], **known.get(group, {})} for group in names], lr=0.1)


def goes_on_alike(first: ScalarTrainer, second: ScalarTrainer) -> bool:
    for trainer in (first, first, first, second):
        if trainer is second:
            second.load_state_dict(first.state_dict())
        else:
            trainer.train_step(X)
            trainer.adamw_step(X, lr=0.1)
    for trainer in (first, second):
        trainer.train_step(X)
        trainer.adamw_step(X, lr=0.1)
    return all(torch.equal(first.params[name], second.params[name]) for name in ("w", "a"))


@pytest.mark.parametrize("optimizer", [lambda p: AdamW(p, lr=0.1), lambda p: SGD(list(p), lr=0.1, momentum=0.9)])
def test_fields_of_one_shape_that_were_sorted_keep_their_moments(optimizer: Any) -> None:
    assert goes_on_alike(made(First, optimizer), made(Sorted, optimizer))


def test_parameters_of_a_group_in_another_order_keep_their_moments() -> None:
    assert goes_on_alike(made(First, groups("wa")), made(First, groups("aw")))


def test_groups_in_another_order_or_of_other_parameters_are_refused_and_change_nothing() -> None:
    first, second = made(First, groups("w", "a")), made(First, groups("a", "w"))
    first.train_step(X)
    before = second.state_dict()["params"]
    with pytest.raises(StateError, match=r"(?s)\[0\]: `w` there only, `a` here only.*\[1\]: `a` there only"):
        second.load_state_dict(first.state_dict())
    with pytest.raises(StateError, match="expected 1 groups, got 2"):
        made(First, groups("wa")).load_state_dict(first.state_dict())

    assert all(torch.equal(second.params[name], value) for name, value in before.items())
    assert goes_on_alike(made(First, groups("w", "a")), made(Sorted, groups("w", "a")))


class Pair(nn.Module):
    up: nn.Linear
    down: nn.Linear

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(3, 3))

    def forward(self, x: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3"]:
        out: Tensor = self.down(torch.tanh(self.up(x)))
        return out


def test_module_attributes_in_another_order_keep_their_moments() -> None:
    modules = [Pair("up", "down"), Pair("down", "up")]
    modules[1].load_state_dict(modules[0].state_dict())
    first, second = (
        ScalarTrainer(module_loss, module, optimizer=AdamW(module.parameters(), lr=0.1)) for module in modules
    )
    for _ in range(3):
        first.train_step(X)
    second.load_state_dict(first.state_dict())
    first.train_step(X)
    second.train_step(X)

    assert all(torch.equal(first.params[name], second.params[name]) for name in first.params.names)


def module_loss(module: nn.Module, x: Float[Tensor, "batch 3"]) -> Float[Tensor, ""]:
    out: Tensor = module(x)
    return (out - 0.5).square().mean()


@pytest.mark.parametrize("how", ["list", "named parameters"])
def test_a_named_optimizer_loads_by_name(how: str) -> None:
    def optimizer(order: str) -> tuple[AdamW, dict[str, Any]]:
        tensors: dict[str, Any] = {name: nn.Parameter(torch.ones(3)) for name in order}
        if how == "list":
            params = (First if order == "wa" else Sorted)(**tensors)
            return AdamW(params, lr=0.1), {name: params[name] for name in order}
        return AdamW(tensors.items(), lr=0.1), tensors

    (first, a), (second, b) = optimizer("wa"), optimizer("aw")

    def step(which: AdamW, tensors: dict[str, Any]) -> None:
        tensors["w"].grad, tensors["a"].grad = torch.tensor([1.0, 2, 3]), torch.tensor([-5.0, 0, 1])
        which.step()

    step(first, a)
    second.load_state_dict(first.state_dict())
    for name in "wa":
        b[name].data.copy_(a[name])
    step(first, a)
    step(second, b)

    assert all(torch.equal(a[name], b[name]) for name in "wa")
    other = AdamW({"w": nn.Parameter(torch.ones(3)), "z": nn.Parameter(torch.ones(3))}.items())
    with pytest.raises(StateError, match=r"param_groups\[0\]: `a` there only, `z` here only"):
        other.load_state_dict(first.state_dict())


def test_torchs_own_dict_is_loaded_by_position_and_that_is_said() -> None:
    theirs = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))]
    torchs = torch.optim.AdamW(theirs, lr=0.1)
    trainer = made(First, lambda p: AdamW(p, lr=0.1))
    for _ in range(2):
        torchs.zero_grad()
        fitted(First(*theirs), X).backward()
        torchs.step()
    assert trainer.optimizer is not None
    with pytest.warns(UserWarning, match="taken by position: the state dict has no names of parameters"):
        trainer.optimizer.load_state_dict(torchs.state_dict())
    back = torch.optim.AdamW([nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))])
    back.load_state_dict(trainer.optimizer.state_dict())

    for i in (0, 1):
        for name in ("exp_avg", "exp_avg_sq"):
            loaded = trainer.optimizer.state[trainer.params[i]][name]
            assert torch.equal(loaded, torchs.state[theirs[i]][name])
            assert torch.equal(loaded, back.state_dict()["state"][i][name])


def test_a_group_that_is_added_to_a_named_optimizer_needs_no_names() -> None:
    params = First(w=torch.ones(3), a=torch.zeros(3))
    optimizer = AdamW(params, lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    assert [group["param_names"] for group in optimizer.param_groups] == [["w", "a"], ["param_groups[1][0]"]]


# -- what version 1 of the format, before there were names, has saved ------------------------------------------------


class Two(ParamList):
    w: Float[Tensor, " n"]
    a: Float[Tensor, " n"]


def two_loss(p: Two, x: Float[Tensor, "batch n"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return ((x @ (p.w * p.a.exp()) - y) ** 2).mean()


def test_a_checkpoint_from_before_there_were_names_loads_and_goes_on_alike(tmp_path: Path) -> None:
    def job() -> tuple[Loop, Any]:
        p = Two(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.2, -0.3]))
        o = AdamW([{"params": [p.w], "weight_decay": 0.0}, {"params": [p.a], "lr": 0.05}], lr=0.02)
        torch.manual_seed(3)
        loop = Loop(ScalarTrainer(two_loss, p, optimizer=o, accumulate=2), schedule=StepLR(o, 2, 0.5), leftover="keep")
        return loop, DataLoader(TensorDataset(X, X.sum(1)), batch_size=3, shuffle=True)

    straight, data = job()
    straight.run_steps(data, 5)
    straight.run_to_step(data, 14)
    with zipfile.ZipFile(FORMAT_1) as kept:
        kept.extractall(tmp_path / "run")
    resumed, data = job()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = Checkpoints(tmp_path / "run").resume(resumed)
    resumed.run_steps(data, 5)
    resumed.run_to_step(data, 14)

    assert found.step == 5
    assert any("taken by position" in str(w.message) for w in said)
    assert resumed.latest["validation/loss"] == pytest.approx(1.0832898616790771)
    for mine, theirs in zip(resumed.trainer.params, straight.trainer.params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert resumed.lr == straight.lr
