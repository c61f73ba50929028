"""Feedback: examples complete when their labels come, over a restart too, and given out once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shaped import ShapeError
from shaped.errors import CheckpointError
from shaped.workflow.online import AuditLog, Feedback


def test_examples_are_given_out_in_the_order_in_which_they_were_completed(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl")
    for i in range(4):
        feedback.ask(f"q{i}", torch.full((2,), float(i)))
    for i in (2, 0, 3):
        feedback.answer(f"q{i}", torch.tensor(i))
    none, batch = feedback.take(4), feedback.take(2)

    assert none is None
    assert batch is not None
    assert (batch[0].tolist(), batch[1].tolist()) == ([[2.0, 2.0], [0.0, 0.0]], [2, 0])
    assert (feedback.waiting, feedback.ready) == (("q1",), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_a_new_process_goes_on_with_the_same_values(dtype: torch.dtype, tmp_path: Path) -> None:
    x = (torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    first = Feedback(tmp_path / "f.jsonl")
    first.ask("a", x)
    first.ask("b", x)
    first.answer("b", torch.tensor(float("nan")))
    second = Feedback(tmp_path / "f.jsonl")
    second.answer("a", torch.tensor(1.0))
    batch = Feedback(tmp_path / "f.jsonl").take(2)

    assert batch is not None
    assert torch.equal(batch[0], torch.stack([x, x]))
    assert batch[0].dtype == dtype
    assert str(batch[1].tolist()) == "[nan, 1.0]"
    assert Feedback(tmp_path / "f.jsonl").ready == 0


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda f: f.ask("done", torch.zeros(2)), ValueError,
         "`done` was asked already, and its example has not been taken"),
        (lambda f: f.answer("opn", torch.zeros(())), ValueError,
         "`opn` does not wait for an answer; did you mean `open`?"),
        (lambda f: f.answer("open", 1.0), ValueError, "targets[0] is 1.0; it is a tensor"),
        (lambda f: f.take(0), ValueError, "n is 0; it is a whole number of at least 1"),
        (
            lambda f: f.answer("open", torch.zeros(3)), ShapeError,
            "the example `open` is float32 (2,), float32 (3,); those that are ready are float32 (2,), float32 ()",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(
    act: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    feedback = Feedback(tmp_path / "f.jsonl")
    for key in ("done", "open"):
        feedback.ask(key, torch.zeros(2))
    feedback.answer("done", torch.zeros(()))
    before = (tmp_path / "f.jsonl").read_bytes()
    with pytest.raises(kind) as caught:
        act(feedback)

    assert str(caught.value) == message
    assert (tmp_path / "f.jsonl").read_bytes() == before
    assert (feedback.waiting, feedback.ready) == (("open",), 1)


def test_a_log_of_something_else_is_no_feedback(tmp_path: Path) -> None:
    AuditLog(tmp_path / "audit.jsonl").append("commit")
    with pytest.raises(Exception, match="has the event 'commit', so it is another log"):
        Feedback(tmp_path / "audit.jsonl")


def test_one_process_may_ask_while_another_answers(tmp_path: Path) -> None:
    serving = Feedback(tmp_path / "f.jsonl")
    serving.ask("a", torch.ones(2))
    answering = Feedback(tmp_path / "f.jsonl")
    answering.answer("a", torch.tensor(1.0))
    serving.ask("b", torch.ones(2))
    assert (answering.waiting, answering.ready) == (("b",), 1)
    assert serving.take(1) is not None
    assert Feedback(tmp_path / "f.jsonl").waiting == ("b",)


def test_a_key_that_is_no_text_is_refused_before_it_is_written(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "f.jsonl")
    with pytest.raises(ValueError, match="it is a text"):
        feedback.ask(("user", 1), torch.ones(2))  # type: ignore[arg-type]
    assert not (tmp_path / "f.jsonl").exists()


def test_a_log_that_another_has_written_to_is_not_appended_to(tmp_path: Path) -> None:
    first, second = AuditLog(tmp_path / "a.jsonl"), AuditLog(tmp_path / "a.jsonl")
    first.append("one")
    with pytest.raises(CheckpointError, match="open it again"):
        second.append("two")
    assert len(list(AuditLog(tmp_path / "a.jsonl"))) == 1
