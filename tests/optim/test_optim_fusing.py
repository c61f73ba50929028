"""What our optimizers do beyond torch's, each against the separate operations of torch, on both paths."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.optim import SGD, Adam, AdamW, Lion, flatten_parameters
from tests.optim.optim_cases import assert_alike, give_gradients

SHAPES = [(3, 4), (), (5,), (0,), (20, 8)]
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (SGD, {}),
    (SGD, {"momentum": 0.9, "dampening": 0.5}),
    (Adam, {"weight_decay": 0.1}),
    (AdamW, {}),
    (AdamW, {"amsgrad": True, "maximize": True}),
]
each_kind = pytest.mark.parametrize(("ours", "given"), KINDS, ids=lambda x: getattr(x, "__name__", str(x)))


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in SHAPES]


@pytest.fixture(params=["torch", "triton"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("without a GPU, for the interpreter")
    monkeypatch.setenv("SHAPED_KERNELS", request.param)
    return str(request.param)


def theirs(ours: Any, params: list[Tensor], given: dict[str, Any]) -> Any:
    return getattr(torch.optim, ours.__name__)(params, lr=0.01, foreach=False, **given)


@each_kind
def test_clipping_is_that_of_clip_grad_norm(ours: Any, given: dict[str, Any], path: str) -> None:
    mine, exact = parameters(), parameters()
    optimizer, other = ours(mine, lr=0.01, **given, max_norm=1.0), theirs(ours, exact, given)
    for step in range(3):
        give_gradients(mine, step)
        give_gradients(exact, step)
        if step == 2:  # below the limit: nothing is scaled
            for p in [*mine, *exact]:
                assert p.grad is not None
                p.grad.mul_(1e-3)
        norm = torch.nn.utils.clip_grad_norm_(exact, 1.0)
        other.step()
        optimizer.step()
        assert optimizer.grad_norm is not None
        torch.testing.assert_close(optimizer.grad_norm.float(), norm)

    assert_alike(mine, exact)


def test_one_norm_spans_all_groups_and_dtypes(path: str) -> None:
    def made() -> list[Tensor]:
        return [torch.ones(4, requires_grad=True), torch.ones(9, dtype=torch.float64, requires_grad=True)]

    mine, exact = made(), made()
    groups: list[dict[str, Any]] = [{"params": mine[:1]}, {"params": mine[1:], "lr": 0.5}]
    optimizer = SGD(groups, lr=0.1, max_norm=1.0)
    same: list[dict[str, Any]] = [{"params": exact[:1]}, {"params": exact[1:], "lr": 0.5}]
    other = torch.optim.SGD(same, lr=0.1)
    for p in (*mine, *exact):
        p.grad = torch.full_like(p, 2.0)
    torch.nn.utils.clip_grad_norm_(exact, 1.0)
    other.step()
    optimizer.step()

    torch.testing.assert_close([p.detach() for p in mine], [p.detach() for p in exact])


@each_kind
def test_a_non_finite_gradient_changes_nothing_at_all(ours: Any, given: dict[str, Any], path: str) -> None:
    params = parameters()
    optimizer = ours(params, lr=0.01, **given, skip_nonfinite=True, ema_decay=0.9)
    for bad in (True, False, True):  # before there is state, and after
        give_gradients(params, 0)
        before = copy.deepcopy([optimizer.state_dict()["state"], [p.detach() for p in params]])
        if bad:
            assert params[4].grad is not None
            params[4].grad[3, 2] = float("nan")
        optimizer.step()
        after = [optimizer.state_dict()["state"], [p.detach() for p in params]]
        if bad and (before[0] or path == "torch"):
            torch.testing.assert_close(after, before, rtol=0, atol=0)
        elif bad:  # the host does not know that the device skipped: state is there, as new
            torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
            assert all(float(entry.get("step", 0)) == 0 for entry in after[0].values())  # type: ignore[union-attr]
        else:
            assert not torch.equal(params[0], before[1][0])


@each_kind
def test_a_first_step_that_was_skipped_is_still_to_come(ours: Any, given: dict[str, Any], path: str) -> None:
    mine, exact = parameters(), parameters()
    optimizer, other = ours(mine, lr=0.01, **given, skip_nonfinite=True), theirs(ours, exact, given)
    for p in mine:
        p.grad = torch.full_like(p, float("inf"))
    optimizer.step()
    for step in range(2):
        give_gradients(mine, step)
        give_gradients(exact, step)
        optimizer.step()
        other.step()

    assert_alike(mine, exact)


@each_kind
def test_averages_are_those_of_swa_utils(ours: Any, given: dict[str, Any], path: str) -> None:
    params = parameters()
    optimizer = ours(params, lr=0.1, **given, ema_decay=0.75)
    averaged = [p.detach().clone() for p in params]
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
        torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)(averaged, [p.detach() for p in params], None)  # type: ignore[no-untyped-call]

    for e, p in zip(averaged, params, strict=True):
        torch.testing.assert_close(optimizer.state[p]["ema"], e, rtol=1e-6, atol=1e-7)


def test_zeroed_gradients_are_there_for_the_next_backward_pass(path: str) -> None:
    params = parameters()
    optimizer = AdamW(params, zero_grads=True)
    give_gradients(params, 0)
    optimizer.step()

    assert all(p.grad is not None and int(p.grad.count_nonzero()) == 0 for p in params)


@pytest.mark.parametrize("store", ["nearest", "stochastic", "split"])
@pytest.mark.parametrize("moments", [None, torch.float32, "8bit"], ids=str)
@pytest.mark.parametrize("kind", [AdamW, Lion])
def test_low_memory_runs_resume_bit_for_bit(kind: Any, store: Any, moments: Any, path: str) -> None:
    def advanced(optimizer: Any, params: list[Tensor], steps: range) -> None:
        for step in steps:
            give_gradients(params, step)
            optimizer.step()

    params = parameters(torch.bfloat16)
    given: dict[str, Any] = {"lr": 0.01, "store": store, "moments": moments, "ema_decay": 0.5}
    optimizer = kind(params, **given)
    advanced(optimizer, params, range(2))
    again = [p.detach().clone().requires_grad_() for p in params]
    resumed = kind(again, **given)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advanced(optimizer, params, range(2, 4))
    advanced(resumed, again, range(2, 4))

    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    torch.testing.assert_close(resumed.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


def test_options_survive_copies_and_are_no_part_of_the_state_dict() -> None:
    params = parameters()
    optimizer = AdamW(params, max_norm=1.0, ema_decay=0.5)
    give_gradients(params, 0)
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.options == optimizer.options
        mine = twin.param_groups[0]["params"]
        give_gradients(mine, 1)
        twin.step()
        assert float(twin.state[mine[0]]["step"]) == 2.0
    torchs = torch.optim.AdamW(parameters())
    torchs.load_state_dict(optimizer.state_dict())

    assert set(optimizer.state_dict()) == {"state", "param_groups"}


def test_averages_that_a_state_dict_lacks_begin_at_the_parameters() -> None:
    params = parameters()
    plain = AdamW(params)
    give_gradients(params, 0)
    plain.step()
    optimizer = AdamW(params, ema_decay=0.5)
    optimizer.load_state_dict(plain.state_dict())
    before = [p.detach().clone() for p in params]
    give_gradients(params, 1)
    optimizer.step()

    for p, b in zip(params, before, strict=True):
        torch.testing.assert_close(optimizer.state[p]["ema"], b.lerp(p.detach(), 0.5))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_norm": 0.0}, "max_norm must be a finite number > 0, or None, got 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), or None, got 1.0"),
        ({"store": "up"}, "store is 'up'; it is 'nearest', 'stochastic' or 'split'"),
        ({"moments": torch.float16}, "moments must be None, torch.float32 or '8bit'"),
        ({"moments": "8bit", "amsgrad": True}, "8-bit moments have no AMSGrad"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AdamW(parameters(), **given)


def test_unknown_arguments_are_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="unknown argument max_nrom; beyond torch's there are max_norm, skip_nonfinite"):
        AdamW(parameters(), max_nrom=1.0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="8-bit moments are Adam's, AdamW's and Lion's"):
        SGD(parameters(), momentum=0.9, moments="8bit")


def test_gradients_that_are_one_tensor_are_scaled_once(path: str) -> None:
    for count in (3, 6):  # lists, and one flat tensor
        params = [torch.ones(4, requires_grad=True) for _ in range(count)]
        gradient = torch.ones(4)
        for p in params:
            p.grad = gradient
        SGD(params, lr=1.0, max_norm=1.0, zero_grads=True).step()

        for p in params:
            torch.testing.assert_close(p.detach(), torch.full((4,), 1 - (4 * count) ** -0.5))
        assert int(gradient.count_nonzero()) == 0


def test_wide_parameters_keep_wide_moments() -> None:
    params = [*parameters(torch.float64), *parameters(torch.bfloat16)]
    optimizer = AdamW(params, moments=torch.float32)
    give_gradients(params, 0)
    optimizer.step()

    assert {optimizer.state[p]["exp_avg"].dtype for p in params[:5]} == {torch.float64}
    assert {optimizer.state[p]["exp_avg"].dtype for p in params[5:]} == {torch.float32}


# Flattened parameters.


@each_kind
@pytest.mark.parametrize("grads", [False, True])
def test_flattened_parameters_move_as_others_do(ours: Any, given: dict[str, Any], grads: bool) -> None:
    mine, exact = parameters(), parameters()
    held = mine[0]
    flatten_parameters(mine, grads=grads)
    optimizer, other = ours(mine, lr=0.01, **given, max_norm=1.0), theirs(ours, exact, given)
    for step in range(3):
        give_gradients(exact, step)
        if grads:
            optimizer.zero_grad(set_to_none=False)
            for p, q in zip(mine, exact, strict=True):
                assert p.grad is not None
                p.grad.add_(q.grad)  # type: ignore[arg-type]
        else:
            give_gradients(mine, step)
        torch.nn.utils.clip_grad_norm_(exact, 1.0)
        other.step()
        optimizer.step()

    assert held is mine[0]
    assert len({p.untyped_storage().data_ptr() for p in mine}) == 1
    assert_alike(mine, exact)


def test_memory_between_parameters_is_nobodys_to_change() -> None:
    memory = torch.ones(64)
    params = [memory[i : i + 10].requires_grad_() for i in (0, 16, 32, 48)]
    optimizer = SGD(params, lr=0.5, weight_decay=0.5)
    for p in params:
        p.grad = torch.ones(10)
    optimizer.step()

    assert int((memory == 1).sum()) == 24
    assert all(p.tolist() == [0.25] * 10 for p in params)


def test_parameters_that_leave_their_block_are_still_the_ones_that_move() -> None:
    mine, exact = parameters(), parameters()
    flatten_parameters(mine)
    optimizer, other = AdamW(mine, lr=0.01), theirs(AdamW, exact, {})
    for step in range(3):
        for params, one in ((mine, optimizer), (exact, other)):
            give_gradients(params, step)
            one.step()
        mine[2].data = mine[2].data.clone()

    assert_alike(mine, exact)


def test_a_model_of_another_dtype_than_its_state_is_refused_by_name() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
    flatten_parameters(layers.parameters())
    optimizer = AdamW(layers.parameters())
    give_gradients(list(layers.parameters()), 0)
    optimizer.step()
    layers.double()
    give_gradients(list(layers.parameters()), 1)
    with pytest.raises(ValueError, match=r"exp_avg\[0\]: expected float64 \(3, 3\) on cpu, got float32"):
        optimizer.step()


def test_parameters_that_cannot_share_a_block_are_named_and_stay() -> None:
    params = [torch.ones(2), torch.ones(2, dtype=torch.float64), torch.ones(4)[::2]]
    before = [p.data_ptr() for p in params]
    with pytest.raises(
        ValueError, match=r"params\[1\]: expected torch.float32 on cpu, got torch.float64 on cpu\n.*\[2\]"
    ):
        flatten_parameters(params)

    assert [p.data_ptr() for p in params] == before


# What is on the device.


def test_a_learning_rate_on_the_device_is_followed_without_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("SHAPED_KERNELS", "triton")
    p, lr = torch.ones(2, requires_grad=True), torch.tensor(0.5)
    optimizer = SGD([p], lr=lr)
    p.grad = torch.ones(2)
    optimizer.step()
    lr.fill_(0.25)
    monkeypatch.setattr(Tensor, "item", lambda _: pytest.fail("read by the host"))
    optimizer.step()

    assert p.detach().numpy().tolist() == [0.25, 0.25]


def test_hyper_parameters_reach_the_device_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("SHAPED_KERNELS", "triton")
    p = torch.ones(2, requires_grad=True)
    optimizer = AdamW([p], lr=0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    (lists,) = {id(u.lists): u.lists for plan in optimizer._plans.values() for u in plan.updates}.values()
    (plan,) = [kept for kept in lists.kept.values() if kept is not None]
    memory = plan.hypers.data_ptr()
    optimizer.set_lr(0.125)
    optimizer.upload()

    assert plan.hypers[2].item() == 0.125
    assert plan.hypers.data_ptr() == memory  # where a captured launch reads it


# In a trainer.


@pytest.mark.parametrize("given", [{"store": "stochastic"}, {"store": "split"}, {"moments": "8bit"}])
def test_a_trainer_refuses_to_compile_what_is_stored_beside_the_rule(given: dict[str, Any]) -> None:
    from shaped import ExecutorError, ScalarTrainer
    from tests.models import batch, mlp, mlp_loss

    params = mlp()
    compiled = ScalarTrainer(mlp_loss, params, backend="compiled", optimizer=AdamW(list(params), **given))
    with pytest.raises(ExecutorError, match="eager"):
        compiled.train_step(*batch())


@pytest.mark.parametrize("given", [{"max_norm": 1e-3}, {}])
def test_a_trainer_leaves_the_norm_where_one_was_taken(given: dict[str, Any]) -> None:
    from shaped import ScalarTrainer
    from tests.models import batch, mlp, mlp_loss

    params = mlp()
    optimizer = AdamW(list(params), lr=0.1, **given)
    ScalarTrainer(mlp_loss, params, optimizer=optimizer).train_step(*batch())

    assert (optimizer.grad_norm is not None) == bool(given)
