"""Capturing a step: when, on what, counted, checked, dropped. The graph is a fake here; the last tests need a GPU."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped import ScalarTrainer
from shaped.backends import Capture
from shaped.optim import AdamW
from tests.models import batch, mlp, mlp_loss

WARM_UP = 3


class Recorded:
    """A fake graph: replaying runs what was captured, on the memory that it was captured on."""

    def __init__(self, run: Callable[[], Sequence[Any]], results: Sequence[Tensor]) -> None:
        self.run, self.results = run, results

    def replay(self) -> None:
        for kept, new in zip(self.results, self.run(), strict=True):
            kept.copy_(new)


class FakeGraphs:
    """Captures without leaving a trace in the state, as CUDA does; may be told to refuse or to replay nothing."""

    def __init__(self, trainer: ScalarTrainer) -> None:
        self._trainer = trainer
        self.warmed = 0
        self.refuses = ""
        self.stale = False

    def warm(self, run: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        self.warmed += 1
        return run()

    def capture(self, run: Callable[[], Sequence[Any]]) -> tuple[Recorded, Sequence[Any]]:
        if self.refuses:
            raise RuntimeError(self.refuses)
        steps = self._trainer._shared.compiled._steps.values()
        state = [tensor for step in steps for tensor in step.state]
        before = [tensor.clone() for tensor in state]
        results = [result.clone() for result in run()]
        torch._foreach_copy_(state, before)
        return Recorded((lambda: results) if self.stale else run, results), results

    def random_state(self) -> Any:
        return torch.get_rng_state()

    def set_random_state(self, state: Any) -> None:
        torch.set_rng_state(state)


pytestmark = pytest.mark.usefixtures("interpreted")


def captured(**options: Any) -> tuple[ScalarTrainer, FakeGraphs]:
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled", **options)
    graphs = FakeGraphs(trainer)
    trainer._shared.compiled._graphs = graphs
    return trainer, graphs


def same(a: ScalarTrainer, b: ScalarTrainer) -> bool:
    return all(map(torch.equal, a.params, b.params)) and str(a.state_dict()) == str(b.state_dict())


def test_a_captured_run_is_the_direct_run_bit_for_bit_while_batches_and_lr_change():
    (run, graphs), plain = captured(max_norm=0.5), ScalarTrainer(mlp_loss, mlp(), backend="compiled", max_norm=0.5)
    losses = []
    for seed in range(8):
        inputs, lr = batch(seed=seed), 0.01 * (seed + 1)
        losses.append(run.adamw_step(*inputs, lr=lr))

        assert torch.equal(plain.adamw_step(*inputs, lr=lr), losses[-1])
    assert same(run, plain)
    assert len(set(map(float, losses))) == 8  # each is its own tensor: a replay does not write over it
    (executor,) = run.executors
    assert (graphs.warmed, executor.captures, executor.replays, executor.calls) == (WARM_UP, 1, 8 - WARM_UP, 8)
    assert "captured 1 times, 5 replays" in str(run.executors)


def test_loading_a_state_drops_the_graph_and_captures_again():
    run, _ = captured()
    plain = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    for seed in range(5):
        run.adamw_step(*batch(seed=seed), lr=0.1)
        plain.adamw_step(*batch(seed=seed), lr=0.1)
    state = copy.deepcopy(run.state_dict())
    for trainer in (run, plain):
        trainer.load_state_dict(state)
        for seed in range(5):
            trainer.adamw_step(*batch(seed=seed), lr=0.1)

    assert same(run, plain)
    assert [e.captures for e in run.executors] == [2]


@pytest.mark.slow
def test_new_storage_drops_the_graph_and_captures_again():
    run, _ = captured()
    plain = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    for trainer in (run, plain):
        for seed in range(8):
            if seed == 5:
                for p in trainer.params:
                    p.data = p.data * 0.5
            trainer.step(*batch(seed=seed), lr=0.1)

    assert same(run, plain)
    assert [e.captures for e in run.executors] == [2]


@pytest.mark.slow
def test_each_size_is_captured_apart():
    run, _ = captured()
    for _ in range(6):
        run.step(*batch(5), lr=0.1)
        run.step(*batch(3), lr=0.1)
        run.step(*batch(4), lr=0.1)

    assert [(e.sizes.split(";")[0].split(",")[0], e.captures) for e in run.executors] == [
        ("pixels = 6", 1),
        ("any batch", 2),
    ]


def test_an_operation_that_forbids_a_capture_runs_directly_with_the_reason_in_the_table():
    (run, graphs), plain = captured(), ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    graphs.refuses = "operation not permitted when stream is capturing\nmore"
    for seed in range(6):
        run.adamw_step(*batch(seed=seed), lr=0.1)
        plain.adamw_step(*batch(seed=seed), lr=0.1)

    assert same(run, plain)
    assert "not captured: operation not permitted when stream is capturing)" in str(run.executors)


def test_a_tensor_on_the_cpu_forbids_a_capture(monkeypatch):
    monkeypatch.setattr(Capture, "_on_device", lambda self, tensor: tensor.shape != ())
    run, _ = captured()
    for seed in range(5):
        run.adamw_step(*batch(seed=seed), lr=0.1)

    assert "not captured: 1 of its tensors are on the CPU" in str(run.executors)


def test_a_replay_that_is_not_the_direct_run_is_dropped_and_its_step_taken_directly():
    (run, graphs), plain = captured(), ScalarTrainer(mlp_loss, mlp(), backend="compiled")
    graphs.stale = True
    for seed in range(7):
        run.adamw_step(*batch(seed=seed), lr=0.1)
        plain.adamw_step(*batch(seed=seed), lr=0.1)

    assert same(run, plain)
    assert "captured and dropped: the replay differs from a direct run" in str(run.executors)


def test_steps_that_are_left_out_are_counted_by_replays_too():
    run, _ = captured(nonfinite="skip", accumulate=2)
    x, y = batch()
    for i in range(20):
        run.adamw_step(x * (torch.nan if i in (2, 3, 15) else 1.0), y, lr=0.01)

    assert (run.steps, run.skipped) == (9, 3)
    assert [e.captures for e in run.executors] == [1, 1]


@pytest.mark.slow
def test_more_sizes_than_executors_may_exist_are_not_all_captured():
    run, _ = captured(max_executors=2)
    for size in (5, 4, 3, 2):
        for _ in range(5):
            run.step(*batch(size), lr=0.1)

    assert sum(e.captures for e in run.executors) == 2
    assert "sizes beyond max_executors are not captured" in str(run.executors)


def test_without_capture_or_without_a_gpu_nothing_is_captured():
    assert ScalarTrainer(mlp_loss, mlp(), backend="compiled")._shared.compiled._graphs is None
    with pytest.raises(ValueError, match="capture is 1"):
        ScalarTrainer(mlp_loss, mlp(), capture=1)  # type: ignore[arg-type]


# -- the real thing ----------------------------------------------------------------------------------------------------


def on_gpu(**options: Any) -> ScalarTrainer:
    params = mlp(device="cuda")
    return ScalarTrainer(mlp_loss, params, backend="compiled", optimizer=AdamW(params, lr=0.01), **options)


@pytest.mark.gpu
def test_on_a_gpu_a_captured_run_is_the_direct_run():
    run, plain = on_gpu(), on_gpu(capture=False)
    for seed in range(10):
        inputs = [t.cuda() for t in batch(seed=seed)]
        for trainer in (run, plain):
            assert trainer.optimizer is not None
            trainer.optimizer.param_groups[0]["lr"] = 0.01 * (seed + 1)
        torch.testing.assert_close(run.train_step(*inputs), plain.train_step(*inputs), rtol=1e-5, atol=1e-6)

    (executor,) = run.executors
    assert (executor.captures, executor.replays, executor.note) == (1, 10 - WARM_UP, "")
    for p, q in zip(run.params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_a_captured_step_that_skips_does_not_synchronise():
    run = on_gpu(nonfinite="skip", max_norm=1.0)
    x, y = (t.cuda() for t in batch())
    for _ in range(WARM_UP + 2):
        run.train_step(x, y)
    assert run.optimizer is not None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(5):
            run.optimizer.param_groups[0]["lr"] = 0.001 * (i + 1)
            run.train_step(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert run.steps == WARM_UP + 7
