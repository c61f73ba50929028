"""Hooks at the end of an epoch, and runs that are ended from within."""

from pathlib import Path

from shaped import Checkpoints, Loop
from tests.workflow.loops import TRAINING, fresh_loop, values

LIST = list(TRAINING)


def test_an_epoch_hook_runs_where_the_data_has_been_gone_over() -> None:
    loop, seen = fresh_loop(), []
    loop.on_epoch(lambda loop: seen.append((loop.epoch, loop.step)), name="seen")
    loop.run_epochs(LIST, 2)
    loop.run_steps(LIST, 4)  # to the end of the data, which the next step sees
    loop.run_steps(LIST, 1)

    assert seen == [(1, 4), (2, 8), (3, 12)]


def test_stop_ends_a_run_after_the_step_and_its_hooks() -> None:
    loop, after = fresh_loop(), []
    loop.on_step(lambda loop: loop.stop("enough") if loop.step == 3 else None, name="stop")
    loop.on_step(lambda loop: after.append(loop.step), name="after")
    loop.on_end(lambda loop: after.append(-1), name="end")
    loop.run_epochs(LIST, 5)

    assert (after, loop.stopped, loop.epoch) == ([1, 2, 3, -1], "enough", 0)
    loop.run_steps(LIST, 1)
    assert (loop.step, loop.stopped) == (4, "")


def test_a_run_that_was_stopped_is_completed_after_a_resume(tmp_path: Path) -> None:
    loop = fresh_loop()
    loop.attach(Checkpoints(tmp_path / "a"))
    loop.on_step(lambda loop: loop.stop() if loop.step == 6 else None, name="stop")
    loop.run_epochs(TRAINING, 3)
    loop._attached[0].close()
    again = fresh_loop(seed=9)
    checkpoints = again.attach(Checkpoints(tmp_path / "a"))
    checkpoints.resume(again)
    again.run_epochs(TRAINING, 3)
    resumed = values(again)
    checkpoints.close()
    whole = fresh_loop()
    whole.run_epochs(TRAINING, 3)

    assert again.step == whole.step == 12
    assert resumed == values(whole)


def test_an_epoch_whose_hook_was_not_reached_runs_it_after_a_resume() -> None:
    loop, seen = fresh_loop(), []
    loop.on_epoch(lambda loop: seen.append(loop.epoch), name="seen")
    loop.on_step(lambda loop: loop.stop() if loop.step == 4 else None, name="stop")
    loop.run_epochs(TRAINING, 2)
    state = loop.state_dict()
    again = Loop(loop.trainer)
    again.on_epoch(lambda loop: seen.append(-loop.epoch), name="seen")
    again.load_state_dict(state)
    again.run_epochs(TRAINING, 2)

    assert seen == [-1, -2]
