"""A time series whose rule changes halfway: windows chosen by purged validation, then a stream that is learned from.

    y[t] = a*y[t-1] + b*y[t-2] + c*tanh(2*u[t-1]) + noise,        u a slow driver that is seen too

At a planted moment (a, b, c) change. Nothing tells the model when. The variance of the noise is the least error there
can be.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from shaped import files, init
from shaped.backends import BackendName
from shaped.data import Batches, WindowSet, create_windows, dispatch, parse_window_sizes
from shaped.data.batches import mixed
from shaped.errors import ShapedError
from shaped.loop import Loop
from shaped.losses import mse
from shaped.params import ParamList
from shaped.recipes import Outcome, Settings
from shaped.trainer import ScalarTrainer
from shaped.workflow import CrossValidation, CrossValidator, CVConfig, Fold, OptimizerConfig
from shaped.workflow.assembly import make_optimizer
from shaped.workflow.online import ADWIN, KSWIN, Composite, LossDelta, OnlineLearner, PageHinkley, Trigger, WeightNorm

ROWS, KNOWN, DRIFT = 4800, 2400, 3200  # rows in all; those known at first; where the rule changes
NOISE = 0.3
RULES = ((0.6, -0.3, 1.0), (-0.5, 0.2, -1.0))  # a, b, c before and after
SIZES, FOLDS, EPOCHS, BATCH, HIDDEN = "1, 2, 5, 20", 4, 16, 64, 32
OPTIMIZERS: Mapping[
    str, tuple[float, dict[str, Any]]
] = {  # a learning rate that suits each here, and what else it is given
    "sgd": (0.05, {"momentum": 0.9}),
    "adam": (3e-3, {}),
    "adamw": (3e-3, {"weight_decay": 0.01}),
    "lion": (5e-4, {"weight_decay": 0.05}),
    "muon": (3e-3, {"weight_decay": 0.01}),
}
STREAM = 8  # rows in a batch of the stream


class Forecaster(ParamList):
    w1: Float[Tensor, "inputs hidden"] = init.fan_in(gain=2.0)
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, " hidden"] = init.normal(0.1)


def predict(p: Forecaster, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, " batch"]:
    return F.gelu(x @ p.w1 + p.b1) @ p.w2


def loss(p: Forecaster, x: Float[Tensor, "batch inputs"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return mse(predict(p, x), y)


def direction(p: Forecaster, x: Tensor, y: Tensor) -> Tensor:
    """Share of rows whose sign is right."""
    return ((predict(p, x) > 0) == (y > 0)).float().mean()


def make_series(seed: int) -> Float[Tensor, "time 2"]:
    """The driver and the series, row by row."""
    generator = Generator().manual_seed(seed % 2**63)
    shocks = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
    u, y = [0.0, 0.0], [0.0, 0.0]
    for t in range(2, ROWS):
        a, b, c = RULES[t >= DRIFT]
        u.append(0.9 * u[-1] + 0.44 * float(shocks[t, 0]))
        y.append(a * y[-1] + b * y[-2] + c * float(torch.tanh(torch.tensor(2 * u[-2]))) + NOISE * float(shocks[t, 1]))
    return torch.tensor([u, y]).T.float()


def train(settings: Settings) -> Outcome:
    """Choose a window, show that nothing leaks, then go along the stream; print figures and save a picture."""
    settings.only_alone("series")
    folder = settings.folder("series", by_epochs=True)
    if (folder / "versions").exists() and not settings.resume:
        raise ShapedError(f"{folder} has a run: go on with it by --resume, or choose another --out")
    _figure_class()  # what could fail after the training fails before it
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    series = make_series(settings.seed).to(settings.device)
    tables = validate(series[:KNOWN], settings, folder)
    window = min(tables, key=lambda size: tables[size].mean["loss"])
    print(
        "window  "
        + "  ".join(f"{size}: {t.mean['loss']:.3f} ± {t.deviation['loss']:.3f}" for size, t in tables.items())
    )
    print(f"chosen: {window} rows; the noise alone is {NOISE**2:.3f}\n{tables[window]}")
    chance = leak_check(series[:KNOWN], window, settings, folder)
    stream = go_along(series, window, tables[window].mean["loss"], settings, folder)
    picture = draw(folder / "series.png", tables, stream)
    print(f"{time.perf_counter() - began:.0f} s in all; {picture}")
    return Outcome(
        {**chance, **stream.figures, "window": float(window)}, (picture, folder / "versions" / "audit.jsonl")
    )


# -- which window ------------------------------------------------------------------------------------------------------


def windows(series: Tensor, size: int) -> WindowSet:
    """Windows over driver and series, each with the next value of the series as its label."""
    return create_windows(series, size, horizon=1, keep_label=True)


def fit(inputs: Tensor, labels: Tensor, settings: Settings, seed: int, backend: BackendName = "eager") -> Loop:
    """A forecaster trained for some epochs. Eager: a compile for each fold would take longer than its training."""
    params = Forecaster.init(inputs=inputs.shape[1], hidden=HIDDEN, seed=seed, device=settings.device)
    optimizer = make_optimizer(OptimizerConfig(settings.optimizer, *OPTIMIZERS[settings.optimizer]), params)
    keep = settings.keep and backend != "eager"
    trainer = ScalarTrainer(loss, params, backend=backend, optimizer=optimizer, keep=keep)
    loop = Loop(trainer, metrics={"direction": direction})
    epochs = EPOCHS if settings.epochs is None else settings.epochs
    loop.run_epochs(Batches(inputs, labels, batch_size=BATCH, seed=seed), epochs)
    return loop


def cross_validate(made: WindowSet, settings: Settings, folder: Path) -> CrossValidation:
    """Folds in time's order, without a window that shares a row with those it is tested on."""

    def one(fold: Fold) -> Loop:
        inputs, labels = fold.train
        return fit(inputs, labels, settings, fold.seed)

    config = CVConfig("time_series", FOLDS, purge_gap=5)
    validator = CrossValidator(one, config, seed=settings.seed, folder=folder)
    return validator.run(dispatch(loss, made.inputs), made.labels, spans=made.spans)


def validate(series: Tensor, settings: Settings, folder: Path) -> dict[int, CrossValidation]:
    """A table of folds for each window size."""
    sizes = parse_window_sizes(SIZES)
    return {size: cross_validate(windows(series, size), settings, folder / f"window-{size}") for size in sizes}


def leak_check(series: Tensor, size: int, settings: Settings, folder: Path) -> dict[str, float]:
    """The same model where there is nothing to learn: the series' values in another order, the driver as it was."""
    order = torch.randperm(len(series), generator=Generator().manual_seed(mixed(settings.seed, 1))).to(series.device)
    values = series[order, 1] - series[:, 1].median()  # as many above 0 as below, so a guess is right half the time
    shuffled = torch.stack([series[:, 0], values], dim=1)
    honest = cross_validate(windows(shuffled, size), settings, folder / "shuffled")
    inside = create_windows(shuffled, size, horizon=0, keep_label=True)
    leaking = cross_validate(inside, settings, folder / "leaking")
    count = sum(fold.test for fold in honest.folds)
    half = 1.96 * 0.5 / count**0.5
    found = {"shuffled": honest.mean["direction"], "leaking": leaking.mean["direction"], "chance": half}
    print(f"shuffled values: direction {found['shuffled']:.3f}; chance is {0.5 - half:.3f} to {0.5 + half:.3f} "
        f"(95 % of {count} rows); with the label inside its window it would be {found['leaking']:.3f}")  # fmt: skip
    return found


# -- the stream --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """Errors along the stream, batch by batch, and what happened where."""

    learned: Sequence[float]
    frozen: Sequence[float]
    drift: int  # the first batch of the new rule
    noticed: Sequence[int]
    updated: Sequence[int]
    figures: Mapping[str, float]


def go_along(series: Tensor, size: int, usual: float, settings: Settings, folder: Path) -> Stream:
    """Learn on what is known, then predict each batch of the rest before it is learned from.

    A drift is ten usual errors more than usual, added up; the usual one is that of the validation.
    """
    made = windows(series, size)
    inputs, rows = dispatch(loss, made.inputs), made.spans[:, 1]
    known = rows < KNOWN
    trainer = fit(inputs[known], made.labels[known], settings, settings.seed, settings.backend).trainer
    print(trainer.proof)
    frozen = trainer.get_params()
    detector = PageHinkley(min_instances=10, delta=usual / 2, threshold=10 * usual, mode="up")
    learner = OnlineLearner(
        trainer,
        folder / "versions",
        trigger=Trigger(detector, every=10, min_samples=10, cooldown=4),
        validator=Composite(LossDelta(most=0.01), WeightNorm(change=3.0)),
        recent=40,
        passes=12,
        fresh=8,
    )
    record = _Record(folder / "stream.jsonl", learner.observed)
    batches = list(zip(inputs[~known].split(STREAM), made.labels[~known].split(STREAM), strict=True))
    with closing(learner):
        for x, y in batches[learner.observed :]:  # resumed: those before were learned from already
            with torch.no_grad():
                still = float(mse(predict(frozen, x), y))  # type: ignore[arg-type]
            seen = learner.observe(x, y)
            accepted = seen.update is not None and seen.update.accepted
            record.add({"learned": seen.loss, "frozen": still, "drift": seen.drift, "updated": accepted})
    return summary(record.lines, learner)


def summary(lines: Sequence[Mapping[str, Any]], learner: OnlineLearner) -> Stream:
    """The figures of a stream, printed."""
    at = (DRIFT - KNOWN) // STREAM
    learned, frozen = ([float(line[name]) for line in lines] for name in ("learned", "frozen"))
    noticed = [i for i, line in enumerate(lines) if line["drift"]]
    updated = [i for i, line in enumerate(lines) if line["updated"]]
    delay = next((i - at + 1 for i in noticed if i >= at), len(lines) - at)
    last = len(lines) - (len(lines) - at) // 2
    figures = {
        "delay": float(delay),
        "false_alarms": float(sum(i < at for i in noticed)),
        "later_alarms": float(max(sum(i >= at for i in noticed) - 1, 0)),
        "before": _mean(learned[:at]),
        "frozen_before": _mean(frozen[:at]),
        "struck": _mean(learned[at : at + delay]),
        "frozen_struck": _mean(frozen[at : at + delay]),
        "recovered": _mean(learned[last:]),
        "frozen_after": _mean(frozen[last:]),
        "updates": float(learner.accepted),
        "refused": float(learner.refused),
    }
    for name, other in (("adwin", ADWIN(clock=1)), ("kswin", KSWIN(seed=0, window_size=60, stat_size=20))):
        alarms = [i for i, error in enumerate(frozen) if other.update(error)]
        figures[name] = float(next((i - at + 1 for i in alarms if i >= at), len(lines) - at))
    report(figures, at)
    return Stream(learned, frozen, at, noticed, updated, figures)


def report(f: Mapping[str, float], at: int) -> None:
    """Print a stream's figures."""
    print(f"drift at batch {at}, noticed after {f['delay']:.0f} batches of {STREAM} rows; alarms besides: "
        f"{f['false_alarms']:.0f} before, {f['later_alarms']:.0f} after")  # fmt: skip
    print(f"on the errors of the model that is never updated, ADWIN needs {f['adwin']:.0f} batches "
        f"and KSWIN {f['kswin']:.0f}")  # fmt: skip
    print(f"updates {f['updates']:.0f} accepted, {f['refused']:.0f} refused")
    print("squared error   before  until noticed  second half after")
    print(f"  online        {f['before']:6.3f}  {f['struck']:13.3f}  {f['recovered']:17.3f}")
    print(f"  never updated {f['frozen_before']:6.3f}  {f['frozen_struck']:13.3f}  {f['frozen_after']:17.3f}")
    print(f"  the noise     {NOISE**2:6.3f}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


class _Record:
    """A JSON line for each batch; a resumed run keeps those that it does not learn from again."""

    def __init__(self, path: Path, keep: int) -> None:
        known = files.read(path).splitlines()[:keep] if os.path.lexists(path) else []
        self._path, self.lines = path, [json.loads(line) for line in known]
        files.replace(path, b"".join(line + b"\n" for line in known))

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        descriptor = files.open_regular(self._path, os.O_RDWR | os.O_APPEND)
        try:
            files.append(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)


# -- the picture -------------------------------------------------------------------------------------------------------


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ShapedError('a recipe plots with matplotlib: pip install "shaped-trainer[recipes]"') from None
    return Figure


def draw(path: Path, tables: Mapping[int, CrossValidation], stream: Stream) -> Path:
    """Errors by window size, and along the stream."""
    figure = _figure_class()(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.6))
    sizes = [str(size) for size in tables]
    means, spread = ([getattr(t, name)["loss"] for t in tables.values()] for name in ("mean", "deviation"))
    left.errorbar(sizes, means, yerr=spread, fmt="o", capsize=4)
    left.axhline(NOISE**2, color="grey", linestyle=":")
    left.set(xlabel="rows in a window", ylabel="squared error", title="purged validation")
    for name, values, colour in (("never updated", stream.frozen, "C1"), ("online", stream.learned, "C0")):
        right.plot(_smooth(values), label=name, color=colour, linewidth=1.6)
    right.axvline(stream.drift, color="black", linewidth=1, label="the rule changes")
    for i, batch in enumerate(stream.noticed):
        right.axvline(batch, color="C3", linestyle="--", linewidth=1, label="drift noticed" if not i else None)
    right.plot(stream.updated, [0.06] * len(stream.updated), "|", color="C2", label="update accepted")
    right.axhline(NOISE**2, color="grey", linestyle=":", label="the noise alone")
    right.set(yscale="log", xlabel=f"batch of {STREAM} rows", ylabel="squared error, mean of 9", title="the stream")
    right.legend(fontsize=8, ncols=2)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    files.replace_by(path, lambda temporary: figure.savefig(temporary, dpi=120))
    return path


def _smooth(values: Sequence[float], width: int = 9) -> list[float]:
    return [_mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
