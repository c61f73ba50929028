"""Valid calls of the optimizers, of shaped_kernels, of exports and recipes; see valid_training.py."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import shaped_kernels as kernels
from shaped import export, optim, recipes
from tests.doors.valid_training import MLP, Made, averaging, mlp, of, optimizer, plain, trainer, valid

# -- shaped.optim -----------------------------------------------------------------------------------------------------

FUSED: dict[str, Any] = {
    "max_norm": None, "skip_nonfinite": False, "ema_decay": None, "zero_grads": False, "store": "nearest",
    "moments": None,
}  # fmt: skip
CAUTION = {**FUSED, "cautious": False, "cautious_decay": False}
TORCHS = {"foreach": None, "maximize": False, "differentiable": False, "fused": None}
ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}


def over(kind: Any, arguments: dict[str, Any]) -> Made:
    return kind, {"params": [nn.Parameter(torch.ones(2, 3))], **arguments}


GIVEN: dict[Any, dict[str, Any]] = {
    optim.Adam: {**ADAM, "amsgrad": False, **TORCHS, "capturable": False, "decoupled_weight_decay": False, **CAUTION},
    optim.AdamW: {**ADAM, "amsgrad": False, **TORCHS, "capturable": False, **CAUTION},
    optim.SGD: {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, **TORCHS,
                "decoupled_weight_decay": False, **FUSED},
    optim.Lion: {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False,
                 "decoupled_weight_decay": True, **CAUTION},
    optim.ScheduleFree: {**ADAM, "warmup_steps": 0, "maximize": False, **FUSED},
}  # fmt: skip
for kind, arguments in GIVEN.items():
    valid(kind.__name__, partial(lambda kind, arguments, folder: over(kind, arguments), kind, arguments))
plain("Muon", optim.Muon, lambda: {
    "trainer": trainer(), "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "roles": None,
    "others": None, "ns_coefficients": (3.0, -4.0, 2.0), "eps": 1e-7, "ns_steps": 5, "adjust_lr_fn": None, **FUSED,
})  # fmt: skip
plain("FusedOptimizer", optim.FusedOptimizer, lambda: {"params": [nn.Parameter(torch.ones(2))]})
plain("MultiOptimizer", optim.MultiOptimizer, lambda: {
    "parts": [kind([nn.Parameter(torch.ones(2))], lr=0.1) for kind in (optim.Adam, optim.SGD)],
})  # fmt: skip
plain("Options", optim.Options, lambda: dict(FUSED))


def grads() -> list[Tensor]:
    return [torch.ones(2, 3), torch.ones(3)]


of("FusedOptimizer", optimizer, "updates", lambda: {"params": None})
of("FusedOptimizer", optimizer, "read", lambda: {"params": None})
of("FusedOptimizer", optimizer, "update", lambda: {
    "grads": grads(), "params": None, "found_inf": None, "readings": None, "max_norm": None,
})  # fmt: skip
of("FusedOptimizer", optimizer, "step", lambda: {"closure": None})
of("FusedOptimizer", optimizer, "zero_grad", lambda: {"set_to_none": True})
of("FusedOptimizer", optimizer, "add_param_group", lambda: {"param_group": {"params": [nn.Parameter(torch.ones(2))]}})
of("FusedOptimizer", averaging, "load_state_dict", lambda: {"state_dict": averaging().state_dict()})
of("FusedOptimizer", optimizer, "set_lr", lambda: {"lr": 0.2})
of("FusedOptimizer", averaging, "load_flat_state_dict", lambda: {"flat": averaging().flat_state_dict()})


def ahead() -> Callable[..., Any]:
    made = optimizer()

    def enter(params: Any) -> None:
        with made.ahead(params):
            pass

    enter.__wrapped__ = made.ahead  # type: ignore[attr-defined]
    enter.__self__ = made  # type: ignore[attr-defined]
    return enter


valid("FusedOptimizer.ahead", lambda folder: (ahead(), {"params": None}))

# -- shaped_kernels ---------------------------------------------------------------------------------------------------


def lists(*names: str) -> dict[str, Any]:
    return {name: [torch.ones(2, 3)] for name in ("params", "grads", *names)}


for function in (kernels.adam_, kernels.adamw_):
    plain(function.__name__, function, lambda: {
        **lists("exp_avgs", "exp_avg_sqs"), "max_exp_avg_sqs": None, "step": 1, **ADAM, "maximize": False,
    })  # fmt: skip
plain("sgd_", kernels.sgd_, lambda: {
    **lists("momentum_buffers"), "lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False,
    "maximize": False, "fresh": False,
})  # fmt: skip
plain("lion_", kernels.lion_, lambda: {
    **lists("exp_avgs"), "lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False, "cautious": False,
})  # fmt: skip
ONE = torch.ones(2, 3)
plain("adam_reference", kernels.adam_reference, lambda: {
    "p": ONE, "g": ONE, "m": ONE, "v": ONE, "v_max": None, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8,
    "weight_decay": 0.0, "step": 1.0, "decoupled": True, "maximize": False, "cautious": False, "cautious_decay": False,
})  # fmt: skip
plain("sgd_reference", kernels.sgd_reference, lambda: {
    "p": ONE, "g": ONE, "buf": None, "lr": 0.1, "momentum": 0.9, "damp": 1.0, "weight_decay": 0.0, "nesterov": False,
    "maximize": False,
})  # fmt: skip
plain("Hyper", kernels.Hyper, lambda: {"name": "lr", "default": 1e-3, "least": 0.0, "below": 1.0})

# -- shaped.export ----------------------------------------------------------------------------------------------------


def scores(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch classes"]:
    return (x @ p.w1 + p.b1).relu() @ p.w2 + p.b2


def exported() -> dict[str, Any]:
    return {"forward": scores, "params": mlp(), "assume": (), "static": ()}


def _kept(folder: Path) -> Path:
    export.save_safetensors(mlp(), folder / "kept.safetensors")
    return folder / "kept.safetensors"


plain("export_program", export.export_program, exported)
valid("to_onnx", lambda folder: (export.to_onnx, {
    **exported(), "path": folder / "scores.onnx", "opset": None, "check": False,
}))  # fmt: skip
plain("state_dict", export.state_dict, lambda: {"params": mlp()})
valid("save_safetensors", lambda folder: (export.save_safetensors, {
    "params": mlp(), "path": folder / "saved.safetensors", "metadata": None,
}))  # fmt: skip
valid("load_safetensors", lambda folder: (export.load_safetensors, {"params": mlp(), "path": _kept(folder)}))


def _folder(folder: Path) -> Path:
    export.save_dcp(trainer(), folder / "kept")
    return folder / "kept"


DCP = {"model": "model", "optimizer": "optim"}
valid("save_dcp", lambda folder: (export.save_dcp, {"trainer": trainer(), "folder": folder / "saved", **DCP}))
valid("load_dcp", lambda folder: (export.load_dcp, {"trainer": trainer(), "folder": _folder(folder), **DCP}))

# -- shaped.recipes ---------------------------------------------------------------------------------------------------


def _job(folder: Path) -> Path:
    path = folder / "job.py"
    path.write_text("def train(settings): ...\n")
    return path


plain("find", recipes.find, lambda: {"name": "digits"})
valid("load_file", lambda folder: (recipes.load_file, {"path": _job(folder)}))
valid("Settings", lambda folder: (recipes.Settings, {
    "backend": "eager", "optimizer": "adamw", "device": "cpu", "epochs": None, "seed": 0, "out": folder,
    "resume": False,
}))  # fmt: skip
of("Settings", recipes.Settings, "folder", lambda: {"job": "digits", "by_epochs": False})
plain("Outcome", recipes.Outcome, lambda: {"figures": {"accuracy": 1.0}, "files": ()})
