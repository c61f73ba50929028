"""Metrics by name against scikit-learn's, whole and batch by batch."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torch import Tensor

from shaped import ShapedError, ShapeError
from shaped.workflow import MetricComputer
from shaped.workflow.registry import metrics as registry
from tests.workflow.loops import VALIDATION, fresh_loop

G = torch.Generator().manual_seed(0)
LOGITS, CLASSES = torch.randn(60, 3, generator=G), torch.randint(0, 3, (60,), generator=G)
LOGIT, YES = torch.randn(60, generator=G) / 4, torch.randint(0, 2, (60,), generator=G)
GUESS, TRUTH = torch.randn(60, generator=G), torch.randn(60, generator=G)


def macro(score: Any) -> Any:
    return lambda p, t: score(t, p.argmax(1), average="macro", zero_division=0)


OF_CLASSES: dict[str, Any] = {
    "accuracy": lambda p, t: sk.accuracy_score(t, p.argmax(1)),
    "f1": macro(sk.f1_score),
    "precision": macro(sk.precision_score),
    "recall": macro(sk.recall_score),
    "auroc": lambda p, t: sk.roc_auc_score(t, p.softmax(1), multi_class="ovr"),
    "average_precision": lambda p, t: sk.average_precision_score(np.eye(3)[t], p.softmax(1)),
    "mcc": lambda p, t: sk.matthews_corrcoef(t, p.argmax(1)),
    "perplexity": lambda p, t: math.exp(sk.log_loss(t, p.double().softmax(1))),
}
OF_NUMBERS: dict[str, Any] = {
    "mae": sk.mean_absolute_error,
    "mape": lambda p, t: sk.mean_absolute_percentage_error(t, p),
    "mse": sk.mean_squared_error,
    "rmse": sk.root_mean_squared_error,
    "r2": lambda p, t: sk.r2_score(t, p),
    "pearson": lambda p, t: np.corrcoef(p, t)[0, 1],
    "spearman": lambda p, t: np.corrcoef(p.argsort().argsort(), t.argsort().argsort())[0, 1],
}


def test_metrics_of_classes_are_scikit_learns() -> None:
    found = MetricComputer(*OF_CLASSES).compute(LOGITS, CLASSES)

    expected = {name: score(LOGITS.double(), CLASSES) for name, score in OF_CLASSES.items()}
    assert found == pytest.approx(expected, rel=1e-13)


def test_two_classes_may_have_one_logit_and_logits_are_never_taken_for_probabilities() -> None:
    computer = MetricComputer("accuracy", "f1", "auroc")
    small = LOGIT.abs() * (
        1 if LOGIT.abs().max() < 1 else 0.1
    )  # all in [0, 1]: torchmetrics alone would not squash them
    found, two = computer.compute(small, YES), computer.compute(torch.stack([-LOGIT, LOGIT], 1), YES)

    assert found["accuracy"] == pytest.approx(YES.float().mean().item())  # each is above 0: all are "yes"
    assert two["accuracy"] == pytest.approx(((LOGIT > 0).long() == YES).float().mean().item())
    assert two["f1"] == pytest.approx(sk.f1_score(YES, LOGIT > 0))
    assert two["auroc"] == pytest.approx(sk.roc_auc_score(YES, LOGIT))


def test_metrics_of_numbers_are_scikit_learns() -> None:
    found = MetricComputer(*OF_NUMBERS).compute(GUESS, TRUTH)

    expected = {name: float(score(GUESS.double(), TRUTH.double())) for name, score in OF_NUMBERS.items()}
    assert found == pytest.approx(expected, rel=1e-13)


def test_every_metric_by_name_is_compared_here() -> None:
    assert sorted(registry) == sorted([*OF_CLASSES, *OF_NUMBERS])


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"predictions \[60, 3\] against targets \[3\]: expected"):
        MetricComputer("accuracy").compute(LOGITS, CLASSES[:3])
    with pytest.raises(ShapeError, match=r"mse: \[60, 1\] against \[60\]"):
        MetricComputer("mse").compute(GUESS[:, None], TRUTH)


def test_your_own_metrics_are_functions_of_everything_or_objects() -> None:
    computer = MetricComputer("mse", spread=lambda p, t: (p - t).std(), middle=torchmetrics.MeanAbsoluteError())
    computer.register("largest", torchmetrics.MaxMetric)
    computer.unregister("mse")

    assert computer.available == ("spread", "middle", "largest")
    computer.unregister("largest")
    assert computer.compute(GUESS, TRUTH)["spread"] == pytest.approx((GUESS - TRUTH).std().item())
    for act, said in (
        (lambda: computer.register("spread", print), "there is a metric named `spread` already"),
        (lambda: computer.register("loss", print), "there is a metric named `loss` already"),
        (lambda: computer.register("x", 3), "metric `x` is a int: pass"),
        (lambda: computer.unregister("y"), "no metric `y`; there are spread, middle"),
        (lambda: MetricComputer("acuracy"), "did you mean `accuracy`"),
    ):
        with pytest.raises(ShapedError, match=said):
            act()


def test_in_a_loop_each_batch_is_predicted_once_and_batches_do_not_matter() -> None:
    calls: list[int] = []

    def predict(p: Any, x: Tensor) -> Tensor:
        calls.append(len(x))
        found: Tensor = torch.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2
        return found

    ((x, y),) = VALIDATION
    parts = [(x[:7], y[:7]), (x[7:], y[7:])]
    computer = MetricComputer("f1", "auroc", correlation=lambda p, t: np.corrcoef(p[:, 0], t)[0, 1])
    loop = fresh_loop(metrics=computer.scored(predict))
    found = loop.evaluate(parts)
    whole = computer.compute(predict(loop.trainer.params, x).detach(), y)

    assert calls[:-1] == [7, 33]
    assert {name: found[f"validation/{name}"] for name in whole} == pytest.approx(whole, rel=1e-5)
    for p in loop.trainer.params:
        p.data.mul_(-1)
    assert loop.evaluate(parts)["validation/auroc"] != found["validation/auroc"]
    assert calls[3:] == [7, 33]


def test_metrics_by_name_need_no_other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    computer = MetricComputer(*OF_CLASSES, right=lambda p, t: (p.argmax(1) == t).double().mean())

    found = computer.compute(LOGITS, CLASSES)
    assert found["right"] == found["accuracy"]


def test_what_is_nan_is_no_score_and_what_is_no_class_is_refused() -> None:
    logits = LOGITS.clone()
    logits[3, 0] = float("nan")
    assert math.isnan(MetricComputer("accuracy").compute(logits, CLASSES)["accuracy"])
    assert math.isnan(MetricComputer("mae").compute(GUESS / 0, GUESS * float("nan"))["mae"])
    for targets in (CLASSES + 1, CLASSES - 100):
        with pytest.raises(ValueError, match="they are classes from 0 to 2"):
            MetricComputer("accuracy").compute(LOGITS, targets)
    with pytest.raises(ShapeError, match="or one logit for each target"):
        MetricComputer("accuracy").compute(LOGIT[:, None], YES)
    with pytest.raises(ShapeError, match="are tensors, not list and list"):
        MetricComputer("mae").compute([1.0], [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accuracy: targets are numbers between the classes"):
        MetricComputer("accuracy").compute(torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 0.7]))


def test_a_batch_without_examples_counts_for_nothing() -> None:
    scored = MetricComputer("accuracy").scored(lambda params, x: x)["accuracy"]
    for predictions, targets in ((torch.zeros(0, 3), torch.zeros(0).long()), (torch.eye(3), torch.tensor([0, 1, 0]))):
        scored.add(None, (predictions, targets), len(targets))

    assert scored.compute() == pytest.approx(2 / 3)
