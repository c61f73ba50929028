"""Classify the handwritten digits: a two-layer network, any optimizer, either backend."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from shaped import init
from shaped.data import digits
from shaped.errors import ShapedError
from shaped.loop import Curves, JsonLines, Loop, Progress
from shaped.metrics import accuracy
from shaped.params import ParamList
from shaped.recipes import Outcome, Settings
from shaped.trainer import ScalarTrainer
from shaped.workflow import OptimizerConfig
from shaped.workflow.assembly import make_optimizer

BATCH, EPOCHS, HIDDEN = 64, 40, 256
OPTIMIZERS: Mapping[
    str, tuple[float, dict[str, Any]]
] = {  # a learning rate that suits each here, and what else it is given
    "sgd": (0.1, {"momentum": 0.9, "nesterov": True}),
    "adam": (3e-3, {}),
    "adamw": (3e-3, {"weight_decay": 0.05}),
    "lion": (3e-4, {"weight_decay": 0.5}),
    "muon": (1e-2, {"weight_decay": 0.05}),
}


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"] = init.fan_in(gain=2.4)  # keeps the variance through relu
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


def logits(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch classes"]:
    return F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2


def loss(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits(p, x), y, label_smoothing=0.05)


def train(settings: Settings) -> Outcome:
    """Train, print what is proved and what is reached, and save the learning curves."""
    epochs = EPOCHS if settings.epochs is None else settings.epochs
    if settings.resume:
        raise ShapedError("digits keeps no checkpoints, since it takes seconds: run it without --resume")
    folder = settings.folder("digits")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").unlink(missing_ok=True)  # of a run before
    params = MLP.init(pixels=64, hidden=HIDDEN, classes=10, seed=settings.seed, device=settings.device)
    optimizer = make_optimizer(OptimizerConfig(settings.optimizer, *OPTIMIZERS[settings.optimizer]), params)
    trainer = ScalarTrainer(loss, params, backend=settings.backend, optimizer=optimizer, keep=settings.keep)
    assert trainer.optimizer is not None
    print(trainer.proof, flush=True)
    test = list(batches("test", settings))
    schedule = CosineAnnealingLR(trainer.optimizer, T_max=epochs * len(list(batches("train", settings))))
    loop = Loop(trainer, schedule=schedule, metrics={"accuracy": lambda p, x, y: accuracy(logits(p, x), y)})
    log = loop.attach(JsonLines(folder / "log.jsonl", every=10))
    curves = loop.attach(Curves(log.path))
    loop.attach(Progress(f"digits, {settings.backend}, {settings.optimizer}"))
    loop.on_epoch(lambda loop: loop.evaluate(test, "test"), name="test")
    began = time.perf_counter()
    loop.run_epochs(lambda epoch: batches("train", settings, epoch), epochs)
    seconds = time.perf_counter() - began
    reached = loop.latest.get("test/accuracy", math.nan)
    images = sum(len(y) for _, y in test)
    print(f"test accuracy {reached:.1%} on {images} images, {seconds:.1f} s of training")
    if settings.backend != "eager":
        print(f"executors\n{trainer.executors}")
    print(f"curves        {curves.picture}", flush=True)
    figures = {"accuracy": reached, "seconds": seconds, "loss": loop.average.compute()}
    return Outcome(figures, (curves.picture, log.path))


def batches(split: Literal["train", "test"], settings: Settings, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of images on the device."""
    for x, y in digits(BATCH if split == "train" else 360, seed=settings.seed, split=split, epoch=epoch):
        yield x.to(settings.device), y.to(settings.device)
