"""What people see of a run: logs, curves, progress, and where a NaN came from."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shaped import Loop, NonFiniteError, ParamList, ScalarTrainer, ShapedError
from shaped.loop import Curves, JsonLines, LogTo, Progress, TensorBoard, first_nonfinite, plot_run, read_log
from shaped.losses import add_loss, with_terms
from shaped.optim import AdamW
from tests.models import batch, mlp, mlp_loss

DATA = [batch(seed=seed) for seed in range(4)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trainer() -> ScalarTrainer:
    params = mlp()
    return ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.01))


def test_a_log_is_a_line_of_json_for_each_record(trainer: ScalarTrainer, tmp_path: Path) -> None:
    loop = Loop(trainer)
    log = loop.attach(JsonLines(tmp_path / "run" / "log.jsonl", every=2))
    loop.every_n_steps(4, lambda loop: loop.evaluate(DATA[:1]), name="validate")
    loop.run_epochs(DATA, 2)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]

    assert [line["step"] for line in lines] == [2, 4, 4, 6, 8, 8]
    assert set(lines[0]) == {"step", "epoch", "seconds", "loss", "loss_average", "lr", "step_ms"}
    assert "validation/loss" in lines[2]
    series = read_log(log.path)
    assert [step for step, _ in series["loss"]] == [2, 4, 6, 8]


def test_a_log_is_read_with_the_later_of_two_records_and_without_what_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "lr": "nan"}\nnot json\n[1]\n'
        '{"step": 1, "loss": 1.0}\n{"step": 3, "lo'
    )

    assert read_log(tmp_path / "log.jsonl") == {"loss": [(1, 1.0), (2, 2.0)]}
    with pytest.raises(ShapedError, match="no log "):
        read_log(tmp_path / "absent.jsonl")


def test_the_terms_of_a_loss_are_logged_apart(tmp_path: Path) -> None:
    class Line(ParamList):
        w: Float[Tensor, " inputs"]

    @with_terms
    def loss(p: Line, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
        add_loss("decay", p.w.square())
        return (x @ p.w - 1).square().mean()

    line = ScalarTrainer(loss, Line.init(inputs=3))
    loop = Loop(line, lambda x: line.step(x, lr=0.0))
    log = loop.attach(JsonLines(tmp_path / "log.jsonl", every=1, terms=True))
    loop.run_steps([torch.ones(2, 3)], 1)
    found = json.loads(log.path.read_text())

    assert found["loss/main"] + found["loss/decay"] == pytest.approx(found["loss"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_warns_once_and_training_goes_on(trainer: ScalarTrainer) -> None:
    loop = Loop(trainer)
    log = JsonLines("/dev/null", every=1)
    log.path = Path("/dev/full")
    loop.attach(log)
    with pytest.warns(UserWarning, match="the log /dev/full cannot be written and is left out") as warned:
        loop.run_epochs(DATA, 2)

    assert (loop.step, len(warned)) == (8, 1)


def test_a_file_that_is_no_log_is_left_as_it_is(trainer: ScalarTrainer, tmp_path: Path) -> None:
    other = tmp_path / "data.csv"
    other.write_text("a,b\n1,2")
    loop = Loop(trainer)
    loop.attach(JsonLines(other, every=1))
    with pytest.warns(UserWarning, match="cannot be written and is left out .* it is there already, and no log of a"):
        loop.run_epochs(DATA, 1)

    assert other.read_text() == "a,b\n1,2"


def test_curves_are_drawn_from_the_log_when_the_run_is_over(trainer: ScalarTrainer, tmp_path: Path) -> None:
    loop = Loop(trainer)
    log = loop.attach(JsonLines(tmp_path / "log.jsonl", every=1))
    curves = loop.attach(Curves(log.path))
    loop.run_epochs(DATA, 1)

    assert curves.picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert plot_run(tmp_path, tmp_path / "again.png").stat().st_size > 1000
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ShapedError, match=r"log\.jsonl has no figures"):
        plot_run(tmp_path)


def test_tensorboard_gets_every_record(trainer: ScalarTrainer, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = Loop(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.attach(TensorBoard(tmp_path, every=2))
        loop.run_epochs(DATA, 1)
        events = EventAccumulator(str(tmp_path)).Reload()

    assert [event.step for event in events.Scalars("loss")] == [2, 4]


def test_a_service_gets_every_record_and_what_fails_there_is_said_once(trainer: ScalarTrainer) -> None:
    rows: list[tuple[int, set[str]]] = []

    def send(values: dict[str, float], step: int) -> None:
        if len(rows) == 3:
            raise RuntimeError("the service is gone")
        rows.append((step, set(values)))

    loop = Loop(trainer)
    loop.attach(LogTo(send, every=2))
    loop.on_epoch(lambda loop: loop.evaluate(DATA))
    with pytest.warns(UserWarning, match="send cannot be written and is left out from here on: the service is gone"):
        loop.run_epochs(DATA, 2)

    own = {"loss", "loss_average", "lr", "step_ms"}
    assert rows[:2] == [(2, own - {"lr"}), (4, own - {"lr"})] or rows[:2] == [(2, own), (4, own)]
    assert rows[2] == (4, {"validation/loss"})
    assert loop.step == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline_keeps_every_record(
    trainer: ScalarTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="digits", mode="offline", dir=tmp_path)
    loop = Loop(trainer)
    loop.attach(LogTo(run.log, every=2))
    loop.on_epoch(lambda loop: loop.evaluate(DATA))
    loop.run_epochs(DATA, 1)
    run.finish()
    wandb.teardown()  # its process writes the file, and is not waited for otherwise
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()

    assert content.count(b"validation/loss") >= 1
    assert content.count(b"loss_average") >= 2
    assert loop.step == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_folder_keeps_every_record(
    trainer: ScalarTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    loop = Loop(trainer)
    loop.attach(LogTo(mlflow.log_metrics, every=2))
    loop.on_epoch(lambda loop: loop.evaluate(DATA))
    with mlflow.start_run() as run:
        loop.run_epochs(DATA, 1)

    def kept(name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, name)]

    assert kept("validation/loss") == [(4, loop.latest["validation/loss"])]
    assert [step for step, _ in kept("loss")] == [2, 4]


def test_without_a_terminal_progress_is_plain_lines(trainer: ScalarTrainer) -> None:
    out = io.StringIO()
    loop = Loop(trainer)
    loop.attach(Progress("mlp", seconds=1e-9, file=out))
    loop.run_epochs(DATA, 1)
    lines = out.getvalue().splitlines()

    assert len(lines) == 5
    assert lines[0].startswith("mlp: step 1 of 4  loss ")
    assert lines[0].endswith(" s left")
    assert lines[-1].startswith("mlp: step 4 of 4, loss ")


def test_on_a_terminal_progress_is_a_bar(trainer: ScalarTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    loop = Loop(trainer)
    loop.attach(Progress("mlp", file=out))
    loop.run_epochs(DATA, 1)

    assert "4/4" in out.getvalue()
    assert "━" in out.getvalue()


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_output_that_is_gone_does_not_end_the_training(trainer: ScalarTrainer) -> None:
    closed = io.StringIO()
    closed.close()
    for file in (Broken(), closed, io.TextIOWrapper(io.BytesIO(), encoding="cp1252")):
        loop = Loop(trainer)
        loop.attach(Progress("λ", seconds=1e-9, file=file))
        loop.run_epochs(DATA, 1)

        assert loop.step == 4


# -- where a NaN comes from ----------------------------------------------------------------------------------------


class Scale(ParamList):
    w: Float[Tensor, " inputs"]


def logarithm(p: Scale, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
    h = x * p.w
    y = torch.log(h)
    return y.square().mean()


def root(p: Scale, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
    h = (x * p.w).square().sum(1)
    return torch.sqrt(h).mean()


def masked(p: Scale, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
    h = (x * p.w).masked_fill(x < 0, float("-inf"))
    return -F.log_softmax(h, 1)[:, 0].mean()


def scale(value: float = 1.0) -> Scale:
    return Scale(torch.full((3,), value))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_the_first_operation_is_named_at_its_source_line(backend: str) -> None:
    made = ScalarTrainer(logarithm, scale(-1.0), backend=backend)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError) as caught:
        Loop(made, lambda x: made.step(x, lr=0.1)).run_steps([torch.ones(2, 3)], 1)
    lines = str(caught.value).splitlines()

    assert lines[0] == "the loss is nan at step 1; nothing was updated"
    assert lines[1] == "  first made by log, of (2, 3): nan"
    assert lines[2].split(maxsplit=1)[1] == "y = torch.log(h)"


def test_an_operation_whose_gradient_is_not_finite_is_named() -> None:
    made = ScalarTrainer(root, scale(0.0))
    origin = first_nonfinite(made, torch.ones(2, 3))

    assert origin is not None
    assert (origin.operation, origin.backward, origin.value) == ("sqrt", True, math.inf)
    assert origin.source is not None
    assert origin.source.text == "return torch.sqrt(h).mean()"
    assert str(origin).startswith("first made by the gradient of sqrt, of (2,): inf\n")


def test_what_is_given_is_named_and_an_infinity_that_is_meant_is_not() -> None:
    made = ScalarTrainer(masked, scale())
    x = torch.tensor([[1.0, -1.0, 2.0]])
    assert first_nonfinite(made, x) is None

    with torch.no_grad():
        made.params.w[1] = math.nan
    assert str(first_nonfinite(made, x)) == "first made by w, which is given, of (3,): nan"


# -- signals, in processes of their own ----------------------------------------------------------------------------

JOB = """
    import sys, time, torch
    from shaped import Checkpoints, Loop, ScalarTrainer
    from shaped.optim import AdamW
    from tests.models import batch, mlp, mlp_loss

    params = mlp()
    loop = Loop(ScalarTrainer(mlp_loss, params, optimizer=AdamW(params)))
    loop.attach(Checkpoints(sys.argv[1]))

    @loop.on_step
    def slow(loop):
        print(loop.step, flush=True)
        time.sleep(float(sys.argv[2]))

    loop.run_steps(lambda epoch: (batch(seed=i) for i in range(10_000)), 10_000)
"""


def job(folder: Path, pause: float) -> "subprocess.Popen[str]":
    (folder / "job.py").write_text(textwrap.dedent(JOB))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, str(folder / "job.py"), str(folder / "run"), str(pause)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_with_the_conventional_status(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = job(tmp_path, 0.01)
    process.send_signal(number)
    out, error = process.communicate(timeout=120)
    last = max(int(line) for line in ["1", *out.split()])

    assert process.returncode == 128 + number
    saved = f"step {last} is saved in {tmp_path / 'run'}; `resume` goes on from there"
    assert error == f"shaped: stopped by {signal.Signals(number).name} after step {last}: {saved}\n"
    assert [p.name for p in (tmp_path / "run").glob("step-*")] == [f"step-{last:08d}"]


@pytest.mark.slow
def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    process = job(tmp_path, 20.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)

    assert process.returncode == 143
    assert time.monotonic() - began < 10.0  # its step would take 20 s


@pytest.mark.slow
def test_two_processes_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    first = job(tmp_path, 0.05)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "run"), "0"]
    second: Any = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    first.kill()
    first.communicate()

    assert second.returncode == 1
    assert f"RunLocked: {tmp_path / 'run'} is in use by the process with pid {first.pid}" in second.stderr
