"""A new executor is held against eager once, at its first batch."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from shaped import ExecutorError, ParamList, ScalarTrainer
from shaped.backends.eager import Eager
from tests.models import batch, mlp, mlp_loss

pytestmark = pytest.mark.usefixtures("interpreted")


class Wrong(Interpreter):
    """Runs a graph with one operation that gives something else, as a compiler's wrong code does."""

    def __init__(self, graph: GraphModule, name: str, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(graph)
        self._name, self._change = name, change

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        return self._change(result) if str(n.target).startswith(f"aten.{self._name}.") else result


@pytest.fixture
def wrongly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have compiled graphs compute one operation wrongly."""

    def install(name: str, change: Callable[[Tensor], Tensor]) -> None:
        def interpreted(graph: GraphModule) -> Callable[[list[Any]], Any]:
            def run(arguments: list[Any]) -> Any:
                with torch.no_grad():
                    return Wrong(graph, name, change).run(*arguments)

            return run

        monkeypatch.setattr("shaped.backends.inductor._interpreted", interpreted)

    return install


class P(ParamList):
    w: Float[Tensor, "dim out"]
    b: Float[Tensor, " out"]


def curved(p: P, x: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    return torch.tanh(x @ p.w + p.b).exp().square().mean()


def everything(trainer: ScalarTrainer) -> str:
    return str(trainer.state_dict()) + str(torch.get_rng_state())


@pytest.mark.parametrize("mode", ["forward", "backward", "step", "adamw_step"])
@pytest.mark.parametrize("sizes", ["static", "dynamic"])
def test_compiled_code_that_is_wrong_is_an_error_that_names_the_first_operation_and_nothing_has_changed(
    wrongly, mode, sizes
):
    wrongly("exp", lambda t: t * 1.001)
    trainer = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0), backend="compiled", sizes=sizes)
    before = everything(trainer)
    options = {"lr": 0.0} if "step" in mode else {}  # a schedule may start at 0
    for _ in range(2):
        with pytest.raises(ExecutorError, match=r"The first operation that parts is exp of \[\d, 4\]\. Nothing has"):
            getattr(trainer, mode)(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), **options)

    assert everything(trainer) == before


def test_the_message_says_what_differs_and_by_how_much(wrongly):
    wrongly("exp", lambda t: t * 1.001)
    trainer = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0), backend="compiled")
    with pytest.raises(ExecutorError) as caught:
        trainer.forward(torch.ones(2, 3))

    assert str(caught.value) == (
        "`forward` at dim = 3, out = 4, n = 2: compiled code is not the program: the loss differs from eager, the "
        "first by 2.0e-03 of its largest entry. The first operation that parts is exp of [2, 4]. Nothing has changed. "
        "backend='eager' runs it, and backend='auto' goes on with it by itself; verify=False takes compiled code as "
        "it is"
    )


def test_a_gradient_that_is_wrong_is_found_where_the_loss_is_right(wrongly):
    wrongly("sub", lambda t: t * 1.01)  # what the derivative of tanh is taken apart to
    trainer = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0), backend="compiled")
    trainer.forward(torch.ones(2, 3))
    for step in (trainer.step, trainer.adam_step):
        with pytest.raises(ExecutorError, match="tanh_backward"):
            step(torch.ones(2, 3), lr=1e-3)


def test_auto_goes_on_eagerly_where_compiled_code_is_wrong(wrongly, monkeypatch):
    monkeypatch.setattr("shaped.backends.auto.PATIENCE", 0.0)
    wrongly("exp", lambda t: t * 1.001)
    trainer = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0), backend="auto")
    eager = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0))
    with pytest.warns(RuntimeWarning, match="goes on with the eager backend: .* compiled code is not the program"):
        trainer.step(torch.ones(2, 3), lr=0.1)
    eager.step(torch.ones(2, 3), lr=0.1)

    assert trainer.backend == "eager"
    assert all(map(torch.equal, trainer.params, eager.params))


def test_without_verifying_compiled_code_is_taken_as_it_is(wrongly):
    wrongly("exp", lambda t: t * 1.001)
    trainer = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0), backend="compiled", verify=False)
    trainer.step(torch.ones(2, 3), lr=0.1)

    assert trainer.steps == 1


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    passes: list[int] = []
    theirs = Eager.loss_and_backward

    def counting(self: Eager, inputs: Any) -> Any:
        passes.append(1)
        return theirs(self, inputs)

    monkeypatch.setattr(Eager, "loss_and_backward", counting)
    yield passes


def test_an_executor_costs_one_eager_pass_and_a_step_none(monkeypatch):
    with counted(monkeypatch) as passes:
        trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
        trainer.precompile(batch=4, method="adamw_step")

        assert len(passes) == 0  # zeros are no batch
        for size in (4, 4, 3, 3, 5, 6):
            trainer.adamw_step(*batch(size), lr=0.1)

        assert len(passes) == len(trainer.executors) == 2


def test_a_batch_that_is_not_finite_tells_nothing_and_the_next_is_held(wrongly):
    wrongly("exp", lambda t: t * 1.001)
    trainer = ScalarTrainer(curved, P.init(dim=3, out=4, seed=0), backend="compiled", nonfinite="skip")
    trainer.step(torch.full((2, 3), float("nan")), lr=0.1)
    with pytest.raises(ExecutorError, match="compiled code is not the program"):
        trainer.step(torch.ones(2, 3), lr=0.1)

    assert trainer.skipped == 1


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
        return F.relu(self.norm(self.layer(x)))


def of_module(y: Float[Tensor, "n 4"]) -> Float[Tensor, ""]:
    return y.square().mean()


def test_statistics_that_are_written_are_held_too(wrongly):
    torch.manual_seed(0)
    ScalarTrainer(of_module, Normed(), backend="compiled").adamw_step(torch.randn(5, 3), lr=0.1)
    wrongly("copy_", lambda t: t.add_(1) if t.shape == (4,) else t)
    trainer = ScalarTrainer(of_module, Normed(), backend="compiled")
    with pytest.raises(ExecutorError, match=r"norm\..* differ from eager"):
        trainer.adamw_step(torch.randn(5, 3), lr=0.1)


def test_a_gradient_that_is_zero_up_to_rounding_is_no_difference():
    """The bias before a norm: Adam makes a whole step of its sign, which is rounding's."""
    torch.manual_seed(1)
    trainer = ScalarTrainer(of_module, Normed(), backend="compiled")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            trainer.adam_step(torch.randn(6, 3), lr=0.1, eps=1e-12)

    assert trainer.steps == 3
