"""What ranks and plain torch give each other by torch.distributed.checkpoint, whose reader is the oracle."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard

from shaped import ScalarTrainer
from shaped.errors import ExportError, StateError
from shaped.export import load_dcp, save_dcp
from shaped.ranks import join
from tests.ranks.by_name import plan
from tests.ranks.processes import EXACT, batch, folder, mine, raises, rank

EXCHANGED: dict[str, Callable[[], None]] = {}
LAYOUTS = ("zero=0", "zero=3", "by name")


class PlainMLP(nn.Module):
    """What `MLP` and its loss are, of torch alone."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("w1", (6, 8)), ("b1", (8,)), ("w2", (8, 5)), ("b2", (5,))):
            self.register_parameter(name, nn.Parameter(torch.full(shape, 0.1, dtype=torch.float64)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(x @ self.w1 + self.b1) @ self.w2 + self.b2, y)


def exchanged(function: Callable[[], None]) -> Callable[[], None]:
    EXCHANGED[function.__name__] = function
    return function


def plain() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Under fully_shard on all ranks."""
    net = PlainMLP()
    fully_shard(net)
    return net, torch.optim.AdamW(net.parameters(), lr=0.01)


def plain_step(net: nn.Module, optimizer: torch.optim.Optimizer, k: int) -> None:
    """All ranks with the whole batch, of whose gradients fully_shard takes the mean."""
    optimizer.zero_grad()
    net(*batch(k)).backward()
    optimizer.step()


@cache
def laid(layout: str) -> ScalarTrainer:
    """One for both checks, as its proof takes longer than they do."""
    return plan("hidden") if layout == "by name" else plan(mesh=join(), zero=int(layout[-1]))


def step(trainer: ScalarTrainer, layout: str, k: int) -> None:
    trainer.train_step(*(batch(k) if layout == "by name" else mine(k, *batch(k))))


def alike(trainer: ScalarTrainer, net: Any) -> None:
    for (name, a), b in zip(net.named_parameters(), trainer.get_params(), strict=True):
        torch.testing.assert_close(a.full_tensor(), b.detach(), rtol=EXACT, atol=EXACT, msg=name)


@exchanged
def what_ranks_save_in_any_layout_plain_torch_loads_and_goes_on_alike() -> None:
    for layout in LAYOUTS:
        trainer, place = laid(layout), f"{folder()}/saved"
        for k in range(2):
            step(trainer, layout, k)
        save_dcp(trainer, place)
        net, optimizer = plain()
        model, optim = get_state_dict(net, optimizer)
        load({"model": model, "optim": optim}, checkpoint_id=place)
        set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=optim)
        alike(trainer, net)
        step(trainer, layout, 2)
        plain_step(net, optimizer, 2)
        alike(trainer, net)
    raises(lambda: save_dcp(trainer, place), ExportError, "is there already")


@exchanged
def what_fully_shard_saved_ranks_take_in_any_layout_all_or_none() -> None:
    net, optimizer = plain()
    for k in range(2):
        plain_step(net, optimizer, k)
    place = f"{folder()}/saved"
    model, optim = get_state_dict(net, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"model": model, "optim": optim}, checkpoint_id=place)
    plain_step(net, optimizer, 2)
    for layout in LAYOUTS:
        trainer = laid(layout)
        before = trainer.get_params()
        named = () if rank() else ("on rank 1",)
        raises(lambda trainer=trainer: load_dcp(trainer, f"{place}{'x' * rank()}"), StateError, "no folder", *named)  # type: ignore[misc]
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.get_params(), strict=True))
        load_dcp(trainer, place)
        assert trainer.steps == 2
        step(trainer, layout, 2)
        alike(trainer, net)
