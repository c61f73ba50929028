"""What a user changes around a trainer between steps is followed, or refused by name; never half of it."""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from shaped import ExecutorError, ParamList, ProofError, ScalarTrainer, ShapeError, Unprovable
from shaped.backends.refusals import refuse_modes
from shaped.optim import SGD
from tests.models import batch, mlp, mlp_loss


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
        return self.norm(self.linear(x))


def net_loss(z: Float[Tensor, "batch 3"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(z, y)


X, Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_autocast_around_a_trainer_is_refused(backend):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"autocast=torch\.bfloat16"):
        trainer.step(*batch(), lr=0.1)

    assert trainer.steps == 0


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Doubling, Watched])
def test_a_mode_around_a_compiled_step_is_refused_by_its_name(mode):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    with mode(), pytest.raises(ExecutorError, match=f"`{mode.__name__}` is active around the step"):
        trainer.step(*batch(), lr=0.1)
    with torch.device("cpu"), FlopCounterMode(display=False):
        refuse_modes()

    assert trainer.steps == 0


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_another_default_dtype_than_at_the_proof_is_refused(backend):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match=r"was torch\.float32 when the loss was proved, and is torch\.float64 now"):
            trainer.step(*batch(), lr=0.1)
    finally:
        torch.set_default_dtype(torch.float32)

    assert trainer.steps == 0


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_parameters_that_an_optimizer_gets_later_are_refused_by_name(backend):
    params = mlp()
    optimizer = SGD(params, lr=0.1)
    trainer = ScalarTrainer(mlp_loss, params, backend=backend, optimizer=optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(
        ValueError, match=r"param_groups\[1\]\['params'\]\[0\], float32 \(2,\), is not a parameter here"
    ):
        trainer.train_step(*batch())

    assert trainer.steps == 0


@pytest.mark.usefixtures("interpreted")
def test_a_step_within_a_step_is_refused_and_the_inner_one_was_taken():
    params = mlp()
    twin = ScalarTrainer(mlp_loss, params.values())
    trainer = ScalarTrainer(mlp_loss, params, backend="compiled")
    trainer.executors.on_create(lambda executor: trainer.adamw_step(*batch(), lr=0.1))
    with pytest.raises(ValueError, match=r"a hook of executors\.on_create took a step within this one"):
        trainer.adamw_step(*batch(), lr=0.5)
    twin.adamw_step(*batch(), lr=0.1)

    torch.testing.assert_close(list(params), list(twin.params))
    assert trainer.steps == 1


def test_a_module_that_was_proved_in_eval_keeps_its_statistics_apart_in_train():
    net = Net().eval()
    trainer = ScalarTrainer(net_loss, net)
    net.train()
    trainer.forward(X, Y)
    trainer.backward(X, Y)

    assert torch.equal(net.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]
    trainer.step(X, Y, lr=0.1)
    assert not torch.equal(net.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


def test_a_replaced_layer_or_parameter_is_refused_by_name():
    for name, new in (("linear.weight", nn.Parameter(torch.zeros(3, 6))), ("linear", nn.Linear(6, 3))):
        net = Net()
        trainer = ScalarTrainer(net_loss, net)
        path, _, field = name.rpartition(".")
        setattr(net.get_submodule(path), field, new)
        with pytest.raises(ShapeError, match=f"replaced in the module: `{name}`"):
            trainer.step(X, Y, lr=0.1)


def test_a_buffer_that_is_assigned_anew_is_unprovable():
    class Averaged(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
            z = self.linear(x)
            self.mean = 0.9 * self.mean + 0.1 * z.detach().mean(0)
            return z

    with pytest.raises(Unprovable, match=r"assigns a new tensor to `mean`"):
        ScalarTrainer(net_loss, Averaged())


def test_a_proof_that_fails_leaves_a_module_as_it_was():
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.last: Tensor | None = None

        def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
            self.last = x
            return self.linear(x.T)

    net = Remembers()
    with pytest.raises(ProofError):
        ScalarTrainer(net_loss, net)

    assert net.last is None


def test_a_refused_pass_compiles_nothing():
    params = square()
    params.v.register_hook(lambda g: g.clamp(max=0))
    trainer = ScalarTrainer(square_loss, params, backend="compiled")
    with pytest.raises(ExecutorError, match="hook"):
        trainer.backward(torch.ones(3))

    assert len(trainer.executors) == 0


class Square(ParamList):
    w: Float[Tensor, "n n"]
    v: Float[Tensor, " n"]


def square_loss(p: Square, x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return (x * p.v).sum() + (x @ p.w).square().sum()


def square() -> Square:
    return Square.init(n=3, seed=0)


def test_a_compiled_step_follows_strides_flags_and_shared_memory_as_the_eager_one_does():
    found = []
    for backend in ("eager", "compiled"):
        params = square()
        optimizer = SGD(list(params), lr=0.1)
        trainer = ScalarTrainer(square_loss, params, backend=backend, optimizer=optimizer)  # type: ignore[arg-type]
        losses = [trainer.train_step(params.v.detach())]  # a batch that the step itself writes
        params.w.data = params.w.data.t()
        losses.append(trainer.train_step(torch.ones(3)))
        optimizer.param_groups[0]["maximize"] = True
        losses += [trainer.train_step(torch.ones(3)) for _ in range(2)]
        found.append([*losses, *params.values()])

    torch.testing.assert_close(found[0], found[1])


def test_the_compiled_step_refuses_hooks_on_gradients():
    params = square()
    params.v.register_hook(lambda g: g.clamp(max=0))
    trainer = ScalarTrainer(square_loss, params, backend="compiled")
    with pytest.raises(ExecutorError, match="`v` has a hook on its gradient"):
        trainer.step(torch.ones(3), lr=0.1)


def test_the_compiled_step_refuses_a_random_operation_that_the_backward_pass_would_draw_anew():
    def loss(p: Square, x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        h = checkpoint(lambda w: F.dropout(x @ w, 0.5).square(), p.w, use_reentrant=False)
        return h.sum() + (p.v * x).sum()

    trainer = ScalarTrainer(loss, square(), backend="compiled")
    with pytest.raises(ExecutorError, match="the backward pass draws at random"):
        trainer.step(torch.ones(3), lr=0.1)


def test_a_first_step_in_inference_mode_leaves_a_trainer_that_goes_on():
    trainer = ScalarTrainer(square_loss, square(), backend="compiled")
    with torch.inference_mode():
        trainer.precompile()
    trainer.adamw_step(torch.ones(3), lr=0.1)

    assert trainer.steps == 1


def test_a_batch_without_samples_is_refused():
    trainer = ScalarTrainer(mlp_loss, mlp(), accumulate=2, samples="batch-1")
    x, y = batch()
    with pytest.raises(ShapeError, match="has 0 samples"):
        trainer.step(x[:1], y[:1], lr=0.1)
