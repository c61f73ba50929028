"""Classify the handwritten digits: a two-layer network, any optimizer, either backend."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from shaped import init
from shaped.data import digits
from shaped.errors import ShapedError
from shaped.params import ParamList
from shaped.recipes import Outcome, Settings
from shaped.recipes.display import Curves, bar, say
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
    settings.only_alone("digits")
    epochs = EPOCHS if settings.epochs is None else settings.epochs
    if settings.resume:
        raise ShapedError("digits keeps no checkpoints, since it takes seconds: run it without --resume")
    curves, folder = Curves(), Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)  # what could fail after the training fails before it
    params = MLP.init(pixels=64, hidden=HIDDEN, classes=10, seed=settings.seed, device=settings.device)
    optimizer = make_optimizer(OptimizerConfig(settings.optimizer, *OPTIMIZERS[settings.optimizer]), params)
    trainer = ScalarTrainer(loss, params, backend=settings.backend, optimizer=optimizer)
    say(str(trainer.proof))
    batches = len(list(_batches("train", settings, 0)))
    schedule = CosineAnnealingLR(optimizer, T_max=epochs * batches)
    test = list(_batches("test", settings, 0))
    started = time.perf_counter()
    with bar(f"digits, {settings.backend}, {settings.optimizer}", total=epochs * batches) as advance:
        for epoch in range(epochs):
            total = torch.zeros((), device=settings.device)
            for x, y in _batches("train", settings, epoch):
                value = trainer.train_step(x, y)
                schedule.step()
                total += value
                advance(f"loss {value.item():.3f}")
            curves.add(loss=(total / batches).item(), accuracy=accuracy(trainer.params, test))
    seconds = time.perf_counter() - started
    name = f"digits-{settings.backend}-{settings.optimizer}-seed{settings.seed}.png"
    picture = curves.save(folder / name, title=f"digits: {settings.backend}, {settings.optimizer}")
    images = sum(len(y) for _, y in test)
    say(f"test accuracy {curves.last('accuracy'):.1%} on {images} images, {seconds:.1f} s of training")
    if settings.backend != "eager":
        say(f"executors\n{trainer.executors}")
    say(f"curves        {picture}")
    figures = {"accuracy": curves.last("accuracy"), "seconds": seconds, "loss": curves.last("loss")}
    return Outcome(figures, (picture,))


@torch.no_grad()
def accuracy(params: ParamList, data: list[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose most likely class is right."""
    assert isinstance(params, MLP)
    right = sum(int((logits(params, x).argmax(1) == y).sum()) for x, y in data)
    return right / sum(len(y) for _, y in data)


def _batches(split: str, settings: Settings, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = BATCH if split == "train" else 360
    for x, y in digits(size, seed=settings.seed, split="train" if split == "train" else "test", epoch=epoch):
        yield x.to(settings.device), y.to(settings.device)
