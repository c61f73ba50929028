"""Both backends on several ranks: the same steps, with gradients summed and every verdict agreed on.

What fails before the first collective of a step is shared by `Together.guard`; from then on all ranks go the same way.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.agreed import AgreedStep, Passed
from shaped.backends.agreement import FirstRun
from shaped.backends.cases import AdmittedCase
from shaped.backends.compiled import Compiled
from shaped.backends.counters import Counters
from shaped.backends.eager import Eager
from shaped.backends.executors import CompileError
from shaped.backends.gradients import finite_flag
from shaped.backends.inductor import Flat
from shaped.backends.interrupts import Whole
from shaped.backends.options import TrainerOptions
from shaped.backends.outside import tensors_of
from shaped.backends.program import Program
from shaped.backends.samples import FACTOR, checked_count
from shaped.backends.step import NO_SAMPLES, WRONG_VALUE, TrainStep
from shaped.backends.together import Together
from shaped.backends.values import Checked, Runs
from shaped.errors import ExecutorError
from shaped.optim import FusedOptimizer
from shaped.optim.updates import CheckedRules
from shaped.ranks.exchange import Totals


def _of(program: Program) -> Together:
    assert program.together is not None
    return program.together


class JointEager(Eager):
    """The user's function under autograd where parameters are whole; the proved graph op by op where they are not."""

    def __init__(self, program: Program, options: TrainerOptions, counters: Counters) -> None:
        super().__init__(program, options, counters)
        self._together, self._quiet = _of(program), False
        self._norm: Tensor | None = None

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss of this rank's batch; all ranks call it where parameters lie in parts."""
        together = self._together
        with together.drawing(self.program.proof.graph):
            if not together.parted:
                return super().forward(inputs)
            graph, given = self._case(inputs)
            gathering = together.begin_parts(together.alone(graph), given, forward=True)
            with torch.no_grad():
                loss, *others = gathering.run(*self.program.for_writing(self.program.plain)[0], *given)
            self._refuse_wrong(gathering)
            together.ended()
            self.program.keep(loss, others)
            return loss.clone()

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss over all ranks' batches and its whole gradients; all ranks call it."""
        self._together.hold_pass()
        settled, totals, written = self._agreed(inputs)
        if self._together.unlike(totals):
            return self.loss_and_backward(inputs)
        used = self.program.used
        whole = [self._together.whole(i, g) for i, g in zip(used, settled.gradients, strict=True)]
        return settled.loss, whole, written

    def _case(self, inputs: Sequence[Tensor]) -> tuple[GraphModule, list[Tensor]]:
        """The graph for a batch, and what it takes after the parameters."""
        program = self.program
        program.follow_storage()
        program.outside.look(eager=True)
        case = program.admit(inputs)
        if case.refusal:
            raise CompileError(f"`{program.signature.name}` {case.refusal}. zero=0 runs it as it is")
        self._together.admit(case)
        return case.graph, [*program.batch.present(inputs), *tensors_of(case.outside)]

    def _agreed(self, inputs: Sequence[Tensor], measures: bool = False) -> tuple[AgreedStep, Totals, list[Tensor]]:
        """A pass of all ranks: what they agreed on, and what the program would write."""
        program, together = self.program, self._together
        program.outside.look(eager=True)
        together.hold_mean(program.admit(inputs), inputs)
        together.mark(self._counters)
        counted = torch.as_tensor(program.count_now(inputs), dtype=torch.float64, device=program.params.device)
        checked_count(counted)
        samples, right, wrong = counted * together.exchange.said[0], None, None
        with together.drawing(program.proof.graph):
            if together.parted:
                graph, given = self._case(inputs)
                gathering = together.begin_parts(graph, given, samples)
                tensors, written = program.for_writing(program.plain)
                with torch.no_grad():
                    passed = together.run_parts(gathering, tensors, given, samples)
                if together.sharded:
                    self._refuse_wrong(gathering)
                else:  # all others go on to the agreement
                    right, wrong = passed.right, _wrong_of(gathering)
                program.keep(passed.loss, passed.others[len(passed.others) - program.more :])
            else:
                loss, gradients, written = self.local(inputs)
                together.begin()
                with torch.no_grad():
                    fine = finite_flag(loss, gradients)
                    passed = Passed(loss, together.summed(gradients, samples, in_place=True), [], fine, None)
        waiting = None
        if self._options.accumulate > 1 and measures and together.parted:
            waiting = self._counters.means, self._counters.weight
        with torch.no_grad():
            settled = together.settle(passed, samples, right, together.exchange.said, waiting, measures, in_place=True)
        totals = together.exchange.read(settled.totals)
        together.ended()
        if totals.wrong:
            together.raise_on_all(wrong)
        if program.more:
            program.returned[0] = settled.loss
        return settled, totals, written

    def local(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The pass of this rank's batch alone."""
        return super().loss_and_backward(inputs)

    def _refuse_wrong(self, gathering: Checked) -> None:
        if (error := _wrong_of(gathering)) is not None:
            raise error

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]:
        """Take a step of all ranks, or with `last=False` gather a batch for it; as `Eager.update`."""
        readings = optimizer.read(self._used)
        self._together.refuse(optimizer)
        self._together.hold_alike(optimizer, readings, last)
        with optimizer.ahead(self._used, readings):
            settled, totals, written = self._agreed(inputs, optimizer.options.measures(self._options.max_norm))
        if self._together.unlike(totals):
            return self.update(inputs, optimizer, last)
        finite, counters = not totals.not_finite, self._counters
        if not finite and not self._options.skips:
            return settled.loss, False
        with Whole():
            if finite and not totals.samples and self._options.accumulate == 1:
                counters.count(optimizer, last=last)  # no rank has a sample: nothing to take
                return settled.loss, True
            if self._together.parted:
                before = counters.weight if self._options.accumulate > 1 else torch.zeros_like(counters.weight)
                taken = torch.tensor(finite and totals.samples > 0, device=before.device)
                self._norm = self._together.norm(settled.totals, taken, before + settled.samples * taken)
            self._move(finite, settled.gradients, written, totals.samples, optimizer, readings, last)
            self._norm = None
        return settled.loss, True

    def update_waiting(self, optimizer: FusedOptimizer) -> bool:
        """As `Eager.update_waiting`; what fails on one rank before its first collective is raised on all."""
        failed = None
        try:
            self.program.follow_storage()
            readings = optimizer.read(self._used)
            self._together.refuse(optimizer)
            self._together.hold_alike(optimizer, readings)
            self._together.mark(self._counters)
        except Exception as error:
            failed = error
        self._together.meet("the update of gradients that wait", failed)
        found = super().update_waiting(optimizer)
        self._together.ended()
        return found

    def _step(
        self,
        optimizer: FusedOptimizer,
        gradients: Sequence[Tensor],
        readings: CheckedRules,
        found_inf: Tensor | None = None,
    ) -> None:
        limit = self._options.max_norm
        if not self._together.parted or not optimizer.options.measures(limit):
            super()._step(optimizer, gradients, readings, found_inf)
            return
        norm = self._norm if self._norm is not None else self._together.norm_of(gradients)
        optimizer.update(gradients, self._used, found_inf, readings, limit, norm)
        self._counters.grad_norm = optimizer.grad_norm


class JointStep(TrainStep):
    """One optimizer over a program on several ranks: collectives, agreement and update in one graph."""

    @property
    def asks(self) -> bool:  # type: ignore[override]
        """The host reads what was agreed on."""
        return True

    def prepare(self, samples: float, number: Callable[[Any], int]) -> list[Tensor]:
        """The flat state, with what this rank says of itself at its end."""
        if self._optimizer is not None:
            _of(self._program).refuse(self._optimizer)
        return super().prepare(samples, number)

    def _gather(self, updates: list[Any], readings: Sequence[Any]) -> None:
        super()._gather(updates, readings)
        self.state += [*([] if self._gathers else [self._samples]), _of(self._program).exchange.said]

    def function(self, graph: GraphModule, runs: Callable[[GraphModule], Runs] = Checked) -> Flat:
        """What to lower: as `Step.function`, with the totals and whether this batch is right after what it returns."""
        program, optimizer, together = self._program, self._optimizer, _of(self._program)
        inputs, measures = (
            self._taken(graph),
            self._last and optimizer is not None and optimizer.options.measures(self._options.max_norm),
        )

        def step(*flat: Tensor) -> tuple[Tensor, ...]:
            params, given = flat[: len(program.tensors)], flat[len(flat) - inputs :]
            rest = list(flat[len(program.tensors) : len(flat) - inputs])
            said = rest.pop()
            by_sizes = rest[-1 - self._options.skips] if self._gathers else rest.pop()
            tensors, written = program.for_writing(params)
            self._lead(tensors, rest)
            samples, counting = self._samples_of(graph, params, given, by_sizes)
            samples = samples * said[0]
            passed = together.run(runs(graph), graph, tensors, given, samples)
            own = _both(passed.right, counting)
            counts = rest.pop() if self._options.skips else None
            waiting = rest[-len(program.used) - 2 :] if self._gathers else []
            kept = (waiting[:-2], waiting[-2]) if self._gathers else None
            settled = together.settle(passed, samples, own, said, kept, measures)
            finite, right = settled.finite & settled.right, settled.right
            some = settled.samples > 0
            why = torch.where(right, (~settled.finite).to(torch.int8), WRONG_VALUE)
            loss = settled.loss.clone()
            more = [t.clone() for t in passed.others[len(passed.others) - program.more :]]
            for i, new in zip(program.writes, written, strict=True):
                params[i].copy_(torch.where(finite, new, params[i]))
            gradients, go, norm = settled.gradients, finite & some, None
            if measures and together.parted:
                weight = waiting[-2] if self._gathers else torch.zeros_like(settled.samples)
                weighed = weight + torch.where(finite, settled.samples, 0.0)
                norm = together.norm(settled.totals, finite & some, weighed)
            if self._gathers:
                gradients, go = self._blend(waiting, gradients, finite, right, settled.samples)
                del rest[-len(waiting) :]
            if self._last:
                why = torch.where(finite & ~go, NO_SAMPLES, why)
            if counts is not None:
                taken = go if self._last else torch.zeros_like(go)
                counts.add_(torch.stack([taken, right & ~settled.finite]).to(counts.dtype))
            verdict = torch.ones_like(go) if own is None else own.clone()
            results = loss, why, *more, settled.totals, verdict
            if not self._last:
                return results
            used = [params[i] for i in program.used]
            return *results, *self._move(used, gradients, rest, go, norm)

        return step

    def _samples_of(
        self, graph: GraphModule, params: Sequence[Tensor], inputs: Sequence[Tensor], by_sizes: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """How many samples the batch has, and whether it could take all values."""
        factor = graph.meta.get(FACTOR)
        if factor is None:
            return by_sizes, None
        checked = Checked(factor.graph)
        value = factor.value(checked.run(*factor.arguments(params, inputs)))
        return by_sizes * value, checked.right()


def _wrong_of(made: Checked) -> ExecutorError | None:
    """What a pass met that an operation cannot take."""
    right = made.right()
    return None if right is None or bool(right) else ExecutorError(f"{made.first_wrong()}. Nothing has changed")


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


class JointCompiled(Compiled):
    """The compiled backend on several ranks; new executors are held against eager on each rank alone."""

    def __init__(self, program: Program, options: TrainerOptions, counters: Counters) -> None:
        # No collective is captured in a CUDA graph.
        super().__init__(program, replace(options, capture=False), counters)
        self._together = _of(program)
        self._eager = JointEager(program, options, counters)

    def _admit(self, inputs: Sequence[Tensor]) -> tuple[AdmittedCase, list[Tensor]]:
        case, given = super()._admit(inputs)
        self._together.admit(case)
        return case, given

    def _made_step(self, optimizer: FusedOptimizer | None, last: bool) -> TrainStep:
        return JointStep(self.program, optimizer, self._options, self._counters, last)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss of this rank's batch; all ranks call it where parameters lie in parts."""
        together = self._together
        case, given = self._admit(inputs)
        run = self._pass("forward", case, given, self._forward)
        with together.drawing(case.graph):
            if together.parted:
                together.begin(given, forward=True)
            loss, *rest = run(self.program.plain, given)
            together.ended()
        self._refuse_wrong("forward", rest[self.program.more :], case, given)
        self.program.keep(loss, rest[: self.program.more])
        return loss

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As the eager one: gradients that are whole are summed apart from their pass."""
        return self._eager.loss_and_backward(inputs)

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]:
        """Take a step of all ranks, or with `last=False` gather a batch for it; as `Compiled.update`."""
        together = self._together
        self._step(optimizer)
        step = self._step(optimizer, last)
        together.hold_alike(optimizer, optimizer.read(self.program.used_tensors), last)
        batch = inputs
        case, inputs = self._admit(batch)
        together.hold_mean(case, batch)
        together.mark(self._counters)
        state = step.prepare(case.samples, self._layout)
        runner = step.runs.get(case) or self._runner(step, case, inputs)
        with Whole(), together.drawing(case.graph):
            together.begin(inputs)
            loss, why, *rest = runner(state, inputs)
            totals, right = together.exchange.read(rest[self.program.more]), rest[self.program.more + 1]
            norm, reason = rest[self.program.more + 2 :], int(why)
            together.ended()
            if self._counted(step, optimizer, reason, last):
                together.drift.agreed()
                self.program.keep(loss, rest[: self.program.more])
                if norm and reason == 0:
                    self._counters.grad_norm = optimizer.grad_norm = norm[0]
                return loss, True
        if totals.wrong:
            together.raise_on_all(None if bool(right) else self._wrong(step.name, case, inputs))
        if together.unlike(totals):
            return self.update(batch, optimizer, last)
        own = None
        try:
            checked_count(self.program.count(case, inputs))
        except ValueError as error:
            own = error
        together.raise_on_all(own)
        return loss, False

    def _wrong(self, mode: str, case: AdmittedCase, inputs: Sequence[Tensor]) -> ExecutorError:
        """As on one process; where parameters lie in parts, by the values of the batch."""
        together, plain = self._together, self.program.plain
        if not together.parted:
            return super()._wrong(mode, case, inputs)
        self.program.plain = [
            t.new_zeros(()).expand(together.whole_shape(i)) if i in together.layouts else t for i, t in enumerate(plain)
        ]
        try:
            return super()._wrong(mode, case, inputs)
        finally:
            self.program.plain = plain

    def _holds(self, trial: FirstRun, first: bool, only_loss: bool = False) -> bool:
        executor = trial.executor
        if self._together.zero and not executor.held and not self._together.exchange.stands_in:
            executor.held, executor.note = True, "not held against eager: this torch has no group of one to try it on"
        with self._together.trial() if self._together.in_graph(trial.executor.mode) else nullcontext():
            return super()._holds(trial, first, only_loss)

    def _forward(self, graph: GraphModule, runs: Callable[[GraphModule], Runs] = Checked) -> Flat:
        together = self._together
        if not together.parted:
            return super()._forward(graph, runs)

        def run(*flat: Tensor) -> tuple[Any, ...]:
            alone = together.alone(graph)
            params, given = flat[: len(self.program.tensors)], flat[len(self.program.tensors) :]
            tensors, _ = self.program.for_writing(params)
            made = runs(alone)
            if isinstance(made, Checked):
                made = together.gathering(alone, forward=True)
            else:
                tensors = together.wholes(tensors)
            outputs = made.run(*tensors, *given)
            right = made.right()
            return outputs[0].clone(), *self._more(outputs), *([] if right is None else [right])

        return run
