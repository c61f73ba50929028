"""What a checkpoint holds: a whole step, after all that its hooks did, and what was best in its own past."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Complex128, Float64
from torch import Tensor

from shaped import CheckpointError, Checkpoints, Loop, ParamList, ScalarTrainer
from shaped.data import Batches
from shaped.optim import SGD, AdamW
from shaped.optim.schedules import ReduceOnPlateau
from shaped.workflow import EarlyStopping, Real, Search, Trial
from tests.models import batch, mlp, mlp_loss

X, Y = batch(20)


def data() -> Batches:
    return Batches(X, Y, batch_size=5, seed=0)


class Noted:
    """Counts, and draws: state that a resumed run must have as it was."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, loop: Loop) -> None:
        self.seen.append(float(torch.rand(())))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def job(folder: Path, figures: Callable[[Loop], float], when: str, **options: Any) -> tuple[Loop, Checkpoints, Noted]:
    """A loop whose validation is in the middle of its hooks and listeners."""
    params, noted = mlp(), Noted()
    optimizer = AdamW(params, lr=0.05)
    torch.manual_seed(5)
    loop = Loop(ScalarTrainer(mlp_loss, params, optimizer=optimizer), signals=False)
    checkpoints = loop.attach(Checkpoints(folder, best="validation/loss", **options))
    loop.attach(EarlyStopping(9, alpha=0.5))
    loop.attach(ReduceOnPlateau(optimizer, factor=0.5, patience=0))
    loop.keep("noted", noted)
    add = {"epoch": loop.on_epoch, "step": loop.on_step}[when]
    add(lambda loop: loop.record({"validation/loss": figures(loop)}), name="validate")
    add(noted, name="note", priority=90)
    return loop, checkpoints, noted


def falling_then_flat(loop: Loop) -> float:
    return max(10.0 - loop.step // 4, 7.0)


@pytest.mark.parametrize("when", ["epoch", "step"])
def test_a_checkpoint_of_the_best_is_made_after_all_hooks_and_listeners_of_its_step(when: str, tmp_path: Path) -> None:
    straight, checkpoints, noted = job(tmp_path / "a", falling_then_flat, when, keep=-1)
    straight.run_epochs(data(), 5)
    steps = checkpoints.steps()
    for step in steps:
        checkpoints.close()
        shutil.copytree(tmp_path / "a", tmp_path / str(step))
        resumed, again, other = job(tmp_path / str(step), falling_then_flat, when, keep=-1)
        again.resume(resumed, step=step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            resumed.run_epochs(data(), 5)

        assert other.seen == noted.seen
        assert all(torch.equal(a, b) for a, b in zip(resumed.trainer.params, straight.trainer.params, strict=True))
        assert resumed.lr == straight.lr

    assert len(steps) > 3


@pytest.mark.parametrize("when", ["epoch", "step"])
def test_hooks_that_an_error_left_run_after_a_resume(when: str, tmp_path: Path) -> None:
    straight, *_, noted = job(tmp_path / "a", falling_then_flat, when)
    straight.run_epochs(data(), 3)

    def fails(loop: Loop) -> float:
        if loop.step == 8:
            raise RuntimeError("a broken cable")
        return falling_then_flat(loop)

    first, checkpoints, _ = job(tmp_path / "b", fails, when)
    with pytest.raises(RuntimeError, match="a broken cable"):
        first.run_epochs(data(), 3)
    checkpoints.close()
    resumed, checkpoints, other = job(tmp_path / "b", falling_then_flat, when)
    found = checkpoints.resume(resumed)
    resumed.run_epochs(data(), 3)

    assert found.step == 8
    assert other.seen == noted.seen
    assert resumed.lr == straight.lr
    assert all(torch.equal(a, b) for a, b in zip(resumed.trainer.params, straight.trainer.params, strict=True))


def test_a_save_in_a_hook_is_made_anew_when_all_hooks_have_run(tmp_path: Path) -> None:
    loop, checkpoints, noted = job(tmp_path, falling_then_flat, "step")
    loop.on_step(checkpoints.save, name="save", priority=-5)
    loop.run_steps(data(), 2)

    assert checkpoints.read(2).state["kept"]["noted"]["seen"] == noted.seen
    assert len(noted.seen) == 2


def by_epoch(*figures: float) -> Callable[[Loop], float]:
    return lambda loop: figures[loop.epoch - 1]


def written(folder: Path) -> Any:
    path = folder / "best.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_the_best_figure_belongs_to_the_state_that_was_loaded(tmp_path: Path) -> None:
    loop, checkpoints, _ = job(tmp_path, by_epoch(5.0, 4.0, 1.0, 3.0), "epoch", every=4, keep=-1)
    loop.run_epochs(data(), 4)
    checkpoints.close()
    first = checkpoints.best_step, written(tmp_path)["value"]
    again, checkpoints, _ = job(tmp_path, by_epoch(5.0, 4.0, 3.5, 3.0, 2.5), "epoch", every=4, keep=-1)
    checkpoints.resume(again, step=8)
    back = checkpoints.best_step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.run_epochs(data(), 5)

    assert first == (12, 1.0)
    assert back == 8
    assert (checkpoints.best_step, written(tmp_path)) == (20, {"step": 20, "value": 2.5, "figure": "validation/loss"})


def test_a_run_that_begins_anew_has_no_best_and_puts_aside_what_was_there(tmp_path: Path) -> None:
    loop, checkpoints, _ = job(tmp_path, by_epoch(1.0, 2.0), "epoch")
    loop.run_epochs(data(), 2)
    checkpoints.close()
    before = sorted(path.name for path in tmp_path.glob("step-*"))
    again, checkpoints, _ = job(tmp_path, by_epoch(6.0, 5.0), "epoch")
    with pytest.warns(UserWarning, match="begun anew, without `resume`; put aside under new names: superseded-step-0"):
        again.run_epochs(data(), 2)

    assert (checkpoints.best_step, written(tmp_path)["value"]) == (8, 5.0)
    assert {f"superseded-{name}" for name in before} <= set(os.listdir(tmp_path))


def test_a_best_that_is_damaged_is_set_aside_and_the_next_best_takes_its_place(tmp_path: Path) -> None:
    loop, checkpoints, _ = job(tmp_path, by_epoch(5.0, 4.0, 3.0, 9.0, 9.0), "epoch", keep=-1)
    loop.run_epochs(data(), 5)
    checkpoints.close()
    for step in (20, 12):
        (tmp_path / f"step-{step:08d}" / "state.json").write_bytes(b"{}")
    again, checkpoints, _ = job(tmp_path, by_epoch(*[9.0] * 6), "epoch", keep=-1)
    with (
        pytest.warns(UserWarning, match="set aside as corrupt-step-00000012"),
        pytest.warns(UserWarning, match="set aside as corrupt-step-00000020"),
    ):
        found = checkpoints.resume(again)

    assert found.step == 8
    assert checkpoints.best_step == 8
    assert written(tmp_path) == {"step": 8, "value": 4.0, "figure": "validation/loss"}


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["run.json", "best.json"])
def test_files_of_a_run_that_are_links_or_pipes_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    target.write_text('{"run": "0123456789abcdef"}')
    (folder / name).symlink_to(target) if kind == "link" else os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}: it is a {kind} and no regular file"):
        print(Checkpoints(folder, best="validation/loss").best_step)

    assert target.read_text() == '{"run": "0123456789abcdef"}'


def test_loading_does_not_change_the_state_that_is_loaded() -> None:
    from torch.optim.lr_scheduler import CyclicLR

    def made() -> Loop:
        params = mlp()
        optimizer = SGD(params, lr=0.1)
        schedule = CyclicLR(optimizer, 0.01, 0.1, 4, cycle_momentum=False)
        return Loop(ScalarTrainer(mlp_loss, params, optimizer=optimizer), schedule=schedule)

    first, second, third = made(), made(), made()
    first.run_steps(data(), 3)
    state = first.state_dict()
    for loop in (second, third):
        loop.load_state_dict(state)
        loop.run_to_step(data(), 6)

    assert second.lr == third.lr
    assert torch.equal(second.trainer.params.w1, third.trainer.params.w1)


class WithBasis(ParamList):
    w: Float64[Tensor, " k"]
    basis: Complex128[Tensor, " k"]


def basis_loss(p: WithBasis, x: Float64[Tensor, "b k"]) -> Float64[Tensor, ""]:
    return (x * p.w * p.basis).abs().square().mean()


@pytest.mark.parametrize("save_frozen", [True, False])
def test_complex_entries_are_saved_and_loaded(save_frozen: bool, tmp_path: Path) -> None:
    def made(fill: complex) -> Loop:
        p = WithBasis(torch.ones(2, dtype=torch.float64), torch.full((2,), fill, dtype=torch.complex128))
        p.basis.requires_grad_(False)
        return Loop(ScalarTrainer(basis_loss, p, optimizer=SGD([p.w], lr=0.1), save_frozen=save_frozen))

    loop = made(1 + 2j)
    checkpoints = loop.attach(Checkpoints(tmp_path, every=1))
    loop.run_steps([(torch.ones(4, 2, dtype=torch.float64),)] * 2, 2)
    again = made(1 + 2j if not save_frozen else 0j)
    checkpoints.resume(again)

    assert all(torch.equal(a, b) for a, b in zip(again.trainer.params, loop.trainer.params, strict=True))


# -- what is watched ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listener",
    [
        lambda loop, folder: EarlyStopping(2, monitor="val_loss"),
        lambda loop, folder: ReduceOnPlateau(loop.trainer.optimizer, monitor="val_loss"),
        lambda loop, folder: Checkpoints(folder, best="val_loss"),
        lambda loop, folder: Trial(Search({"lr": Real(0.1, 1.0)}, lambda trial: 0.0), 0, {}).watch("val_loss"),
    ],
    ids=["early stopping", "plateau", "best", "pruning"],
)
def test_a_figure_that_is_watched_and_never_recorded_is_an_error_that_lists_those_there_are(
    listener: Any, tmp_path: Path
) -> None:
    params = mlp()
    loop = Loop(ScalarTrainer(mlp_loss, params, optimizer=AdamW(params)), signals=False)
    loop.attach(listener(loop, tmp_path))
    loop.on_epoch(lambda loop: loop.evaluate([(X, Y)]), name="validate")
    with (
        pytest.warns(UserWarning, match="waits for `val_loss`, which no hook of this run has recorded"),
        pytest.raises(ValueError, match=r"waits for `val_loss`, .*; recorded were `validation/loss`"),
    ):
        loop.run_epochs(data(), 2)

    assert loop.step == 8


@pytest.mark.parametrize("listener", [object(), None, 3, Checkpoints, lambda loop: None])
def test_what_hears_nothing_is_no_listener(listener: Any) -> None:
    params = mlp()
    loop = Loop(ScalarTrainer(mlp_loss, params, optimizer=AdamW(params)))
    with pytest.raises(ValueError, match="a listener has one of the methods attached, on_record"):
        loop.attach(listener)


@pytest.mark.parametrize("name", [3, "", ("validation/loss",)])
def test_a_figure_without_a_name_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="monitor is"):
        EarlyStopping(monitor=name)
    with pytest.raises(ValueError, match="best is"):
        Checkpoints(tmp_path, best=name)


def test_an_update_at_the_end_of_a_run_is_saved_though_the_step_was(tmp_path: Path) -> None:
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.05), accumulate=3)
    loop = Loop(trainer, leftover="step", signals=False)
    checkpoints = loop.attach(Checkpoints(tmp_path, every=2))
    loop.run_steps(data(), 4)

    assert trainer.steps == 2
    assert torch.equal(checkpoints.read(4).state["trainer"]["params"]["w1"], trainer.params.w1)


@pytest.mark.filterwarnings("ignore:.* waits for")
@pytest.mark.parametrize("first", [True, False])
def test_a_figure_between_runs_is_in_the_checkpoint_of_the_best_and_counts_once(first: bool, tmp_path: Path) -> None:
    def made() -> tuple[Loop, Checkpoints, EarlyStopping, ReduceOnPlateau]:
        params = mlp()
        optimizer = AdamW(params, lr=0.05)
        loop = Loop(ScalarTrainer(mlp_loss, params, optimizer=optimizer), signals=False)
        saved = Checkpoints(tmp_path, best="validation/loss")
        stopping, plateau = EarlyStopping(9, alpha=0.5), ReduceOnPlateau(optimizer, patience=3)
        for listener in (saved, stopping, plateau) if first else (stopping, plateau, saved):
            loop.attach(listener)
        return loop, saved, stopping, plateau

    loop, saved, stopping, plateau = made()
    for value in (3.0, 2.0):
        loop.run_epochs(data(), 1)
        loop.record({"validation/loss": value})
    saved.close()
    again, saved, others, plateau_again = made()
    saved.resume(again)
    states = [others.state_dict(), plateau_again.state_dict()]
    again.run_epochs(data(), 1)  # complete already, as a script that is started again as it is will find
    again.record({"validation/loss": 2.0})

    assert states == [stopping.state_dict(), plateau.state_dict()]
    assert [others.state_dict(), plateau_again.state_dict()] == states
