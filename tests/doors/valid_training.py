"""A valid call of everything public that takes arguments: by name, how the callable and its arguments are made."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import shaped
import shaped.workflow as flow
from shaped import (
    Checkpoints,
    Loop,
    ParamList,
    ScalarTrainer,
    checkpoint,
    losses,
    metrics,
    optim,
)
from shaped import loop as looping
from shaped.optim import schedules
from tests.models import MLP as MLP
from tests.models import batch
from tests.models import mlp as mlp
from tests.models import mlp_loss as mlp_loss

Made = tuple[Callable[..., Any], dict[str, Any]]
TABLE: dict[str, Callable[[Path], Made]] = {}
X, Y = batch()
SIZES = {"pixels": 6, "hidden": 8, "classes": 3}


def valid(name: str, make: Callable[[Path], Made]) -> None:
    TABLE[name] = make


def plain(name: str, function: Callable[..., Any], arguments: Callable[[], dict[str, Any]]) -> None:
    TABLE[name] = lambda folder: (function, arguments())


def of(name: str, thing: Callable[[], Any], method: str, arguments: Callable[[], dict[str, Any]]) -> None:
    TABLE[f"{name}.{method}"] = lambda folder: (getattr(thing(), method), arguments())


def like(public: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A way to call something public, with its annotations."""
    call.__wrapped__ = public.__init__ if isinstance(public, type) else public  # type: ignore
    return call


def by_place(call: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A call whose last argument by position is one of many."""
    return like(call, lambda **given: call(*[given.pop(name) for name in names], **given))


@cache
def _proved() -> tuple[ScalarTrainer, Any]:
    params = mlp()
    made = ScalarTrainer(mlp_loss, params, optimizer=optim.AdamW(params, lr=0.01))
    return made, made.state_dict()


def trainer() -> ScalarTrainer:
    made, state = _proved()
    made.load_state_dict(state)
    return made


def loop() -> Loop:
    return Loop(trainer())


def optimizer() -> optim.AdamW:
    made = optim.AdamW([nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))], lr=0.1)
    for p in made.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    return made


def averaging() -> optim.AdamW:
    made = optim.AdamW([nn.Parameter(torch.ones(2))], ema_decay=0.9)
    made.param_groups[0]["params"][0].grad = torch.ones(2)
    made.step()
    return made


# -- shaped -----------------------------------------------------------------------------------------------------------

plain("ScalarTrainer", ScalarTrainer, lambda: {
    "loss": mlp_loss, "params": mlp(), "backend": "eager", "optimizer": None, "assume": (), "static": (),
    "max_executors": 20, "max_norm": None, "nonfinite": "raise", "accumulate": 1, "autocast": None, "check": True,
    "allow_unused": False, "sizes": "auto", "samples": None, "capture": True, "verify": True, "strategy": None,
    "save_frozen": True,
})  # fmt: skip
BATCH = {"x": X, "y": Y}
for method in ("forward", "count", "backward", "loss_and_backward", "train_step", "compare_backends"):
    of("ScalarTrainer", trainer, method, lambda: dict(BATCH))
of("ScalarTrainer", trainer, "train_steps", lambda: {"batches": [(X, Y)]})
of("ScalarTrainer", trainer, "step", lambda: {**BATCH, "lr": 0.1})
of("ScalarTrainer", trainer, "adam_step", lambda: {**BATCH, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8})
of("ScalarTrainer", trainer, "adamw_step",
   lambda: {**BATCH, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1})  # fmt: skip
of("ScalarTrainer", trainer, "with_backend", lambda: {"backend": "eager"})
of("ScalarTrainer", lambda: trainer().with_backend("auto"), "precompile", lambda: {"method": "nothing", "batch": 3})
of("ScalarTrainer", trainer, "save_program", lambda: {"path": "a.program"})
of("ScalarTrainer", trainer, "load_program", lambda: {"path": "a.program", "loss": mlp_loss, "params": mlp()})
of("ScalarTrainer", trainer, "state_dict", lambda: {"parts": False})
of("ScalarTrainer", trainer, "with_frozen", lambda: {"paths": ()})
of("ScalarTrainer", trainer, "load_state_dict", lambda: {"state": trainer().state_dict()})
plain("prove", shaped.prove, lambda: {"fn": mlp_loss, "assume": (), "static": ()})
of("Proof", lambda: trainer().proof, "at", lambda: {"sizes": {"batch": 5, **SIZES}})
of("Proof", lambda: trainer().proof, "check", lambda: {"sizes": {"batch": 5}})
of("Proof", lambda: trainer().proof, "graph_at", lambda: {"sizes": {"batch": 5, **SIZES}})
plain("dims", shaped.dims, lambda: {"a": "b"})
plain("carry", shaped.carry, lambda: {"state": X})
plain("ParamList", MLP, lambda: {**dict(zip(mlp().names, mlp(), strict=True)), "requires_grad": None})
plain("ParamList.init", MLP.init, lambda: {
    "seed": 0, "device": None, "dtype": None, "frozen": (), "pixels": 2, "hidden": 2, "classes": 2,
})  # fmt: skip
plain("ParamList.from_module", ParamList.from_module, lambda: {"module": nn.Linear(2, 3)})
plain("ParamList.layout", MLP.layout, dict)
of("ParamList", mlp, "to", lambda: {"device": "cpu", "dtype": None})
of("ParamList", mlp, "set_values", lambda: {"other": mlp()})
of("ParamList", mlp, "with_frozen", lambda: {"paths": ("w1",)})
of("ParamList", mlp, "like", lambda: {"tensors": list(mlp())})
valid("Checkpoints", lambda folder: (Checkpoints, {
    "folder": folder, "every": 2, "keep": 3, "best": None, "mode": "min", "on_failure": "raise",
}))  # fmt: skip


def _checkpoints(method: str, arguments: Callable[[], dict[str, Any]]) -> None:
    def make(folder: Path) -> Made:
        kept, run = Checkpoints(folder), loop()
        run.run_steps([(X, Y)], 1)
        kept.save(run)
        return getattr(kept, method), arguments()

    valid(f"Checkpoints.{method}", make)


_checkpoints("ask", lambda: {"loop": loop()})
_checkpoints("save", lambda: {"loop": loop()})
_checkpoints("path", lambda: {"step": 1})
_checkpoints("read", lambda: {"step": 1})
_checkpoints("resume", lambda: {"loop": loop(), "step": 1, "strict": False})
_checkpoints("mean", lambda: {"like": mlp(), "n": 1})

# -- shaped.loop ------------------------------------------------------------------------------------------------------

plain("Loop", Loop, lambda: {
    "trainer": trainer(), "step": None, "schedule": None, "metrics": None, "specs": None, "max_skips": 2,
    "leftover": "warn", "signals": True,
})  # fmt: skip
for method in ("run_steps", "run_to_step", "run_epochs"):
    of("Loop", loop, method, lambda: {"data": [(X, Y)], "n": 1})
of("Loop", loop, "stop", lambda: {"reason": "why"})
of("Loop", loop, "after_update", lambda: {"name": "clip", "function": lambda params: None})
of("Loop", loop, "evaluate", lambda: {"data": [(X, Y)], "name": "validation"})
of("Loop", loop, "keep", lambda: {"name": "mean", "thing": metrics.MovingAverage()})
of("Loop", loop, "state_dict", lambda: {"parts": False})
of("Loop", loop, "load_state_dict", lambda: {"state": loop().state_dict()})
of("Loop", loop, "attach", lambda: {"listener": flow.EarlyStopping(2)})
of("Loop", loop, "record", lambda: {"values": {"validation/loss": 0.5}})
of("Loop", loop, "free_name", lambda: {"name": "hook"})
for method in ("on_start", "on_step", "on_epoch", "on_end"):
    of("Loop", loop, method, lambda: {"function": print, "name": "hook", "priority": 0})
HOOK = {"function": print, "name": "hook", "priority": 0}
for method in ("every_n_steps", "n_times"):
    of("Loop", loop, method, lambda: {"n": 2, **HOOK})
of("Loop", loop, "periodic", lambda: {"seconds": 1.0, "at_end": False, **HOOK})
of("Loop", loop, "exponential", lambda: {"start": 2, "factor": 1.5, "at_end": False, **HOOK})
valid("JsonLines", lambda folder: (looping.JsonLines, {"path": folder / "log", "every": 2, "terms": False}))
plain("LogTo", looping.LogTo, lambda: {"send": print, "every": 2, "terms": False})
valid("TensorBoard", lambda folder: (looping.TensorBoard, {"folder": folder / "tb", "every": 2, "terms": False}))


def _log(folder: Path) -> Path:
    path = folder / "log.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n')
    return path


valid("read_log", lambda folder: (looping.read_log, {"path": _log(folder)}))
valid("Curves", lambda folder: (looping.Curves, {"log": _log(folder), "seconds": 1.0}))
valid("plot_run", lambda folder: (looping.plot_run, {"run": _log(folder), "picture": folder / "curves.png"}))
plain("Progress", looping.Progress, lambda: {"title": "train", "seconds": 1.0, "file": None})
plain(
    "first_nonfinite",
    like(looping.first_nonfinite, lambda trainer: looping.first_nonfinite(trainer, X, Y)),
    lambda: {"trainer": trainer()},
)


def training_metrics() -> looping.TrainMetrics:
    return looping.TrainMetrics({"one": lambda returned, x, y: 1.0})


plain("TrainMetrics", looping.TrainMetrics, lambda: {
    "metrics": {"one": lambda returned, x, y: 1.0}, "name": "train",
})  # fmt: skip
of("TrainMetrics", training_metrics, "load_state_dict", lambda: {"state": training_metrics().state_dict()})

# -- shaped.checkpoint ------------------------------------------------------------------------------------------------


def _written(folder: Path) -> Path:
    return checkpoint.write_checkpoint(folder, "step-00000001", {"a": X}, {"step": 1})


valid("read_checkpoint", lambda folder: (checkpoint.read_checkpoint, {"path": _written(folder)}))
valid("write_checkpoint", lambda folder: (checkpoint.write_checkpoint, {
    "folder": folder, "name": "step-00000001", "state": {"a": X}, "about": {"step": 1}, "aside": None,
}))  # fmt: skip
plain("set_generator_states", checkpoint.set_generator_states, lambda: {"states": checkpoint.generator_states()})

# -- shaped.optim -----------------------------------------------------------------------------------------------------

plain("EMA", optim.EMA, lambda: {"params": mlp(), "decay": 0.9})
plain("SWA", optim.SWA, lambda: {"params": mlp()})
for kind in (optim.EMA, optim.SWA):
    of(kind.__name__, partial(lambda kind: kind(mlp()), kind), "load_state_dict",
       partial(lambda kind: {"state": kind(mlp()).state_dict()}, kind))  # fmt: skip
valid("averaged", lambda folder: (
    like(optim.averaged, lambda **given: optim.averaged(**given).__enter__()),
    {"optimizer": averaging()},
))  # fmt: skip
plain("flatten_parameters", optim.flatten_parameters,
      lambda: {"params": [nn.Parameter(torch.ones(2))], "grads": False})  # fmt: skip
plain("constant", schedules.constant, lambda: {"lr": 0.1})
plain("step_decay", schedules.step_decay, lambda: {"lr": 0.1, "every": 2, "factor": 0.5})
plain("exponential", schedules.exponential, lambda: {"lr": 0.1, "factor": 0.5})
plain("cosine", schedules.cosine, lambda: {"lr": 0.1, "total": 5, "end": 0.0})
plain("cosine_restarts", schedules.cosine_restarts, lambda: {"lr": 0.1, "period": 5, "factor": 2, "end": 0.0})
plain("warmup", schedules.warmup, lambda: {"lr": 0.1, "steps": 2})
plain("warmup_cosine", schedules.warmup_cosine, lambda: {"peak": 0.1, "warmup": 2, "total": 5, "end": 0.0})
plain("linear", schedules.linear, lambda: {"start": 0.1, "end": 0.0, "total": 5})
plain("one_cycle", schedules.one_cycle, lambda: {"peak": 0.1, "total": 5, "rise": 0.3, "start": 25.0, "end": 1e4})
plain("as_lambda", schedules.as_lambda, lambda: {"optimizer": optimizer(), "schedule": schedules.constant(0.1)})


def plateau() -> schedules.ReduceOnPlateau:
    return schedules.ReduceOnPlateau(optimizer())


plain("ReduceOnPlateau", schedules.ReduceOnPlateau, lambda: {
    "optimizer": optimizer(), "monitor": "validation/loss", "mode": "min", "factor": 0.1, "patience": 2,
})  # fmt: skip
of("ReduceOnPlateau", plateau, "load_state_dict", lambda: {"state_dict": plateau().state_dict()})

# -- shaped.losses, shaped.metrics ------------------------------------------------------------------------------------

A, B, WEIGHTS = torch.rand(4), torch.rand(4), torch.ones(4)
ENDS = {"mask": None, "weights": None}
REDUCED = {**ENDS, "reduction": "mean"}
for function in (losses.mse, losses.mae):
    plain(function.__name__, function, lambda: {"prediction": A, "target": B, **REDUCED})
plain("huber", losses.huber, lambda: {"prediction": A, "target": B, "delta": 1.0, **REDUCED})
plain("quantile", losses.quantile, lambda: {"prediction": A, "target": B, "q": 0.5, **REDUCED})
plain("binary_cross_entropy", losses.binary_cross_entropy, lambda: {"logits": A, "target": B, **REDUCED})
for loss in (losses.categorical_cross_entropy, losses.kl_divergence):
    plain(loss.__name__, loss,
          lambda: {"logits": A.view(2, 2), "target": B.view(2, 2).softmax(-1), **REDUCED})  # fmt: skip
plain("cross_entropy", losses.cross_entropy,
      lambda: {"logits": A.view(2, 2), "target": torch.tensor([0, 1]), "label_smoothing": 0.0, **REDUCED})  # fmt: skip
plain("contrastive", losses.contrastive, lambda: {
    "left": A.view(2, 2), "right": B.view(2, 2), "same": torch.tensor([True, False]), "margin": 1.0, **REDUCED,
})  # fmt: skip
plain("triplet", losses.triplet, lambda: {
    "anchor": A.view(2, 2), "positive": B.view(2, 2), "negative": A.view(2, 2), "margin": 1.0, **REDUCED,
})  # fmt: skip
plain("pearson", losses.pearson, lambda: {"prediction": A, "target": B, "eps": 1e-8, **ENDS})
plain("sharpe", losses.sharpe, lambda: {"positions": A, "returns": B, "periods": 1.0, "eps": 1e-8, **ENDS})


def _with_term(**given: Any) -> dict[str, Tensor]:
    def loss() -> Tensor:
        losses.add_loss(**given)
        return A.sum()

    return losses.loss_terms(losses.with_terms(loss))


plain("add_loss",
      like(losses.add_loss, _with_term),
      lambda: {"name": "l2", "value": A.sum()})  # fmt: skip
plain("loss_terms", losses.loss_terms, lambda: {"loss": lambda: A.sum()})
plain("with_terms", losses.with_terms, lambda: {"loss": mlp_loss})
of("Mean", metrics.Mean, "update", lambda: {"value": 1.0, "weight": 1.0})
plain("MovingAverage", metrics.MovingAverage, lambda: {"weight": 0.1})
of("MovingAverage", metrics.MovingAverage, "update", lambda: {"value": 1.0})
of("MovingAverage", metrics.MovingAverage, "load_state_dict",
   lambda: {"state": metrics.MovingAverage().state_dict()})  # fmt: skip
plain("Scored", metrics.Scored, lambda: {"metric": metrics.Mean(), "predict": lambda params, x, y: x.sum()})
plain("evaluate", metrics.evaluate, lambda: {
    "trainer": trainer(), "data": [(X, Y)], "metrics": None, "between": lambda: None,
})  # fmt: skip
plain("accuracy", metrics.accuracy, lambda: {"logits": A.view(2, 2), "target": torch.tensor([0, 1]), "mask": None})
