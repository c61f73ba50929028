"""Ctrl-C at any moment of a step leaves a run that goes on."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from shaped import ScalarTrainer
from shaped.backends.executors import Executor
from shaped.backends.interrupts import Whole
from shaped.optim import FusedOptimizer
from tests.models import batch, mlp, mlp_loss

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A Ctrl-C is heard, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same with a Ctrl-C before it and one after it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        result = call(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return result

    return run


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupt_within_a_step_is_raised_when_the_step_is_taken_and_counted(monkeypatch, backend, accumulate):
    options: Any = {"backend": backend, "accumulate": accumulate, "verify": False}  # whose trial would be interrupted
    trainer, plain = (ScalarTrainer(mlp_loss, mlp(), **options) for _ in range(2))
    raised = 0
    with monkeypatch.context() as patch:
        patch.setattr(FusedOptimizer, "update", interrupted(FusedOptimizer.update))
        patch.setattr(Executor, "__call__", interrupted(Executor.__call__))
        for step in range(4):
            try:
                trainer.adamw_step(*batch(seed=step), lr=0.1)
            except KeyboardInterrupt:
                raised += 1
    for step in range(4):
        plain.adamw_step(*batch(seed=step), lr=0.1)

    assert all(map(torch.equal, trainer.params, plain.params))
    assert raised == (4 if backend == "compiled" else 4 // accumulate)
    assert trainer.steps == plain.steps == 4 // accumulate
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_before_a_step_moves_anything_leaves_nothing_of_it():
    trainer = ScalarTrainer(mlp_loss, mlp())
    before = trainer.get_params()
    trainer._backend.program.call = interrupted(trainer._backend.program.call)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.adamw_step(*batch(), lr=0.1)

    assert all(map(torch.equal, before, trainer.params))
    assert trainer.state_dict()["optimizers"] == {}
    assert trainer.steps == 0


def test_in_another_thread_and_under_an_ignored_signal_there_is_nothing_to_wait_for():
    done = []

    def work() -> None:
        with Whole():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
    finally:
        signal.signal(signal.SIGINT, before)

    assert done == [before, signal.SIG_IGN]
