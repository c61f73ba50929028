"""Running statistics are state: both backends carry them as plain torch does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import NonFiniteError, ParamList, ScalarTrainer, init

pytestmark = pytest.mark.usefixtures("interpreted")

BUFFERS = ("mean", "var")


class Net(ParamList):
    w: Float[Tensor, "features hidden"]
    scale: Float[Tensor, " hidden"] = init.ones()
    shift: Float[Tensor, " hidden"] = init.zeros()
    v: Float[Tensor, " hidden"]
    mean: Float[Tensor, " hidden"] = init.zeros()
    var: Float[Tensor, " hidden"] = init.ones()


def loss(p: Net, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.batch_norm(x @ p.w, p.mean, p.var, p.scale, p.shift, training=True)
    return (torch.tanh(h) @ p.v - y).square().mean()


def net() -> Net:
    return Net.init(features=3, hidden=4, seed=0, dtype=torch.float64, frozen=BUFFERS)


def batch(seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(size, generator=generator, dtype=torch.float64)


class Plain:
    """The oracle: the same loss under autograd, torch's batch norm writing its statistics, and torch's AdamW."""

    def __init__(self, params: Net) -> None:
        self.params = params.values()
        self.trained = [p for p in self.params if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.1)

    def step(self, *batches: tuple[Tensor, Tensor]) -> Tensor:
        self.optimizer.zero_grad()
        losses = [loss(self.params, x, y) for x, y in batches]
        (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        return losses[-1].detach()


@pytest.fixture(scope="module", params=["eager", "compiled"])
def made(request: pytest.FixtureRequest) -> tuple[ScalarTrainer, dict[str, Any]]:
    """One trainer for all tests of a backend, so that each kind of pass compiles once; and its state at the start."""
    trainer = ScalarTrainer(loss, net(), backend=request.param, nonfinite="skip")
    return trainer, trainer.state_dict()


@pytest.fixture
def trainer(made: tuple[ScalarTrainer, dict[str, Any]]) -> ScalarTrainer:
    made[0].load_state_dict(made[1])
    return made[0]


def assert_same(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(list(mine), list(theirs), rtol=1e-10, atol=1e-12)


def test_steps_move_parameters_and_running_statistics_as_plain_torch_does(trainer: ScalarTrainer):
    plain = Plain(net())
    for seed in range(4):
        x, y = batch(seed)

        assert_same([trainer.adamw_step(x, y, lr=0.1)], [plain.step((x, y))])
        assert_same(trainer.params, plain.params)
    assert not torch.equal(trainer.params["mean"], torch.zeros(4, dtype=torch.float64))
    assert trainer.proof.writes == BUFFERS


def test_a_pass_without_an_update_leaves_the_statistics(trainer: ScalarTrainer):
    before = trainer.get_params()
    _, gradients = trainer.loss_and_backward(*batch(0))

    assert_same(trainer.params, before)
    assert not gradients["mean"].any()


def test_a_step_that_is_not_finite_leaves_the_statistics(trainer: ScalarTrainer):
    x, y = batch(0)
    trainer.adamw_step(x, y, lr=0.1)
    before = trainer.get_params()
    trainer.adamw_step(x, torch.where(y > 0, torch.nan, y), lr=0.1)

    assert trainer.skipped == 1
    assert_same(trainer.params, before)


def test_an_error_about_what_is_not_finite_leaves_the_statistics():
    trainer = ScalarTrainer(loss, net())
    before = trainer.get_params()
    x, y = batch(0)
    with pytest.raises(NonFiniteError):
        trainer.adamw_step(x * torch.inf, y, lr=0.1)

    assert_same(trainer.params, before)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_accumulating_moves_the_statistics_at_each_batch_and_the_parameters_at_the_last(backend: Any):
    params = net()
    plain = Plain(params)
    trainer = ScalarTrainer(loss, params, backend=backend, accumulate=2)
    before = params.values()
    trainer.adamw_step(*batch(0), lr=0.1)
    halfway = trainer.get_params()
    trainer.adamw_step(*batch(1), lr=0.1)
    plain.step(batch(0), batch(1))

    assert_same([halfway["w"], halfway["v"]], [before.w, before.v])
    assert not torch.equal(halfway["mean"], before.mean)
    assert_same(trainer.params, plain.params)


def test_a_saved_state_holds_the_statistics_and_another_trainer_goes_on_with_them(trainer: ScalarTrainer):
    trainer.adamw_step(*batch(0), lr=0.1)
    state = trainer.state_dict()
    trainer.adamw_step(*batch(1), lr=0.1)
    other = Net.init(features=3, hidden=4, seed=5, dtype=torch.float64, frozen=BUFFERS)
    resumed = ScalarTrainer(loss, other)
    resumed.load_state_dict(state)

    assert_same([state["params"][name] for name in BUFFERS], [other.mean, other.var])
    resumed.adamw_step(*batch(1), lr=0.1)
    assert_same(resumed.params, trainer.params)
    if trainer.backend == "eager":
        assert all(torch.equal(a, b) for a, b in zip(resumed.params, trainer.params, strict=True))


def test_comparing_backends_leaves_the_statistics(trainer: ScalarTrainer):
    before = trainer.get_params()

    assert trainer.compare_backends(*batch(0)).largest < 1e-10
    assert_same(trainer.params, before)


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)

    def forward(self, x: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 4"]:
        result: Tensor = self.norm(self.inner(x))
        return result


def over_module(model: Module, x: Float[Tensor, "batch 3"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (torch.tanh(model(x)).sum(1) - y).square().mean()


def test_a_module_s_batch_norm_is_trained_in_place_with_its_counter():
    torch.manual_seed(0)
    model, twin = Module(), Module()
    twin.load_state_dict(model.state_dict())
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    trainer = ScalarTrainer(over_module, model)
    for seed in range(3):
        x, y = batch(seed)
        plain.zero_grad()
        over_module(twin, x, y).backward()
        plain.step()
        trainer.step(x, y, lr=0.1)

    theirs = twin.state_dict()
    assert model.norm.num_batches_tracked == 3
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-12, msg=name)
