"""What a loop is given, checked: trainers by spec, and what moves lr."""

from collections.abc import Hashable, Mapping
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from shaped.optim.groups import refuse_other
from shaped.optim.schedules import as_lambda
from shaped.trainer import ScalarTrainer


def checked_specs(
    trainer: ScalarTrainer, step: Any, specs: Mapping[Hashable, ScalarTrainer]
) -> Mapping[Hashable, ScalarTrainer]:
    """Trainers by spec, each over the parameters and the optimizer of the main one; ValueError says which is not."""
    for spec, other in specs.items():
        if spec is None or not isinstance(other, ScalarTrainer):
            raise ValueError(f"specs: {spec!r} is a {type(other).__name__}; give a ScalarTrainer for each spec")
        same = len(other.params) == len(trainer.params) and all(
            a.data_ptr() == b.data_ptr() for a, b in zip(other.params, trainer.params, strict=True)
        )
        if not same or step is not None or other.optimizer is not trainer.optimizer or other.optimizer is None:
            raise ValueError(
                f"specs: the trainer of {spec!r} must train the same parameters with the same optimizer: "
                "ScalarTrainer(other_loss, params, optimizer=optimizer)"
            )
    return specs


def scheduler(trainer: ScalarTrainer, step: Any, schedule: Any) -> Any:
    """A scheduler as it is; a function of the step as one over the trainer's optimizer.

    Raises:
        ValueError: It is neither, or follows a figure, or moves another optimizer than the one that steps, or there is
        no optimizer for the function to set lr in.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        raise ValueError(
            "schedule is a ReduceLROnPlateau, which follows a figure and not the steps: "
            "loop.attach(shaped.optim.schedules.ReduceOnPlateau(optimizer, monitor='validation/loss'))"
        )
    if schedule is None or callable(getattr(schedule, "step", None)):
        refuse_other(getattr(schedule, "optimizer", None), trainer.optimizer if step is None else None)
        return schedule
    if not callable(schedule):
        raise ValueError(
            f"schedule is a {type(schedule).__name__}; pass a torch LR scheduler, or a function of the step"
        )
    if trainer.optimizer is None:
        raise ValueError(
            "schedule is a function of the step, and the trainer has no optimizer whose lr it could set: "
            "ScalarTrainer(..., optimizer=...), or call it where you step, lr=schedule(trainer.steps)"
        )
    return as_lambda(trainer.optimizer, schedule)
