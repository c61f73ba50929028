"""Metrics of classes are scikit-learn's, where a class is absent, where logits are large, and batch by batch."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from shaped import ShapeError
from shaped.workflow import MetricComputer
from shaped.workflow.classes import Areas, Counts, Perplexity, log_odds
from shaped.workflow.metrics import Gathered

NAMES = ("accuracy", "precision", "recall", "f1", "mcc", "auroc", "average_precision")


def drawn(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (n,), generator=generator)


def theirs(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """scikit-learn's, with areas as means over the classes that occur."""
    guess, classes = logits.argmax(1), logits.shape[1]
    more: dict[str, Any] = {"zero_division": 0, "average": "binary" if classes == 2 else "macro"}
    odds = logits.softmax(1)
    places = [1] if classes == 2 else [k for k in range(classes) if bool((targets == k).any())]
    return {
        "accuracy": sk.accuracy_score(targets, guess),
        "precision": sk.precision_score(targets, guess, **more),
        "recall": sk.recall_score(targets, guess, **more),
        "f1": sk.f1_score(targets, guess, **more),
        "mcc": sk.matthews_corrcoef(targets, guess),
        "auroc": float(np.mean([sk.roc_auc_score(targets == k, odds[:, k]) for k in places])),
        "average_precision": float(np.mean([sk.average_precision_score(targets == k, odds[:, k]) for k in places])),
    }


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_they_are_scikit_learns(classes: int, seed: int) -> None:
    logits, targets = drawn(80, classes, seed)

    assert MetricComputer(*NAMES).compute(logits, targets) == pytest.approx(theirs(logits, targets), rel=1e-13)


def test_a_class_that_does_not_occur_has_no_part_in_a_mean() -> None:
    targets = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[5.0, 0, 0], [4.0, 1, 0], [0, 5.0, 0], [1, 4.0, 0]])

    assert MetricComputer(*NAMES).compute(logits, targets) == dict.fromkeys(NAMES, 1.0)
    logits, targets = drawn(60, 5, 0)
    targets[targets == 3] = 1
    assert MetricComputer(*NAMES).compute(logits, targets) == pytest.approx(theirs(logits, targets), rel=1e-13)


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
@pytest.mark.parametrize("logits", [torch.tensor([1.0, 2.0, 3.0]), torch.eye(3)])
@pytest.mark.parametrize("only", [0, 1])
def test_one_class_alone_has_no_area_and_says_so(name: str, logits: Tensor, only: int) -> None:
    with pytest.warns(UserWarning, match=f"{name} is undefined where only one class occurs: all 3 targets are {only}"):
        found = MetricComputer(name).compute(logits, torch.full((3,), only))

    assert math.isnan(found[name])


def test_what_is_nothing_over_nothing_is_nan() -> None:
    never = MetricComputer("precision", "recall", "f1", "mcc").compute(torch.tensor([-1.0, -2.0]), torch.tensor([0, 0]))

    assert all(map(math.isnan, never.values()))
    found = MetricComputer("precision", "recall", "mcc").compute(torch.tensor([-1.0, -2.0]), torch.tensor([0, 1]))
    assert found == {"precision": 0.0, "recall": 0.0, "mcc": 0.0}


def test_a_confident_model_is_ranked_by_its_logits() -> None:
    """sigmoid of 20 and of 30 are 1.0 in float32, so probabilities there are equal."""
    logit = torch.tensor([20.0, 30.0, 25.0, 40.0])
    targets = torch.tensor([0, 1, 0, 1])
    wide = torch.stack([torch.zeros(4), torch.zeros(4), logit], 1)

    assert MetricComputer("auroc").compute(logit, targets)["auroc"] == 1.0
    assert MetricComputer("auroc", "average_precision").compute(wide, 2 * targets) == pytest.approx(
        {"auroc": 1.0, "average_precision": 1.0}
    )
    assert MetricComputer("accuracy").compute(torch.tensor([1e-30, -1e-30]), torch.tensor([1, 0]))["accuracy"] == 1.0


def test_log_odds_are_those_of_softmax() -> None:
    logits = torch.randn(9, 5, dtype=torch.float64)
    p = logits.softmax(1)

    torch.testing.assert_close(log_odds(logits), (p / (1 - p)).log(), rtol=1e-12, atol=1e-13)
    swapped = log_odds(logits[:, [0, 3, 4, 1, 2]])
    assert torch.equal(swapped[:, 0], log_odds(logits)[:, 0])


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=5), st.sampled_from([2, 4]), st.integers(0, 9))
def test_batches_and_equal_scores_do_not_matter(cuts: list[int], classes: int, seed: int) -> None:
    logits, targets = drawn(30, classes, seed)
    logits = logits.round()  # many ties
    edges = [0, *sorted(cuts), 30]
    found = {}
    for name in NAMES:
        metric: Any = Areas(name) if name in ("auroc", "average_precision") else Counts(name)  # type: ignore[arg-type]
        for start, end in itertools.pairwise(edges):
            metric.update(logits[start:end], targets[start:end])
        found[name] = metric.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may be absent
        whole = MetricComputer(*NAMES).compute(logits, targets)

    assert found == pytest.approx(whole, rel=1e-14, nan_ok=True)
    if classes == 2:
        assert whole["auroc"] == pytest.approx(sk.roc_auc_score(targets, logits[:, 1] - logits[:, 0]), rel=1e-13)


def test_answers_of_many_questions_are_counted_together() -> None:
    logits, targets = torch.randn(6, 2), torch.randint(0, 2, (6, 2))
    targets[0] = torch.tensor([0, 1])
    flat = MetricComputer(*NAMES).compute(logits.flatten(), targets.flatten())

    assert MetricComputer(*NAMES).compute(logits, targets) == flat
    assert MetricComputer(*NAMES).compute(logits.double(), targets.double()) == pytest.approx(flat)


def test_perplexity_takes_sequences_of_any_length_and_leaves_out_what_torch_does() -> None:
    logits, targets = drawn(12, 5, 0)
    targets[3] = -100
    computer = MetricComputer("perplexity")
    metric = Perplexity()
    metric.update(logits[:6].view(2, 3, 5), targets[:6].view(2, 3))
    metric.update(logits[6:].view(3, 2, 5), targets[6:].view(3, 2))

    expected = torch.nn.functional.cross_entropy(logits, targets).exp().item()
    assert metric.compute() == pytest.approx(expected, rel=1e-13)
    assert computer.compute(logits, targets)["perplexity"] == pytest.approx(expected, rel=1e-13)
    assert computer.compute(torch.full((2, 2), 1e4), torch.tensor([0, 1]))["perplexity"] == pytest.approx(2)
    with pytest.raises(ValueError, match="targets are 0 to 5; they are classes from 0 to 4"):
        computer.compute(logits[:2], torch.tensor([0, 5]))


def test_batches_that_a_function_of_all_examples_cannot_have_together_are_named() -> None:
    metric = Gathered(lambda predictions, targets: 0.0)
    for length in (3, 5):
        metric.update(torch.zeros(2, length), torch.zeros(2, length))
    with pytest.raises(ShapeError, match=r"batches of the shapes \[\(3,\), \(5,\)\] without their first axes"):
        metric.compute()
