"""Metrics: means, moving averages, torchmetrics' objects, and the evaluation of a loss."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer, ShapedError, ShapeError
from shaped.data import DataError
from shaped.losses import mse
from shaped.metrics import Mean, MovingAverage, Scored, accuracy, evaluate
from shaped.workflow import MetricComputer
from tests.models import batch, mlp, mlp_loss

numbers = st.floats(-1e6, 1e6)


class Weight(ParamList):
    w: Float[Tensor, ""]


@given(st.lists(st.tuples(numbers, st.integers(1, 100)), min_size=1))
def test_the_mean_is_weighted(pairs: list[tuple[float, int]]) -> None:
    mean = Mean()
    for value, weight in pairs:
        mean.update(torch.tensor(value, dtype=torch.float64), weight)
    expected = sum(v * w for v, w in pairs) / sum(w for _, w in pairs)

    assert mean.compute() == pytest.approx(expected, abs=1e-6)
    mean.update(math.nan, 0)
    assert mean.compute() == pytest.approx(expected, abs=1e-6)
    mean.reset()
    assert math.isnan(mean.compute())


@given(st.lists(numbers, min_size=1, max_size=10))
def test_a_moving_average_begins_as_a_plain_mean(values: list[float]) -> None:
    average = MovingAverage(0.1)
    for value in values:
        average.update(value)

    assert average.compute() == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_a_moving_average_weighs_the_newest_number_and_can_be_saved() -> None:
    average, other = MovingAverage(0.5), MovingAverage(0.5)
    for value in (0.0, 0.0, 8.0):
        average.update(value)
    other.load_state_dict(average.state_dict())
    other.update(0.0)

    assert average.compute() == 4.0
    assert other.compute() == 2.0
    with pytest.raises(ValueError, match="weight is 0; it is a number above 0 and at most 1"):
        MovingAverage(0)


def test_accuracy_counts_rows_and_leaves_out_what_is_masked() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [2.0, 1.0]]])
    target = torch.tensor([[0, 1], [1, 1]])

    assert accuracy(logits, target) == 0.5
    assert accuracy(logits, target, mask=torch.tensor([[True, True], [False, True]])) == pytest.approx(2 / 3)
    with pytest.raises(ShapeError, match=r"accuracy: logits \[2, 2, 2\] against target \[4\]; classes are the last"):
        accuracy(logits, target.flatten())


@pytest.fixture(scope="module")
def trainer() -> ScalarTrainer:
    return ScalarTrainer(mlp_loss, mlp())


def test_the_loss_of_an_evaluation_is_weighted_by_batch_size(trainer: ScalarTrainer) -> None:
    x, y = batch(9)
    parts = [(x[:6], y[:6]), (x[6:], y[6:])]
    found = evaluate(trainer, parts, {"size": lambda p, x, y: len(x)})

    assert found["loss"] == pytest.approx(trainer.forward(x, y).item(), rel=1e-6)
    assert found["size"] == pytest.approx((6 * 6 + 3 * 3) / 9)


def test_torchmetrics_objects_see_predictions(trainer: ScalarTrainer) -> None:
    from torchmetrics.classification import MulticlassAccuracy

    metric = MulticlassAccuracy(num_classes=3, average="micro")

    def predict(p: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2, y

    data = [batch(5, seed=0), batch(3, seed=1)]
    expected = accuracy(*(torch.cat(parts) for parts in zip(*(predict(trainer.params, *b) for b in data), strict=True)))
    for _ in range(2):  # the second evaluation begins anew
        assert evaluate(trainer, data, {"accuracy": Scored(metric, predict)})["accuracy"] == pytest.approx(expected)

    with pytest.raises(
        ShapedError, match="metric `accuracy` is a MulticlassAccuracy, which is updated with predictions"
    ):
        evaluate(trainer, data, {"accuracy": metric})


def test_what_cannot_be_evaluated_is_named(trainer: ScalarTrainer) -> None:
    with pytest.raises(DataError, match="the data gave no batch in epoch 0"):
        evaluate(trainer, [])
    with pytest.raises(ShapedError, match="a metric is named `loss`, which evaluation gives already"):
        evaluate(trainer, [batch()], {"loss": lambda *a: 0.0})
    with pytest.raises(ShapedError, match="metric `x` is a int: pass a function"):
        evaluate(trainer, [batch()], {"x": 3})  # type: ignore[dict-item]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(6, 1), nn.Dropout(0.5)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 1"]:
        return self.drop(self.first(x))


def masked_square(p: Weight, x: Float[Tensor, "batch seq"], keep: Bool[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return mse(x * p.w, torch.zeros_like(x), mask=keep)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_loss_and_metrics_are_means_over_what_the_trainer_counts(backend: str) -> None:
    trainer = ScalarTrainer(masked_square, Weight(torch.ones(())), backend=backend)  # type: ignore[arg-type]
    x = torch.arange(12.0).reshape(3, 4)
    keep = torch.tensor([[True, True, True, True], [True, False, False, False], [False] * 4])
    rows = [(x[i : i + 1], keep[i : i + 1]) for i in range(3)]
    metrics = {"mean": lambda p, x, keep: x[keep].mean()}  # NaN of the last row
    whole, parts = evaluate(trainer, [(x, keep)], metrics), evaluate(trainer, rows, metrics)

    assert whole == pytest.approx({"loss": (0 + 1 + 4 + 9 + 16) / 5, "mean": 2.0})
    assert parts == pytest.approx(whole)
    assert math.isnan(evaluate(trainer, rows[2:])["loss"])


def test_a_mean_over_tokens_is_that_of_the_expression() -> None:
    trainer = ScalarTrainer(plain_square, Weight(torch.ones(())), samples="batch*seq")
    x = torch.arange(14.0)

    found = evaluate(trainer, [(x[:12].reshape(2, 6),), (x[12:].reshape(2, 1),)])
    assert found["loss"] == pytest.approx(x.square().mean().item())


def plain_square(p: Weight, x: Float[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return (x * p.w).square().mean()


def test_metrics_of_a_module_are_given_the_module() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 1"]:
            return super().forward(x)

    def loss(out: Float[Tensor, "batch 1"], y: Float[Tensor, "batch 1"]) -> Float[Tensor, ""]:
        return mse(out, y)

    net = Net(nn.Linear(3, 1), nn.Dropout(0.5))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    metrics: dict[str, Any] = {"mae": lambda model, x, y: (model(x) - y).abs().mean()}
    metrics |= MetricComputer("mse").scored(lambda model, x: model(x))
    found = evaluate(ScalarTrainer(loss, net), [(x, y)], metrics)

    error = net.eval()(x) - y
    assert found == pytest.approx({"mae": error.abs().mean().item(), **dict.fromkeys(("loss", "mse"), error.square().mean().item())})  # fmt: skip  # noqa: E501


def test_a_module_is_evaluated_in_eval_mode_and_then_trains_on() -> None:
    def loss(net: Net, x: Float[Tensor, "batch 6"]) -> Float[Tensor, ""]:
        return net(x).square().mean()

    net, x = Net(), batch()[0]
    net.first.eval()  # its own choice, which an evaluation leaves
    trainer = ScalarTrainer(loss, net)
    with torch.no_grad():
        expected = net.first(x).square().mean().item()

    assert evaluate(trainer, [(x,)])["loss"] == pytest.approx(expected)
    assert (net.training, net.drop.training, net.first.training) == (True, True, False)
