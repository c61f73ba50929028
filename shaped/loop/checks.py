"""What a loop is given, checked: trainers by spec, and saved states."""

from collections.abc import Hashable, Mapping
from typing import Any

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


def malformed(state: Any, mine: Mapping[str, Any]) -> list[str]:
    """What keeps something from being a loop's state at all; `mine` is one."""
    if not isinstance(state, Mapping):
        return [f"it is a {type(state).__name__}"]
    wrong = [f"{key}: missing" for key in mine if key not in state]
    for key, value in state.items():
        like = mine.get(key)
        if isinstance(like, dict) and not isinstance(value, Mapping) and key != "position":
            wrong.append(f"{key}: a {type(value).__name__}")
        elif type(like) is int and (type(value) is not int or value < 0):
            wrong.append(f"{key}: {value!r} is no whole number of at least 0")
        elif type(like) is float and not isinstance(value, float):
            wrong.append(f"{key}: {value!r} is no number")
    position = state.get("position")
    counts = [position.get(k) for k in ("epoch", "index")] if isinstance(position, Mapping) else [0]
    if not (position is None or isinstance(position, Mapping)) or any(type(n) is not int or n < 0 for n in counts):
        wrong.append("position: it is no place in data")
    return wrong
