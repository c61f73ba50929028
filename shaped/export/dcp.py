"""A trainer's state in the format of torch.distributed.checkpoint, by the names that torch's own tools give it.

    {"model": model_state_dict, "optim": optimizer_state_dict}     as torch.distributed.checkpoint.state_dict makes them

For exchange: what plain torch saved under DDP, fully_shard or DTensor trains on here, and what is trained here goes on
there, on any number of ranks on either side. A run's own checkpoints are `shaped.Checkpoints`, which verify what they
read.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shaped.arguments import checked
from shaped.errors import ExportError
from shaped.export.dcp_files import Boxes, DcpFolder, Key, write_folder
from shaped.export.dcp_state import COUNTS, SavedNames, nested, ready
from shaped.optim import FusedOptimizer
from shaped.ranks.pieces import Box
from shaped.trainer import ScalarTrainer


@checked
def save_dcp(
    trainer: ScalarTrainer, folder: str | Path, *, model: str = "model", optimizer: str | None = "optim"
) -> None:
    """Write a trainer's parameters and optimizer state as a folder of torch.distributed.checkpoint. All ranks call it.

    Each rank writes what it has, and what several have is written by one; nothing is gathered. The folder is there when
    all have written, and not before.

    Args:
        trainer: On one process or many, in whatever layout.
        folder: Not there yet; on several ranks of a file system that all see.
        model: Where parameters and buffers stand in the state that `dcp.load` takes, `"app.model"` where it is nested.
        optimizer: Where the optimizer's state stands: of `train_step`, or else of the last step. None leaves it out.

    Raises:
        ExportError: On all ranks: it cannot be written, gradients wait for an update, or torch has no such state.
    """
    tensors: dict[Key, Boxes] = {}
    values: dict[Key, Any] = {}
    failed = None
    try:
        if trainer._shared.counters.waiting:
            raise ExportError("gradients wait for an update, and the format has no place for them: call step_waiting()")
        for name, i in SavedNames(trainer).places:
            tensors[*nested(model), name] = _laid(trainer, i, trainer._program.tensors[i])
        found = trainer._shared.optimizer or trainer._shared.last_optimizer
        if optimizer is not None and found is not None:
            _add_optimizer(trainer, found, nested(optimizer), tensors, values)
        for count, number in zip(COUNTS, (trainer.steps, trainer.skipped), strict=True):
            tensors["shaped", count] = (), [Box((), torch.tensor(number))]
    except ExportError as error:
        failed = error
    trainer.peers.meet(f"the state for {folder}", failed=failed)
    write_folder(Path(folder), tensors, values, trainer.peers)


def _laid(trainer: ScalarTrainer, i: int, value: Tensor) -> Boxes:
    """What this rank has of a parameter, or of something of its shape, as blocks of the whole."""
    together, value = trainer._program.together, value.detach()
    if together is None or not together.is_part(i, value):
        return tuple(value.shape), [Box((0,) * value.ndim, value)]
    layout = together.layouts[i]
    return layout.shape, list(layout.boxes(value, together.place)) if 0 not in layout.shape else [
        Box((0,) * len(layout.shape), value.new_empty(layout.shape))
    ]


def _add_optimizer(
    trainer: ScalarTrainer,
    optimizer: FusedOptimizer,
    at: Key,
    tensors: dict[Key, Boxes],
    values: dict[Key, Any],
) -> None:
    """An optimizer's state, by the names of its parameters."""
    names = [name for group in trainer._shared.names_of(optimizer) for name in group]
    index = {name: i for i, name in enumerate(trainer._program.params.names)}
    state = optimizer.state_dict()
    for number, entry in state["state"].items():
        name = names[number]
        for what, value in entry.items():
            place = (*at, "state", name, what)
            if not isinstance(value, Tensor):
                values[place] = value
            elif what == "step":
                tensors[place] = tuple(value.shape), [Box((0,) * value.ndim, value)]
            elif value.dtype in (torch.int8, torch.uint8):
                raise ExportError(
                    f"{type(optimizer).__name__} keeps {what} in eight bits, which torch's optimizers would take for "
                    "the numbers themselves: pass optimizer=None to save the parameters alone"
                )
            else:
                tensors[place] = _laid(trainer, index[name], value)
    for g, group in enumerate(state["param_groups"]):
        own = {**group, "params": [names[number] for number in group["params"]]}
        values |= {(*at, "param_groups", g, what): value for what, value in own.items()}


@checked
def load_dcp(
    trainer: ScalarTrainer, folder: str | Path, *, model: str = "model", optimizer: str | None = "optim"
) -> None:
    """Take parameters and optimizer state over from a folder of torch.distributed.checkpoint. All ranks call it.

    Names, shapes and dtypes are compared before anything is read, and all ranks take it over or none; gradients that
    wait are dropped. A folder that has files of two saves, which a killed `dcp.save` leaves, is not seen as one.

    Args:
        trainer: On one process or many, in whatever layout.
        folder: As `dcp.save` of torch wrote it on any number of ranks, or `save_dcp`.
        model: Where parameters and buffers stand in the state that was saved: `"app.model"` where it is nested, `""`
            where they stand by themselves.
        optimizer: Where the optimizer's state stands, as `get_state_dict` or `optimizer.state_dict()` gave it. None
            takes the parameters alone, and the trainer keeps its optimizer's state.

    Raises:
        StateError: On all ranks: it is no such folder, or does not fit; all that differs is listed, and nothing has
            changed.
    """
    take, failed = None, None
    try:
        take = ready(trainer, DcpFolder(Path(folder)), nested(model), None if optimizer is None else nested(optimizer))
    except Exception as error:
        failed = error
    trainer.peers.meet(f"loading {folder}", failed=failed)
    assert take is not None
    take()
