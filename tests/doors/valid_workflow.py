"""A valid call of what stands above the loop: data, adapters, eight bits, search, the workflow, and the kernels."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import shaped.workflow as flow
from shaped import ParamList, ScalarTrainer, architecture, data, fp8, lora
from tests.doors.valid_training import (
    BATCH,
    MLP,
    SIZES,
    X,
    Y,
    by_place,
    like,
    loop,
    mlp,
    mlp_loss,
    of,
    plain,
    trainer,
    valid,
)

# -- shaped.data ------------------------------------------------------------------------------------------------------

LIST = [(X, Y)]


def iterated(thing: Callable[[], Any]) -> Callable[..., Any]:
    """An iterator, begun."""
    return like(type(thing()).iterate, lambda **given: next(thing().iterate(**given), None))


plain("Batches", by_place(data.Batches, "tensors"), lambda: {
    "tensors": X, "batch_size": 2, "seed": 0, "shuffle": True, "drop_last": False,
})  # fmt: skip
plain("Batches.iterate", iterated(lambda: data.Batches(X, batch_size=2)), lambda: {"epoch": 0, "start": 0})
of("Batches", lambda: data.Batches(X, batch_size=2), "order", lambda: {"epoch": 0})
plain("digits", like(data.digits, lambda **given: next(data.digits(**given))), lambda: {
    "batch_size": 4, "seed": 0, "split": "train", "epoch": 0, "drop_last": False,
})  # fmt: skip
plain("Feed", data.Feed, lambda: {"data": LIST, "state": None, "used": False})
plain("Local", data.Local, lambda: {"data": LIST})
plain("prefetch", data.prefetch, lambda: {"data": LIST, "device": "cpu", "depth": 2})
plain("prefetch.iterate", iterated(lambda: data.prefetch(LIST)), lambda: {"epoch": 0, "start": 0})
TEXT = torch.arange(100, dtype=torch.uint8)
WINDOWS: dict[str, Any] = {"batch_size": 2, "length": 4, "batches": 3}
plain("Windows", data.Windows, lambda: {"text": TEXT, **WINDOWS, "seed": 0, "device": "cpu"})
plain("Windows.iterate", iterated(lambda: data.Windows(TEXT, **WINDOWS)), lambda: {"epoch": 0, "start": 0})
plain("stdlib_text", data.stdlib_text, lambda: {"split": "validation"})
SERIES = torch.rand(9, 2)
plain("create_windows", data.create_windows, lambda: {
    "data": SERIES, "window": 3, "label": -1, "horizon": 0, "stride": 1, "keep_label": False,
})  # fmt: skip
plain("dispatch", data.dispatch, lambda: {"model": windowed, "x": SERIES, "flat": "all"})


def windowed(x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
    return x.sum(-1)


for function in (data.flat_windows, data.last_rows):
    plain(function.__name__, function, lambda: {"x": torch.rand(2, 3, 4)})
plain("single_windows", data.single_windows, lambda: {"x": SERIES})
plain("parse_window_sizes", data.parse_window_sizes, lambda: {"text": "3,4"})

# -- shaped.lora, shaped.fp8 ------------------------------------------------------------------------------------------


@cache
def skipping() -> ScalarTrainer:
    return ScalarTrainer(fp8.with_scale(mlp_loss), mlp(), strategy=fp8.unscaled, nonfinite="skip")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def injected() -> nn.Module:
    module = net()
    lora.inject(module, ["0"], rank=2)
    return module


ADAPTER = {"targets": ["w1"], "rank": 2, "alpha": 2.0, "seed": 0, "base": "float"}
plain("adapt", lora.adapt, lambda: {"loss": mlp_loss, "params": mlp(), **ADAPTER})
plain("inject", lora.inject, lambda: {"module": net(), **ADAPTER, "targets": ["0"]})
plain("LoraLinear", lora.LoraLinear, lambda: {
    "layer": nn.Linear(4, 4), "rank": 2, "alpha": 2.0, "generator": torch.Generator(), "base": "float",
})  # fmt: skip
for merging in (lora.merge, lora.merged):
    plain(merging.__name__, merging, lambda: {"module": injected()})
plain("unmerge", lora.unmerge, lambda: {"module": lora.merged(injected())})
plain("quantise_nf4", lora.quantise_nf4, lambda: {"w": torch.rand(2, 64), "block": 64, "scale_block": None})
CODES = dict(zip(("codes", "scales"), lora.quantise_nf4(torch.rand(2, 64)), strict=True))
plain("dequantise_nf4", lora.dequantise_nf4, lambda: dict(CODES))


def _saved(folder: Path) -> Path:
    return lora.save_adapter(injected(), folder / "adapter")


valid("load_adapter", lambda folder: (lora.load_adapter, {"adapted": injected(), "folder": _saved(folder)}))
valid("read_adapter", lambda folder: (lora.read_adapter, {"folder": _saved(folder)}))
valid("save_adapter", lambda folder: (lora.save_adapter, {"adapted": injected(), "folder": folder / "adapter"}))
for rounding in (fp8.scale_of, fp8.to_fp8, fp8.round_to_fp8):
    plain(rounding.__name__, rounding, lambda: {"x": X, "dtype": torch.float8_e4m3fn})
plain("fp8_linear", fp8.fp8_linear,
      lambda: {"x": torch.rand(3, 4), "w": torch.rand(4, 2), "b": None, "product": "emulated"})  # fmt: skip
plain("convert", fp8.convert, lambda: {"module": net(), "targets": ("*",), "product": "emulated"})
plain("LossScaler", fp8.LossScaler, lambda: {
    "scale": 8.0, "interval": 10, "growth": 2.0, "backoff": 0.5, "floor": 1.0, "device": None,
})  # fmt: skip
of("LossScaler", fp8.LossScaler, "take", lambda: {"step": skipping().adamw_step, "lr": 0.1, **BATCH})
plain("with_scale", fp8.with_scale, lambda: {"loss": mlp_loss})
of("LossScaler", fp8.LossScaler, "update", lambda: {"finite": True})
of("LossScaler", fp8.LossScaler, "load_state_dict", lambda: {"state": fp8.LossScaler().state_dict()})

# -- shaped.architecture ----------------------------------------------------------------------------------------------


class Supernet(ParamList):
    a: Float[Tensor, "pixels classes"]
    b: Float[Tensor, "pixels classes"]
    which: Float[Tensor, " 2"]


def super_loss(p: Supernet, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return architecture.mixed("which", p.which, {"a": lambda: x @ p.a, "b": lambda: x @ p.b}).square().mean()


CHOICES = [architecture.Choice("which", {"a": ["a"], "b": ["b"]})]


def supernet() -> Supernet:
    return Supernet.init(pixels=6, classes=2)


@cache
def _searched() -> tuple[architecture.Darts[Supernet], Any]:
    made = architecture.Darts(super_loss, supernet(), CHOICES)
    return made, made.state_dict()


def darts() -> architecture.Darts[Supernet]:
    made, state = _searched()
    made.load_state_dict(state)
    return made


plain("mixed", architecture.mixed, lambda: {
    "alpha": "which", "logits": torch.zeros(2), "operations": {"a": lambda: X, "b": lambda: X},
})  # fmt: skip
plain("Choice", architecture.Choice, lambda: {"alpha": "which", "operations": {"a": ["a"], "b": ["b"]}})
plain("Darts", architecture.Darts, lambda: {
    "loss": super_loss, "params": supernet(), "choices": CHOICES, "backend": "eager", "second_order": False,
})  # fmt: skip
of("Darts", darts, "step", lambda: {
    "training": [X], "validation": [X], "lr": 0.1, "alpha_lr": 0.1, "weight_decay": 0.0, "xi": None,
})  # fmt: skip
of("Darts", darts, "discretise", lambda: {"max_params": None})
of("Darts", darts, "load_state_dict", lambda: {"state": darts().state_dict()})
of("Architecture", lambda: darts().discretise(), "of", lambda: {"params": supernet()})

# -- shaped.workflow --------------------------------------------------------------------------------------------------

plain("BatchConfig", flow.BatchConfig, lambda: {
    "batch_size": 2, "shuffle": True, "drop_last": False, "seed": None, "extensions": {},
})  # fmt: skip
plain("OptimizerConfig", flow.OptimizerConfig, lambda: {"name": "adamw", "lr": 0.1, "options": {}})
plain("Part", flow.Part, lambda: {"name": "wine", "options": {}})
plain("StoppingConfig", flow.StoppingConfig, lambda: {"patience": 2, "alpha": 0.1, "min_delta": 0.0})
plain("WorkflowConfig", flow.WorkflowConfig, lambda: {
    "model": None, "data": None, "epochs": 1, "seed": 0, "backend": "eager", "device": "cpu",
    "optimizer": flow.OptimizerConfig(), "batches": flow.BatchConfig(), "schedule": None, "early_stopping": None,
    "metrics": (), "monitor": "validation/loss", "mode": "min", "restore_best": False, "max_norm": None,
    "folder": None, "extensions": {},
})  # fmt: skip
plain("from_dict", flow.from_dict, lambda: {"kind": flow.WorkflowConfig, "values": {"epochs": 1}})


def _toml(folder: Path) -> Path:
    path = folder / "job.toml"
    path.write_text("epochs = 1\n")
    return path


valid("read_config", lambda folder: (flow.read_config, {"kind": flow.WorkflowConfig, "path": _toml(folder)}))
plain("to_dict", flow.to_dict, lambda: {"config": flow.WorkflowConfig()})
plain("MetricComputer", lambda names=(), **own: flow.MetricComputer(*names, **own), lambda: {"mse": lambda p, y: 0.0})
of("MetricComputer", flow.MetricComputer, "register", lambda: {"name": "own", "metric": lambda p, y: 0.0})
of("MetricComputer", lambda: flow.MetricComputer("mse"), "unregister", lambda: {"name": "mse"})
of("MetricComputer", lambda: flow.MetricComputer("mse"), "compute",
   lambda: {"predictions": torch.rand(3), "targets": torch.rand(3)})  # fmt: skip
of(
    "MetricComputer",
    lambda: flow.MetricComputer("mse"),
    "scored",
    lambda: {"predict": lambda p, x, y: x, "targets": -1},
)


def provider() -> flow.ModelProvider:
    return flow.ModelProvider(MLP, mlp_loss)


plain("ModelProvider", flow.ModelProvider, lambda: {
    "make": MLP, "loss": mlp_loss, "predict": None, "name": "", "defaults": None,
})  # fmt: skip
of("ModelProvider", provider, "create", lambda: {"seed": 0, "device": None, **SIZES})
of("ModelProvider", provider, "info", lambda: {"model": mlp()})
valid("ModelProvider.save", lambda folder: (provider().save, {
    "model": mlp(), "path": folder / "model", "sizes": None, "about": None,
}))  # fmt: skip
for method in ("load", "read_about"):
    valid(f"ModelProvider.{method}", lambda folder, method=method: (  # type: ignore[misc]
        getattr(provider(), method), {"path": provider().save(mlp(), folder / "model")},
    ))  # fmt: skip
SPACE = {"lr": flow.Real(0.001, 0.1)}
plain("Population", flow.Population, lambda: {
    "space": SPACE, "make": lambda values, seed: loop(), "train": lambda run, generation: 0.0, "size": 2,
    "generations": 1, "fraction": 0.2, "perturb": (0.8, 1.2), "direction": "min", "apply": lambda run, values: None,
    "seed": 0, "folder": None,
})  # fmt: skip


def population() -> flow.Population:
    return flow.Population(SPACE, lambda values, seed: loop(), lambda run, generation: 0.0, size=2, generations=1)


of("Population", population, "load_state_dict", lambda: {"state": population().state_dict()})
plain("ChunkedData", flow.ChunkedData, lambda: {"load": lambda i: None, "close": None})


def chunks() -> flow.ChunkedData:
    return flow.ChunkedData(lambda i: [LIST, None][i])


plain("ChunkedData.iterate", like(flow.ChunkedData.iterate, lambda **given: list(chunks().iterate(**given))),
      lambda: {"epoch": 0, "start": 0})  # fmt: skip
plain("GivenData", flow.GivenData, lambda: {"training": LIST, "validation": None, "metadata": None, "close": None})
plain("Registry", flow.Registry, lambda: {"kind": "things", "own": "math:sin"})


def registry() -> flow.Registry[Any]:
    return flow.Registry("things", own="math:sin")


of("Registry", registry, "register", lambda: {"name": "mine", "value": 3})
for method in ("unregister", "get", "origin", "about"):
    of("Registry", registry, method, lambda: {"name": "own"})
plain("Search", flow.Search, lambda: {
    "space": SPACE, "objective": lambda trial: 0.0, "strategy": "random", "trials": 2, "direction": "min", "seed": 0,
    "pruning": None, "startup": 2, "points": 2, "folder": None, "catch": (ArithmeticError,),
})  # fmt: skip


def search() -> flow.Search:
    return flow.Search(SPACE, lambda trial: 0.0, trials=2)


of("Trial", lambda: flow.Trial(search(), 0, {"lr": 0.1}), "follow", lambda: {"loop": loop()})
of("Trial", lambda: flow.Trial(search(), 0, {"lr": 0.1}), "report", lambda: {"value": 0.5})
of("Trial", lambda: flow.Trial(search(), 0, {"lr": 0.1}), "watch", lambda: {"monitor": "validation/loss"})
ERAS = [1, 1, 2, 2, 3]


def sequences() -> flow.SequenceProvider:
    return flow.SequenceProvider(ERAS, max_length=2)


plain("SequenceProvider", flow.SequenceProvider, lambda: {
    "eras": ERAS, "strategy": "consecutive", "max_length": 2, "count": None, "epochs": 2, "seed": 0,
})  # fmt: skip
for method in ("sequences", "rows"):
    of("SequenceProvider", sequences, method, lambda: {"epoch": 0})
of("SequenceProvider", sequences, "split", lambda: {"last": 1, "gap": 0})
plain(
    "SequenceProvider.batches",
    by_place(sequences().batches, "tensors"),
    lambda: {"tensors": torch.rand(5, 2)},
)
plain("Categorical", by_place(flow.Categorical, "choices", "more"), lambda: {"choices": "a", "more": "b"})
plain("Integer", flow.Integer, lambda: {"low": 1, "high": 4, "log": False})
plain("Real", flow.Real, lambda: {"low": 0.1, "high": 4.0, "log": False})
for kind in (flow.Real(0.1, 4.0), flow.Integer(1, 4), flow.Categorical("a", "b")):
    of(type(kind).__name__, lambda kind=kind: kind, "draw", lambda: {"generator": random.Random(0)})  # type: ignore[misc]
    of(type(kind).__name__, lambda kind=kind: kind, "grid", lambda: {"points": 2})  # type: ignore[misc]
of("Real", lambda: flow.Real(0.1, 4.0), "at", lambda: {"share": 0.5})
plain("CVConfig", flow.CVConfig, lambda: {
    "method": "k_fold", "folds": 2, "purge_gap": 0, "embargo": 0, "test_size": None, "shuffle": False, "seed": 0,
})  # fmt: skip
of("CVConfig", lambda: flow.CVConfig(folds=2), "splitter", lambda: {"spans": None})
plain("Purged", flow.Purged, lambda: {
    "splitter": flow.CVConfig(folds=2).splitter(), "gap": 0, "embargo": 0, "spans": None,
})  # fmt: skip
plain("split", flow.split, lambda: {
    "rows": 10, "how": "random", "test": 0.2, "validation": 0.2, "labels": None, "gap": 0, "seed": 0,
})  # fmt: skip
plain(
    "Split.take",
    by_place(flow.split(10).take, "tensors"),
    lambda: {"tensors": torch.rand(10, 2)},
)
plain("EarlyStopping", flow.EarlyStopping, lambda: {
    "patience": 2, "monitor": "validation/loss", "alpha": 0.1, "mode": "min", "min_delta": 0.0,
})  # fmt: skip
of("EarlyStopping", flow.EarlyStopping, "step", lambda: {"value": 0.5})
of("EarlyStopping", flow.EarlyStopping, "load_state_dict", lambda: {"state": flow.EarlyStopping().state_dict()})
TABLE_X, TABLE_Y = torch.rand(10, 2), torch.rand(10)
plain("Table", flow.Table, lambda: {"x": TABLE_X, "y": TABLE_Y, "features": ("a", "b"), "classes": ()})
plain("as_table", flow.as_table, lambda: {"features": TABLE_X, "target": TABLE_Y})
plain("TableProvider", flow.TableProvider, lambda: {
    "table": flow.Table(TABLE_X, TABLE_Y), "validation": 0.2, "training": None, "standardize": True, "seed": 0,
    "device": "cpu",
})  # fmt: skip


def tables() -> flow.TableProvider:
    return flow.TableProvider(flow.Table(TABLE_X, TABLE_Y))


of("TableProvider", tables, "tensors", lambda: {"rows": torch.tensor([0, 1])})
for method in ("training_data", "validation_data"):
    of("TableProvider", tables, method, lambda: {"batches": flow.BatchConfig()})
plain("CrossValidator", flow.CrossValidator, lambda: {
    "train": lambda fold: {"loss": 0.0}, "splitter": flow.CVConfig(folds=2), "seed": 0, "batch_size": None,
    "folder": None,
})  # fmt: skip


def crossed() -> flow.CrossValidator:
    return flow.CrossValidator(lambda fold: {"loss": 0.0}, flow.CVConfig(folds=2))


plain("CrossValidator.run",
      by_place(crossed().run, "tensors"),
      lambda: {"tensors": TABLE_X, "labels": None, "groups": None, "spans": None, "overlapping": False})  # fmt: skip
plain("TrainingWorkflow", flow.TrainingWorkflow, lambda: {
    "config": {"epochs": 1}, "model": provider(), "data": (LIST, LIST), "metrics": None,
})  # fmt: skip
plain("TrainingWorkflow.from_trainer", flow.TrainingWorkflow.from_trainer, lambda: {
    "trainer": trainer(), "training": LIST, "validation": None, "config": None, "predict": None, "metrics": None,
    "step": None, "schedule": None,
})  # fmt: skip


def workflow() -> flow.TrainingWorkflow:
    return flow.TrainingWorkflow.from_trainer(trainer(), LIST, LIST, config={"epochs": 1})


of("TrainingWorkflow", workflow, "validate", lambda: {"data": LIST})
of("TrainingWorkflow", workflow, "cancel", lambda: {"reason": "cancelled"})


def _initialised() -> flow.TrainingWorkflow:
    model = flow.ModelProvider(MLP, mlp_loss, defaults=SIZES)
    workflow = flow.TrainingWorkflow({"epochs": 1}, model=model, data=(LIST, LIST))
    workflow.initialize()
    return workflow


valid("TrainingWorkflow.save", lambda folder: (_initialised().save, {"path": folder / "model"}))
