"""The online learner: updates whole or not at all, rollbacks of everything, and a process that dies in between."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import NonFiniteError, ParamList, ScalarTrainer, ShapeError, StateError, losses
from shaped.errors import CheckpointError, RunLocked
from shaped.workflow.online import (
    Candidate,
    Composite,
    LossDelta,
    OnlineLearner,
    PageHinkley,
    Trigger,
    WeightNorm,
    verify_log,
)


class Line(ParamList):
    w: Float[Tensor, " features"]


def loss(p: Line, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return losses.mse(x @ p.w, y)


TRAINER = ScalarTrainer(loss, Line(torch.zeros(2)))  # proved once; a learner gets a copy that starts anew
WEIGHTS = {False: torch.tensor([1.0, -1.0]), True: torch.tensor([-2.0, 3.0])}


def fresh() -> ScalarTrainer:
    """A trainer at zero, without a proof of its own: the tests share one."""
    TRAINER.load_state_dict({**TRAINER.state_dict(), "optimizers": {}, "steps": 0, "params": {"w": torch.zeros(2)}})
    return TRAINER


def at(number: int, drifts: int = 40) -> tuple[Tensor, Tensor]:
    """The batch of one moment; what is to be learned changes at `drifts`."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 2, generator=generator)
    return x, x @ WEIGHTS[number >= drifts] + 0.1 * torch.randn(8, generator=generator)


def step(x: Tensor, y: Tensor) -> Tensor:
    return TRAINER.adam_step(x, y, lr=0.05)


def learner(folder: Path, **options: Any) -> OnlineLearner:
    trigger = Trigger(PageHinkley(min_instances=5, threshold=5.0, mode="up"), every=5, min_samples=5, cooldown=2)
    options = {"step": step, "trigger": trigger, "recent": 12, "passes": 5, "fresh": 4, **options}
    return OnlineLearner(fresh(), folder, **options)


def run(made: OnlineLearner, until: int = 80, since: int | None = None) -> list[Any]:
    return [made.observe(*at(n)) for n in range(made.observed if since is None else since, until)]


def same(a: Any, b: Any) -> bool:
    """Equal states, tensors bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_drift_is_noticed_and_learned(tmp_path: Path) -> None:
    made = learner(tmp_path)
    seen = run(made)
    drifts = [o.number for o in seen if o.drift]

    assert len(drifts) == 1
    assert 40 < drifts[0] <= 45
    assert sum(o.loss for o in seen[33:40]) < 0.1 * 7 < 7 < sum(o.loss for o in seen[40:47])
    assert sum(o.loss for o in seen[-7:]) < 0.1 * 7
    assert verify_log(tmp_path / "audit.jsonl") == len(list(made.log))
    assert made.observed == 80
    made.close()


def test_a_loss_is_measured_before_anything_is_learned_from_its_batch(tmp_path: Path) -> None:
    made = learner(tmp_path, trigger=Trigger(every=1), recent=2, fresh=0)
    for n in range(6):
        before: Any = TRAINER.get_params()
        observed = made.observe(*at(n))

        assert observed.loss == pytest.approx(float(loss(before, *at(n)).detach()), rel=1e-6)
    assert TRAINER.steps > 0
    made.close()


def test_after_a_drift_older_batches_are_forgotten_and_the_update_waits_for_fresh_ones(tmp_path: Path) -> None:
    made = learner(tmp_path, fresh=6, trigger=Trigger(PageHinkley(min_instances=5, threshold=5.0, mode="up")))
    seen = run(made)
    found = next(o.number for o in seen if o.drift)
    updates = [o.number for o in seen if o.update is not None]
    sizes = [len(made.versions.read(2).state["recent"])]

    assert updates[0] == found + 5
    assert sizes == [6]
    made.close()


def test_an_update_after_a_drift_that_is_refused_is_tried_again(tmp_path: Path) -> None:
    made = learner(tmp_path, trigger=Trigger(PageHinkley(min_instances=5, threshold=5.0, mode="up")))
    run(made, 30)
    made.update()  # the only one before the drift
    made.validator = lambda candidate: "not yet" if made.refused < 2 else None
    seen = run(made)
    tried = [(o.number, o.update.accepted) for o in seen if o.update is not None]
    found = next(o.number for o in seen if o.drift)

    assert tried == [(found + 3, False), (found + 7, False), (found + 11, True)]
    assert seen[-1].loss < 1 < 5 < seen[found - 31].loss
    made.close()


def test_a_refused_update_leaves_parameters_optimizer_state_and_counts_as_they_were(tmp_path: Path) -> None:
    made = learner(tmp_path, trigger=None)
    run(made, 6)
    first = made.update()
    before = made.trainer.state_dict()
    made.validator = lambda candidate: "no"
    second = made.update("by hand")

    assert first.accepted
    assert before["steps"] == 5 * (6 - 2)
    assert (second.accepted, second.why, second.reason, second.version) == (False, "no", "by hand", 2)
    assert same(made.trainer.state_dict(), before)
    assert (made.accepted, made.refused, made.versions.numbers()) == (1, 1, [1, 2])
    made.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), NonFiniteError("the loss is nan")])
def test_an_update_that_fails_in_the_middle_is_taken_back(error: BaseException, tmp_path: Path) -> None:
    count = 0

    def fails(x: Tensor, y: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count == 3:
            raise error
        return step(x, y)

    made = learner(tmp_path, trigger=None, step=fails)
    run(made, 6)
    before = made.trainer.state_dict()
    if isinstance(error, NonFiniteError):
        refused = made.update()

        assert (refused.accepted, refused.why) == (False, "the loss is nan")
    else:
        with pytest.raises(type(error)):
            made.update()
    assert same(made.trainer.state_dict(), before)
    assert made.versions.numbers() == [1]
    made.close()


def test_an_update_that_cannot_be_written_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(tmp_path, trigger=None)
    run(made, 6)
    before = made.state_dict()

    def full(state: Any, reason: str) -> Any:
        raise CheckpointError("no space left")

    monkeypatch.setattr(made.versions, "save", full)
    with pytest.raises(CheckpointError, match="no space left"):
        made.update()

    assert same(made.trainer.state_dict(), before["trainer"])
    assert made.accepted == 0
    assert [e["event"] for e in made.log] == ["start", "failed"]
    made.close()


def test_a_rollback_restores_parameters_optimizer_state_and_counts_as_a_new_version(tmp_path: Path) -> None:
    made = learner(tmp_path, trigger=None)
    states = [made.trainer.state_dict()]
    for n in range(0, 18, 6):
        run(made, n + 6)
        made.update()
        states.append(made.trainer.state_dict())
    back = made.rollback()

    assert (back.number, back.reason) == (5, "rollback to 3")
    assert same(made.trainer.state_dict(), states[2])
    assert made.observed == 18
    assert same(made.rollback().state["trainer"], states[1]), "before version 3, and not the one that was left"
    assert same(made.rollback(to=4).state["trainer"], states[3])
    assert same(made.trainer.state_dict(), states[3])
    made.rollback(to=made.versions.numbers()[0])
    with pytest.raises(ValueError, match="there is no version before"):
        made.rollback()
    made.close()


def test_a_learner_in_the_same_folder_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole = learner(tmp_path / "whole")
    expected = run(whole)
    state, weights = whole.state_dict(), TRAINER.get_params().w.clone()
    whole.close()
    first = learner(tmp_path / "cut")
    before = run(first, 43)
    first.save()
    first.close()
    second = learner(tmp_path / "cut")
    after = run(second)

    assert before[-3:] != after[-3:]
    assert [o.loss for o in before + after] == [o.loss for o in expected]
    assert torch.equal(TRAINER.get_params().w, weights)
    assert same({**second.state_dict(), "generators": 0, "origin": 0}, {**state, "generators": 0, "origin": 0})
    second.close()


KILLED = """
import os, sys
from pathlib import Path
from tests.workflow.online.test_online_learner import learner, run, step
taken = 0
def dies(x, y):
    global taken
    taken += 1
    if taken == 103: os._exit(9)
    return step(x, y)
run(learner(Path(sys.argv[1]), step=dies))
"""


@pytest.mark.slow
def test_a_process_that_dies_in_an_update_leaves_the_last_version_and_the_next_goes_on(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}"}
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cut")], env=environment, check=False, cwd=root)
    whole = learner(tmp_path / "whole")
    run(whole)
    expected = TRAINER.state_dict()
    whole.close()
    again = learner(tmp_path / "cut")
    resumed_at, version = again.observed, again.version
    run(again)

    assert died.returncode == 9
    assert 5 < resumed_at < 40
    assert version > 1
    assert same(TRAINER.state_dict(), expected)
    assert verify_log(again.versions.folder / "audit.jsonl") > 3
    again.close()


def test_a_batch_that_does_not_fit_or_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    made = learner(tmp_path)
    run(made, 3)
    before = made.state_dict()
    with pytest.raises(ShapeError):
        made.observe(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(NonFiniteError, match="the loss of observation 4 is nan; nothing was learned from it"):
        made.observe(torch.full((4, 2), float("nan")), torch.zeros(4))

    assert same({**made.state_dict(), "generators": 0}, {**before, "generators": 0})
    made.close()


def test_a_trigger_may_look_at_another_signal(tmp_path: Path) -> None:
    seen: list[float] = []

    def signal(p: Line, x: Tensor, y: Tensor) -> Tensor:
        seen.append(float(x.mean()))
        return x.mean()

    made = learner(tmp_path, signal=signal)
    run(made, 3)

    assert seen == [float(at(n)[0].mean()) for n in range(3)]
    made.close()


def test_a_state_of_another_kind_of_learner_is_refused(tmp_path: Path) -> None:
    made = learner(tmp_path)
    run(made, 3)
    made.close()
    with pytest.raises(StateError, match="the state has a trigger and this learner has none"):
        learner(tmp_path, trigger=None)
    with pytest.raises(StateError, match="the state is of PageHinkley"):
        learner(tmp_path, trigger=Trigger(PageHinkley()))
    again = learner(tmp_path)
    with pytest.raises(RunLocked):
        learner(tmp_path)
    again.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": None}, "the trainer has no optimizer: give it one, or pass step=lambda *batch: trainer.step(...)"),
        ({"recent": 1}, "recent is 1; it is a whole number of at least 2"),
        ({"fresh": 13}, "fresh is 13 (at most recent, 12), holdout 0.25 (a share, as 0.25)"),
        ({"holdout": 1.0}, "fresh is 4 (at most recent, 12), holdout 1.0 (a share, as 0.25)"),
    ],
)
def test_a_wrong_learner_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        learner(tmp_path, **options)

    assert str(caught.value) == message


def test_an_update_needs_two_batches(tmp_path: Path) -> None:
    made = learner(tmp_path)
    run(made, 1)
    with pytest.raises(ValueError, match="an update needs two recent batches, one to be judged by; there are 1"):
        made.update()
    made.close()


def candidate(after: float, before: float = 1.0, scale: float = 1.0) -> Candidate:
    return Candidate(Line(torch.tensor([3.0, 4.0])), Line(torch.tensor([3.0, 4.0]) * scale), before, after)


@pytest.mark.parametrize(
    ("validator", "given", "said"),
    [
        (LossDelta(), candidate(1.0), None),
        (LossDelta(), candidate(1.5), "the loss went from 1 to 1.5, by more than 0"),
        (LossDelta(0.5), candidate(1.5), None),
        (LossDelta(-0.1), candidate(0.95), "the loss went from 1 to 0.95, by more than -0.1"),
        (LossDelta(), candidate(float("nan")), "the loss went from 1 to nan, by more than 0"),
        (WeightNorm(), candidate(9.0, scale=100.0), None),
        (WeightNorm(), Candidate(Line(torch.zeros(2)), Line(torch.ones(2)), 1.0, 1.0), None),
        (WeightNorm(most=9.0), candidate(1.0, scale=2.0), "the parameters' norm is 10, above 9"),
        (WeightNorm(most=10.0), candidate(1.0, scale=2.0), None),
        (WeightNorm(change=0.5), candidate(1.0, scale=2.0), "the parameters moved by 5, more than 0.5 of their norm 5"),
        (WeightNorm(change=1.0), candidate(1.0, scale=2.0), None),
        (Composite(), candidate(9.0), None),
        (Composite(LossDelta(), WeightNorm(change=2.0)), candidate(1.0, scale=2.0), None),
        (
            Composite(LossDelta(), WeightNorm(most=9.0)), candidate(1.5, scale=2.0),
            "the loss went from 1 to 1.5, by more than 0; the parameters' norm is 10, above 9",
        ),
    ],
)  # fmt: skip
def test_a_validator_accepts_or_says_why_not(validator: Any, given: Candidate, said: str | None) -> None:
    assert validator(given) == said


def test_a_closed_learner_takes_nothing_more(tmp_path: Path) -> None:
    made = learner(tmp_path)
    made.observe(*at(0))
    made.close()
    for act in (lambda: made.observe(*at(1)), made.update, made.rollback, made.save):
        with pytest.raises(StateError, match="the learner is closed"):
            act()
    assert made.observed == 1
    verify_log(tmp_path / "audit.jsonl")
    with pytest.raises(StateError, match="a learner's state has trainer"):
        made.load_state_dict({})


def test_a_validator_that_answers_true_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    made = learner(tmp_path, trigger=None, validator=lambda candidate: True)
    for i in range(3):
        made.observe(*at(i))
    with pytest.raises(ValueError, match="the validator returned True; it returns None, or a text"):
        made.update()
    assert torch.equal(made.trainer.params.w, torch.zeros(2))
    made.close()
