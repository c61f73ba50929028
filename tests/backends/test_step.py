"""What is fused into a step agrees between the backends, and with plain torch."""

import copy
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ExecutorError, NonFiniteError, ParamList, ScalarTrainer, SignatureError
from shaped.backends.step import TrainStep
from shaped.optim import EMA, SGD, AdamW
from tests.models import MLP, batch, mlp, mlp_loss

pytestmark = pytest.mark.usefixtures("interpreted")
slow = pytest.mark.slow
both = pytest.mark.parametrize("backend", ["eager", "compiled"])
# Where tests/trainer has the eager backend's side of it already.
compiled_first = pytest.mark.parametrize("backend", [pytest.param("eager", marks=slow), "compiled"])


def doubles(size: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    return batch(size, seed, torch.float64)


def close(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(list(a), list(b), rtol=tolerance, atol=tolerance)


def poisoned(size: int = 5) -> tuple[Tensor, Tensor]:
    x, y = doubles(size)
    return x * torch.nan, y


# -- accumulation ------------------------------------------------------------------------------------------------------


@both
def test_accumulating_unequal_batches_is_the_step_of_their_union(backend):
    params = mlp(dtype=torch.float64)
    twin = params.values()
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, accumulate=3, max_norm=0.1)
    oracle = torch.optim.AdamW(list(twin), lr=0.01)
    for seed in range(2):
        x, y = doubles(9, seed)
        for part in (slice(0, 4), slice(4, 8), slice(8, 9)):
            trainer.adamw_step(x[part], y[part], lr=0.01)
        oracle.zero_grad()
        mlp_loss(twin, x, y).backward()
        torch.nn.utils.clip_grad_norm_(list(twin), 0.1)
        oracle.step()

    close(params, twin, 1e-11)
    assert trainer.steps == 2


class Table(ParamList):
    w: Float[Tensor, " width"]


def per_token(p: Table, x: Float[Tensor, "batch seq width"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean()


@compiled_first
def test_samples_may_be_an_expression_over_dimensions(backend):
    params = Table(torch.ones(3, dtype=torch.float64))
    trainer = ScalarTrainer(per_token, params, backend=backend, accumulate=2, samples="batch*seq")
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = trainer.backward(x).w
    trainer.step(x[:, :4], lr=1.0)
    trainer.step(x[:, 4:], lr=1.0)

    close(params.w, 1 - gradient)


def test_samples_over_an_unknown_dimension_are_refused():
    with pytest.raises(SignatureError, match="`tokens` is no dimension of the inputs"):
        ScalarTrainer(per_token, Table(torch.ones(3)), samples="batch*tokens")


@both
def test_a_batch_that_is_not_finite_is_left_out_of_the_mean(backend):
    params = mlp(dtype=torch.float64)
    twin = ScalarTrainer(mlp_loss, params.values())
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, accumulate=2, nonfinite="skip")
    trainer.step(*poisoned(), lr=0.1)
    trainer.step(*doubles(3), lr=0.1)
    twin.step(*doubles(3), lr=0.1)

    close(params, twin.params)
    assert (trainer.steps, trainer.skipped) == (1, 1)
    trainer.step(*poisoned(), lr=0.1)
    trainer.step(*poisoned(), lr=0.1)
    close(params, twin.params)
    assert (trainer.steps, trainer.skipped) == (1, 3)


@compiled_first
def test_an_error_in_the_last_batch_leaves_those_that_wait(backend):
    trainer = ScalarTrainer(mlp_loss, mlp(dtype=torch.float64), backend=backend, accumulate=2)
    twin = ScalarTrainer(mlp_loss, trainer.get_params(), backend=backend, accumulate=2)
    for each in (trainer, twin):
        each.step(*doubles(4), lr=0.1)
    with pytest.raises(NonFiniteError):
        trainer.step(*poisoned(), lr=0.1)
    for each in (trainer, twin):
        each.step(*doubles(2), lr=0.1)

    close(trainer.params, twin.params)
    assert trainer.steps == 1


@pytest.mark.parametrize(("first", "second"), [("eager", "compiled"), pytest.param("compiled", "eager", marks=slow)])
def test_gradients_that_wait_are_taken_over_by_the_other_backend(first, second):
    params = mlp(dtype=torch.float64)
    plain = ScalarTrainer(mlp_loss, params.values(), accumulate=2)
    trainer = ScalarTrainer(mlp_loss, params, backend=first, accumulate=2)
    trainer.step(*doubles(4), lr=0.1)
    trainer.with_backend(second).step(*doubles(2), lr=0.1)
    plain.step(*doubles(4), lr=0.1)
    plain.step(*doubles(2), lr=0.1)

    close(params, plain.params)


# -- what is not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["step", pytest.param("adam_step", marks=slow), "adamw_step"])
def test_a_skipped_step_is_counted_where_it_was_decided_and_changes_no_bit(path):
    trainer = ScalarTrainer(mlp_loss, mlp(dtype=torch.float64), backend="compiled", nonfinite="skip")
    step = getattr(trainer, path)
    step(*doubles(), lr=0.01)
    before = copy.deepcopy(trainer.state_dict())
    step(*poisoned(), lr=0.01)
    after = trainer.state_dict()

    assert (after.pop("steps"), after.pop("skipped")) == (before.pop("steps"), 1)
    assert str(after) == str({k: v for k, v in before.items() if k != "skipped"})


def test_a_compiled_step_that_skips_never_asks_the_device(monkeypatch):
    monkeypatch.setattr(TrainStep, "asks", False)  # as on a GPU
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled", nonfinite="skip", max_norm=1.0)
    x, y = batch()
    trainer.adamw_step(x, y, lr=0.1)
    for name in ("item", "__bool__", "__int__", "__float__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda self, *a: pytest.fail("the host read a tensor"))
    trainer.adamw_step(x, y, lr=0.05)
    trainer.adamw_step(x * torch.inf, y, lr=0.05)
    trainer.adamw_step(x, y + 9, lr=0.05)  # a class that is not there
    monkeypatch.undo()

    assert (trainer.steps, trainer.skipped) == (2, 2)


@compiled_first
def test_momentum_starts_at_the_first_finite_gradient(backend):
    options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5}
    params = mlp(dtype=torch.float64)
    twin = params.values()
    trainer = ScalarTrainer(
        mlp_loss, params, backend=backend, nonfinite="skip", optimizer=SGD(params, lr=0.1, **options)
    )
    oracle = torch.optim.SGD(list(twin), lr=0.1, **options)
    trainer.train_step(*poisoned())
    for seed in range(3):
        trainer.train_step(*doubles(seed=seed))
        oracle.zero_grad()
        mlp_loss(twin, *doubles(seed=seed)).backward()
        oracle.step()

    close(params, twin)


def test_the_eager_step_can_leave_its_verdict_on_the_device_too():
    """What the eager backend does on a GPU with nonfinite="skip", here on the CPU."""
    for accumulate in (1, 2):
        params = mlp(dtype=torch.float64)
        told = ScalarTrainer(mlp_loss, params.values(), nonfinite="skip", accumulate=accumulate)
        quiet = ScalarTrainer(mlp_loss, params, nonfinite="skip", accumulate=accumulate, max_norm=9.0)
        quiet._shared.eager._quiet = True
        for inputs in (doubles(4), poisoned(), doubles(2), doubles(3)):
            for trainer in (told, quiet):
                trainer.adamw_step(*inputs, lr=0.01)

        close(told.params, quiet.params)
        assert (told.steps, told.skipped) == (quiet.steps, quiet.skipped)


# -- what optimizers fuse ----------------------------------------------------------------------------------------------

FUSED = [
    pytest.param({"max_norm": 0.05}, marks=slow),
    pytest.param({"ema_decay": 0.9}, marks=slow),
    {"skip_nonfinite": True, "zero_grads": True},
    {"max_norm": 0.05, "ema_decay": 0.5, "amsgrad": True},
]


@pytest.mark.parametrize("options", FUSED, ids=str)
def test_what_an_optimizer_fuses_around_its_rule_works_in_the_graph(options):
    runs = {}
    for backend in ("eager", "compiled"):
        params = mlp(dtype=torch.float64)
        optimizer = AdamW(params, lr=0.01, **options)
        trainer = ScalarTrainer(mlp_loss, params, backend=backend, optimizer=optimizer)  # type: ignore[arg-type]
        for seed in range(4):
            trainer.train_step(*doubles(seed=seed))
        averages = [entry["ema"] for entry in optimizer.state.values() if "ema" in entry]
        runs[backend] = [*params, *averages, *([optimizer.grad_norm] if optimizer.grad_norm is not None else [])]

    assert len(runs["eager"]) == len(runs["compiled"])
    for mine, theirs in zip(runs["eager"], runs["compiled"], strict=True):
        # The kernels hand torch's operators their factor in float32.
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9, check_dtype=False)


def test_moments_of_bfloat16_parameters_may_be_float32_in_the_graph():
    runs = []
    for backend in ("eager", "compiled"):
        params = mlp(dtype=torch.bfloat16)
        optimizer = AdamW(params, lr=0.1, moments=torch.float32, ema_decay=0.9)
        trainer = ScalarTrainer(mlp_loss, params, backend=backend, optimizer=optimizer)  # type: ignore[arg-type]
        trainer.train_step(*batch(dtype=torch.bfloat16))
        entry = optimizer.state[params.w1]
        runs.append([params.w1.detach().float(), entry["exp_avg"], entry["ema"]])

    assert runs[1][1].dtype == torch.float32
    for mine, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-6, atol=2**-8)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"moments": "8bit"}, "moments='8bit'"), ({"store": "stochastic"}, "store='stochastic'")],
    ids=str,
)
def test_storage_that_only_the_kernels_know_is_refused_with_the_remedy(options, named):
    params = mlp(dtype=torch.bfloat16)
    trainer = ScalarTrainer(mlp_loss, params, backend="compiled", optimizer=AdamW(params, **options))
    before = [p.clone() for p in params]

    with pytest.raises(ExecutorError, match=f"{named}.*or use backend='eager'"):
        trainer.train_step(*batch(dtype=torch.bfloat16))
    assert all(map(torch.equal, before, params))


@compiled_first
def test_an_average_from_outside_follows_both_backends(backend):
    params = mlp(dtype=torch.float64)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend)
    average = EMA(list(params), decay=0.5)
    average.update()
    expected = [p.detach().clone() for p in params]
    for _ in range(3):
        trainer.adamw_step(*doubles(), lr=0.1)
        average.update()
        expected = [0.5 * e + 0.5 * p.detach() for e, p in zip(expected, params, strict=True)]

    close(average.averages, expected)


def checkpointed(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = torch.utils.checkpoint.checkpoint(lambda x, w, b: torch.tanh(x @ w + b), x, p.w1, p.b1, use_reentrant=False)
    return torch.nn.functional.cross_entropy(h @ p.w2 + p.b2, y)


def unchecked(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return torch.nn.functional.cross_entropy(torch.tanh(x @ p.w1 + p.b1) @ p.w2 + p.b2, y)


@compiled_first
def test_activation_checkpointing_in_the_loss_works_and_changes_no_number(backend):
    params = mlp(dtype=torch.float64)
    trainer = ScalarTrainer(checkpointed, params, backend=backend)
    plain = ScalarTrainer(unchecked, params.values())
    for seed in range(3):
        close([trainer.adamw_step(*doubles(seed=seed), lr=0.1)], [plain.adamw_step(*doubles(seed=seed), lr=0.1)])

    close(trainer.params, plain.params)


class Scalar(ParamList):
    s: Float[Tensor, ""]


def itself(p: Scalar, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return p.s


@compiled_first
def test_a_loss_that_is_a_parameter_is_the_one_before_the_update(backend):
    trainer = ScalarTrainer(itself, Scalar(torch.tensor(2.0)), backend=backend)
    before = trainer.forward(torch.ones(3))
    value = trainer.step(torch.ones(3), lr=0.5)

    assert [t.item() for t in (before, value, trainer.params.s)] == [2.0, 2.0, 1.5]


# -- numbers without a leading bit -------------------------------------------------------------------------------------


def seen(p: Table, x: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean()


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_moment_that_has_become_subnormal_is_0_after_a_compiled_step(kind):
    """torch's steps keep it for ever: 0.9 of the least of them rounds to itself."""
    given = {"momentum": 0.9} if kind is SGD else {}
    x = torch.tensor([[1.0, 0.0, 2.0]])  # so the second entry has no gradient
    found = []
    for backend in ("compiled", "eager"):
        params = Table(torch.ones(3))
        optimizer = kind(params, lr=0.1, **given)
        trainer = ScalarTrainer(seen, params, optimizer=optimizer, backend=backend)
        trainer.train_step(x)
        (state,) = optimizer.state.values()
        moment = state["momentum_buffer" if kind is SGD else "exp_avg"]
        moment[1] = 1e-40
        for _ in range(3):
            trainer.train_step(x)
        found.append((params.w.detach().clone(), moment))
    (compiled, settled), (eager, kept) = found

    assert settled[1] == 0
    assert 0 < kept[1] < torch.finfo(torch.float32).tiny
    close([compiled, settled], [eager, kept], 1e-6)
