"""The compiled backend: the proved graph, with the update in it, lowered to one callable for the whole step.

*The graph that was proved is the graph that runs*: the symbolic trace of loss and gradients is traced again at concrete
sizes together with the update and lowered. `lr` and every other number that a schedule may touch are inputs of the
graph (one float64 row for each group), so changing them compiles nothing.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.executors import Executor, Executors
from shaped.backends.gradients import clipped, finite_flag
from shaped.backends.inductor import lower
from shaped.backends.program import Case, Program
from shaped.optim import FusedOptimizer, Update
from shaped.proof import forward_graph

_STEPS = 4  # one for each update path: step, adam_step, adamw_step, train_step


class Compiled:
    """Runs a program as compiled graphs, one executor for each mode and tuple of shapes."""

    name = "compiled"

    def __init__(self, program: Program, max_executors: int, max_norm: float | None) -> None:
        self.program = program
        self.executors = Executors(max_executors)
        self._max_norm = max_norm
        self._steps: dict[int, _Step] = {}
        self._layouts: dict[Hashable, int] = {}  # strides and dtypes of parameters and state, numbered as they come

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss."""
        case, inputs = self._admit(inputs)

        def build() -> Callable[..., tuple[Any, ...]]:
            graph = forward_graph(case.graph)
            return lambda *flat: tuple(self._run(graph, flat)[0])

        run = self._executor("forward", case, self._layout(), build, inputs)
        loss: Tensor = run([*self.program.plain, *inputs])[0]
        return loss

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the gradients of `program.used` and the values of `program.writes`, from one graph."""
        case, inputs = self._admit(inputs)

        def build() -> Callable[..., tuple[Any, ...]]:
            kept = [1 + self.program.trainable.index(i) for i in self.program.used]

            def run(*flat: Tensor) -> tuple[Any, ...]:
                outputs, written = self._run(case.graph, flat)
                return (outputs[0], *(outputs[i] for i in kept), *written)

            return run

        executor = self._executor("loss_and_backward", case, self._layout(), build, inputs)
        loss, *rest = executor([*self.program.plain, *inputs])
        count = len(self.program.used)
        return loss, list(rest[:count]), list(rest[count:])

    def _run(self, graph: GraphModule, flat: Sequence[Tensor]) -> tuple[Sequence[Any], list[Tensor]]:
        """The proved graph on copies of what it writes into, and these copies."""
        count = len(self.program.tensors)
        params, written = self.program.for_writing(flat[:count])
        return graph(*params, *flat[count:]), written

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """One step. Where the loss or a gradient is not finite nothing changes and the flag is False."""
        step = self._steps.get(id(optimizer))
        if step is None:
            while len(self._steps) >= _STEPS:  # loading a state makes new optimizers; the old ones must not stay alive
                del self._steps[next(iter(self._steps))]
            step = self._steps[id(optimizer)] = _Step(self.program, optimizer, self._max_norm)
        case, inputs = self._admit(inputs)
        state = step.prepare(self._layout)

        def build() -> Callable[..., tuple[Any, ...]]:
            return step.function(case.graph)

        name = type(optimizer).__name__
        loss, finite = self._executor(name, case, step.structure, build, inputs, state)([*state, *inputs])
        if not finite.item():
            return loss, False
        step.commit()
        return loss, True

    def _layout(self, state: Hashable = ()) -> int:
        """A number for what lowered code takes for granted, so that no step hashes hundreds of strides."""
        return self._layouts.setdefault((self.program.strides, state), len(self._layouts))

    def _admit(self, inputs: Sequence[Tensor]) -> tuple[Case, list[Tensor]]:
        self.program.follow_storage()
        case = self.program.admit(inputs)
        return case, [x.detach().contiguous() for x in inputs]  # executors are compiled for contiguous inputs

    def _executor(
        self,
        mode: str,
        case: Case,
        structure: Hashable,
        build: Callable[[], Callable[..., tuple[Any, ...]]],
        inputs: Sequence[Tensor],
        state: Sequence[Tensor] | None = None,
    ) -> Executor:
        def make() -> Executor:
            started = time.perf_counter()
            run, how = lower(build(), [*(self.program.plain if state is None else state), *inputs])
            return Executor(mode, str(case), how, time.perf_counter() - started, run)

        return self.executors.get((mode, case.key, structure), make, mode, case)


class _Step:
    """One optimizer's update as a part of the graph: its state as flat tensors, and the function to lower.

    The flat arguments are: all parameters, then for each update its slots, its step count and its row of scalars, then
    the inputs.
    """

    def __init__(self, program: Program, optimizer: FusedOptimizer, max_norm: float | None) -> None:
        if optimizer.options.beside:
            raise ValueError(
                f"the compiled step takes the rule of {type(optimizer).__name__} only, and not {optimizer.options}: "
                "give max_norm and nonfinite to ScalarTrainer, or use backend='eager'"
            )
        self._program = program
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._used = program.used_tensors
        self._updates: list[Update] = []
        self._plain: list[Tensor] = []
        self._state: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._scalars: list[tuple[float, ...]] = []
        self.structure = 0

    def prepare(self, number: Callable[[Hashable], int]) -> list[Tensor]:
        """The flat state, with the scalars as they are now; `number` names a layout when it is a new one."""
        updates = self._optimizer.updates(self._used)
        same = len(updates) == len(self._updates) and all(map(is_, updates, self._updates))
        if not same or self._plain is not self._program.plain:
            self._gather(updates)
            self.structure = number(self._kinds())
        for i, update in enumerate(updates):
            scalars = update.scalars()
            if scalars != self._scalars[i]:
                self._rows[i].copy_(torch.tensor(scalars, dtype=torch.float64))
                self._scalars[i] = scalars
        return self._state

    def _gather(self, updates: list[Update]) -> None:
        self._updates, self._plain = updates, self._program.plain
        device = self._program.params.device
        self._rows = [torch.tensor(update.scalars(), dtype=torch.float64, device=device) for update in updates]
        self._scalars = [update.scalars() for update in updates]
        self._state = list(self._program.plain)
        for update, row in zip(updates, self._rows, strict=True):
            self._state.extend(tensor for slot in update.slots for tensor in slot)
            self._state.extend([row] if update.step is None else [update.step, row])

    def _kinds(self) -> Hashable:
        """All that the lowered code takes for granted of the state and the groups."""
        flags = ("maximize", "nesterov", "amsgrad", "decoupled_weight_decay")
        return tuple(
            (
                tuple(update.indices),
                tuple((t.dtype, t.stride()) for slot in update.slots for t in slot),
                tuple(update.group.get(flag) for flag in flags),
            )
            for update in self._updates
        )

    def commit(self) -> None:
        torch.autograd.graph.increment_version(self._used)  # compiled code writes unseen by autograd
        for update in self._updates:
            update.commit()

    def function(self, graph: GraphModule) -> Callable[..., tuple[Any, ...]]:
        """loss, gradients, verdict, clipping and update, writing into parameters and state where all is finite."""
        program, updates = self._program, self._updates

        def step(*flat: Tensor) -> tuple[Tensor, Tensor]:
            count = len(program.tensors)
            params, rest = flat[:count], list(flat[count : len(flat) - len(program.inputs)])
            tensors, written = program.for_writing(params)
            loss, *every = graph(*tensors, *flat[len(flat) - len(program.inputs) :])
            gradients = [every[program.trainable.index(i)] for i in program.used]
            finite = finite_flag(loss, gradients)
            for i, new in zip(program.writes, written, strict=True):
                params[i].copy_(torch.where(finite, new, params[i]))
            if self._max_norm is not None:
                gradients = clipped(gradients, self._max_norm)
            used = [params[i] for i in program.used]
            for update in updates:
                size = len(update.params)
                slots = [[rest.pop(0) for _ in range(size)] for _ in update.slots]
                taken = rest.pop(0) if update.step is not None else None
                self._apply(update, used, gradients, slots, taken, rest.pop(0), finite)
            return loss, finite

        return step

    def _apply(
        self,
        update: Update,
        used: Sequence[Tensor],
        gradients: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        taken: Tensor | None,
        row: Tensor,
        finite: Tensor,
    ) -> None:
        number = None if taken is None else taken.double() + 1
        scalars = row.unbind()
        for at, index in enumerate(update.indices):
            old = (used[index], *(slot[at] for slot in slots))
            p, state = self._optimizer.reference(update, old[0], gradients[index], old[1:], scalars, number)
            for before, after in zip(old, (p, *state), strict=True):
                before.copy_(torch.where(finite, after, before))
        if taken is not None:
            taken.add_(finite.to(taken.dtype))
