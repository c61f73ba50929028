"""Trainers made of trainers: copies, and the same run under another mask of what is trained."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from shaped.optim import FusedOptimizer
from shaped.optim.foreign import own
from shaped.optim.noticed import NoticedState
from shaped.state import TrainingState


def remade(
    kind: Any,
    loss: Callable[..., Any],
    params: Any,
    options: dict[str, Any],
    backend: str,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    last: str | None,
) -> Any:
    """A trainer from what it was made of and its state."""
    trainer = kind(loss, params, backend=backend, optimizer=optimizer, **options)
    trainer.load_state_dict(state)
    trainer._shared.counters.stepped = trainer._shared.optimizers().get(last or "")
    return trainer


def refrozen(trainer: Any, paths: Sequence[str]) -> Any:
    """As `ScalarTrainer.with_frozen`."""
    shared: TrainingState = trainer._shared
    if shared.program.modules:
        raise ValueError(
            "a module's parameters are frozen by requires_grad_(False), before a new trainer is made: "
            "ScalarTrainer(loss, module, optimizer=trainer.optimizer) goes on with the moments"
        )
    if shared.program.together is not None:
        raise ValueError("on several ranks a mask is for good: make a new trainer over params.with_frozen(paths)")
    if shared.counters.waiting:
        raise ValueError(f"{shared.counters.waiting} gradients wait for an update: step_waiting() takes it")
    loss, _, options = trainer._made_of
    params = trainer.params.with_frozen(paths)
    now = dict(zip(map(id, shared.program.tensors), params, strict=True))
    given = None if shared.optimizer is None else own(_over(shared.optimizer, now))
    other = type(trainer)(loss, params, backend=trainer._chosen, optimizer=given, **options)
    used = other._shared.program.used_tensors
    other._shared.paths = {path: _over(optimizer, now, used) for path, optimizer in shared.paths.items()}
    other._shared.scaler = shared.scaler
    other._shared.counters.set_counts(shared.counters.taken, shared.counters.left_out)
    return other


def _over(optimizer: FusedOptimizer, now: Mapping[int, Tensor], used: Sequence[Tensor] | None = None) -> FusedOptimizer:
    """An optimizer with its state over other tensors: those that took the place of its own, or `used` in one group."""
    made = copy.copy(optimizer)
    groups = [{**group, "params": [now[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    made.param_groups = groups if used is None else [{**groups[0], "params": list(used)}]
    kept = {id(p) for group in made.param_groups for p in group["params"]}
    state = {now[id(p)]: entry for p, entry in optimizer.state.items()}
    made.state = NoticedState({p: entry for p, entry in state.items() if id(p) in kept})
    made._forget_plans()
    return made
