"""Each optimizer takes torch.optim's steps: every flag, group, schedule, scaler, hook and copy."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.optim import SGD, Adam, AdamW
from tests.optim.optim_cases import CASES, advance, assert_alike, each_case, give_gradients, parameters, theirs_of


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ten_steps_are_those_of_torch(ours: Any, given: dict[str, Any], dtype: torch.dtype) -> None:
    mine, theirs = parameters(dtype), parameters(dtype)
    advance(ours(mine, **{"lr": 0.01, **given}), mine, range(10))
    advance(theirs_of(ours)(theirs, **{"lr": 0.01, **given, "foreach": False}), theirs, range(10))

    assert_alike(mine, theirs)


@pytest.mark.parametrize("ours", [SGD, Adam, AdamW])
def test_arguments_order_and_defaults_are_those_of_torch(ours: Any) -> None:
    mine, theirs = (
        [(p.name, p.default, p.kind) for p in inspect.signature(c).parameters.values() if p.kind != p.VAR_KEYWORD]
        for c in (ours, theirs_of(ours))
    )

    assert mine == theirs


@each_case
def test_group_and_state_keys_are_those_of_torch(ours: Any, given: dict[str, Any]) -> None:
    dicts = []
    for kind in (ours, theirs_of(ours)):
        params = parameters()
        optimizer = kind(params, **given)
        advance(optimizer, params, range(1))
        dicts.append(optimizer.state_dict())
    mine, theirs = dicts

    assert list(mine["param_groups"][0]) == list(theirs["param_groups"][0])
    assert mine["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    assert {k: list(v) for k, v in mine["state"].items()} == {k: list(v) for k, v in theirs["state"].items()}


def test_groups_move_by_their_own_hyper_parameters() -> None:
    runs = []
    kinds: list[Any] = [AdamW, torch.optim.AdamW]
    for kind in kinds:
        params = parameters()
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1, "weight_decay": 0.0, "amsgrad": True}]
        optimizer = kind(groups, lr=0.01)
        advance(optimizer, params, range(3))
        late = torch.ones(2, dtype=torch.float64, requires_grad=True)
        optimizer.add_param_group({"params": [late], "lr": 0.5})
        advance(optimizer, [*params, late], range(3, 6))
        runs.append([*params, late])

    assert_alike(*runs)


@pytest.mark.parametrize("ours", [SGD, AdamW])
def test_parameters_without_gradients_rest_and_keep_their_own_count(ours: Any) -> None:
    given: dict[str, Any] = {"lr": 0.01, **({"momentum": 0.9, "dampening": 0.5} if ours is SGD else {})}
    runs, dicts = [], []
    for kind in (ours, theirs_of(ours)):
        params = parameters()
        optimizer = kind(params, **given)
        advance(optimizer, params, range(2), skip=(2,))
        advance(optimizer, params, range(2, 4))
        advance(optimizer, params, range(4, 7), skip=(0, 3))
        advance(optimizer, params, range(7, 9))
        runs.append(params)
        dicts.append(optimizer.state_dict())

    assert_alike(*runs)
    if ours is AdamW:
        mine, theirs = ([float(d["state"][i]["step"]) for i in range(4)] for d in dicts)

        assert mine == theirs == [6.0, 9.0, 7.0, 6.0]


def test_schedulers_drive_lr_and_momentum() -> None:
    kinds: list[Any] = [SGD, AdamW]
    for ours in kinds:
        runs = []
        for kind in (ours, theirs_of(ours)):
            params = parameters()
            optimizer = kind(params, lr=0.01, **({"momentum": 0.9} if ours is SGD else {}))
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
            for step in range(9):
                advance(optimizer, params, range(step, step + 1))
                scheduler.step()
            runs.append(params)

        assert_alike(*runs)


def test_closures_compute_the_gradients_and_their_loss_comes_back() -> None:
    p = torch.ones(2, requires_grad=True)
    optimizer = SGD([p], lr=0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert p.tolist() == [0.0, 0.0]


def test_hooks_run_before_and_after_a_step() -> None:
    seen: list[str] = []
    p = torch.ones(2, requires_grad=True)
    optimizer = SGD([p], lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: seen.append(f"before {p[0].item()}"))
    optimizer.register_step_post_hook(lambda *_: seen.append(f"after {p[0].item()}"))
    p.grad = torch.ones(2)
    optimizer.step()

    assert seen == ["before 1.0", "after 0.5"]


def test_a_non_finite_gradient_seen_by_the_scaler_changes_nothing() -> None:
    params = parameters(torch.float32)
    optimizer = AdamW(params, lr=0.01)
    give_gradients(params, 0)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(2.0)  # type: ignore[attr-defined]
    before = [p.detach().clone() for p in params]
    optimizer.step()

    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state


def test_grad_scaler_runs_as_with_torchs_fused_class() -> None:
    runs = []
    for make in (AdamW, lambda ps, **kw: torch.optim.AdamW(ps, fused=True, **kw)):
        params = parameters(torch.float32)
        optimizer: Any = make(params, lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(6):
            optimizer.zero_grad()
            bad = float("inf") if step == 3 else 1.0
            loss = torch.stack([((p * bad) ** 2).sum() for p in params]).sum()
            scaler.scale(loss).backward()
            if step % 2:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        runs.append(params)
        assert float(optimizer.state_dict()["state"][0]["step"]) == 5.0

    assert_alike(*runs)


def test_mixed_dtypes_and_layouts_move_together() -> None:
    torch.manual_seed(0)
    made = [torch.randn(3, 4).t(), torch.randn(4, 6)[:, ::2], torch.randn(4, dtype=torch.float64), torch.randn(2, 2)]
    runs = []
    kinds: list[Any] = [AdamW, torch.optim.AdamW]
    for kind in kinds:
        params = [torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(p).requires_grad_() for p in made]
        optimizer = kind(params, lr=0.01, **({} if kind is AdamW else {"foreach": False}))
        for step in range(3):
            give_gradients(params, step)
            params[3].grad = torch.randn(2, 2, generator=torch.Generator().manual_seed(step)).t()
            optimizer.step()
        runs.append(params)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copied_optimizer_goes_on_alike_with_its_own_parameters(clone: Any) -> None:
    params = parameters()
    optimizer = AdamW(params, lr=0.01)
    advance(optimizer, params, range(3))
    twin = clone(optimizer)
    copies = twin.param_groups[0]["params"]
    advance(twin, copies, range(3, 6))
    advance(optimizer, params, range(3, 6))

    for a, b in zip(params, copies, strict=True):
        assert a is not b
        assert torch.equal(a, b)


def test_autograd_notices_a_parameter_changed_under_it() -> None:
    p = torch.ones(2, requires_grad=True)
    loss = (p**2).sum()
    optimizer = SGD([p], lr=0.1)
    optimizer.update([torch.ones(2)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (SGD, {"lr": -1.0}, "lr must be"),
        (SGD, {"nesterov": True}, "nesterov needs momentum"),
        (SGD, {"differentiable": True}, "differentiable=True is not supported: updates are in place"),
        (Adam, {"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        (AdamW, {"eps": float("nan")}, "eps must be"),
        (AdamW, {"fused": True, "foreach": True}, "cannot both be True"),
        (AdamW, {"differentiable": True}, "differentiable=True is not supported"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(kind: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind(parameters(), **given)
    optimizer = kind(parameters())
    with pytest.raises(ValueError, match=says):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], **given})

    assert len(optimizer.param_groups) == 1


def test_a_hyper_parameter_that_leaves_its_range_later_is_refused_before_the_step() -> None:
    params = parameters()
    optimizer = AdamW(params, lr=0.01)
    advance(optimizer, params, range(1))
    optimizer.param_groups[0]["lr"] = -1.0
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="lr must be"):
        advance(optimizer, params, range(1, 2))

    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert float(optimizer.state[params[0]]["step"]) == 1.0


def test_complex_and_sparse_tensors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"params\[0\]: complex parameters are not supported"):
        AdamW([torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = AdamW(embedding.parameters())
    with pytest.raises(ValueError, match=r"grads\[0\]: sparse gradients are not supported"):
        optimizer.step()

    assert not optimizer.state


def test_a_run_through_a_file_resumes_bit_for_bit() -> None:
    for ours, given in CASES:
        params = parameters(torch.float32)
        optimizer = ours(params, **{"lr": 0.01, **given})
        advance(optimizer, params, range(4))
        file = io.BytesIO()
        torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        again = [p.clone().requires_grad_() for p in loaded["params"]]
        resumed = ours(again, lr=0.5)
        resumed.load_state_dict(loaded["optimizer"])
        advance(optimizer, params, range(4, 8))
        advance(resumed, again, range(4, 8))

        assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, about the loss it hands back
def test_a_step_inside_torch_compile_is_the_same_step() -> None:
    runs = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="eager")):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        optimizer = AdamW(layer.parameters(), lr=0.1)

        def train(x: Any, layer: Any = layer, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = layer(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        step = wrap(train)
        for _ in range(3):
            step(torch.ones(4, 3))
        runs.append(list(layer.parameters()))

    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b)


def many(dtype: torch.dtype, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3,), (2, 5), (1,), (4, 3), (0,), ()] * 3
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def test_a_parameter_that_was_cut_short_is_an_error_and_nothing_has_moved() -> None:
    params = [t.requires_grad_() for t in many(torch.float32, 0)]
    optimizer = AdamW(params, lr=0.1, max_norm=1.0)
    grads = many(torch.float32, 1)
    optimizer.update(grads)
    params[1].data = params[1].data[:1]
    before = [p.detach().clone() for p in params]
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.update(grads)

    assert all(map(torch.equal, params, before))
