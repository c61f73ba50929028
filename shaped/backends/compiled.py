"""The compiled backend: the proved graph, with the update in it, lowered to one callable for the whole step.

*The graph that was proved is the graph that runs*: the symbolic trace of loss and gradients is traced again together
with the update, at the sizes of a batch or with its free sizes left symbolic, and lowered. An executor is found by the
batch as it was admitted, so that a step costs one comparison of shapes and one call.

`sizes="static"` makes an executor for each tuple of sizes, `"dynamic"` one for all. `"auto"` begins with the first and
makes the second when another size comes, so a smaller last batch makes two, whatever sizes follow.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.agreement import RETURNED, Build, DisagreementError, FirstRun, hold
from shaped.backends.apart import Apart
from shaped.backends.capture import Capture, CudaGraphs, Graphs
from shaped.backends.cases import CASES, AdmittedCase, SeenBatch, free_shape, shapes_of
from shaped.backends.counters import Counters
from shaped.backends.draws import Unheld
from shaped.backends.eager import Eager
from shaped.backends.executors import CompileError, Executor, Executors, Key, Run
from shaped.backends.inductor import Flat, Free, lower, prepare, whole_graph
from shaped.backends.interrupts import Whole
from shaped.backends.options import TrainerOptions
from shaped.backends.outside import tensors_of
from shaped.backends.program import Program
from shaped.backends.refusals import refuse_hooks, refuse_looks, refuse_modes, refuse_redrawn
from shaped.backends.samples import checked_count
from shaped.backends.step import NO_SAMPLES, WHY, WRONG_VALUE, Runner, TrainStep
from shaped.backends.values import Checked, Runs
from shaped.errors import ExecutorError
from shaped.optim import FusedOptimizer
from shaped.proof import forward_graph

_STEPS = 6  # one for each update path (step, adam_step, adamw_step, train_step) and two that gather
_SEEN = 4  # kinds of batches that are told apart in a loop of C


class Compiled:
    """Runs a program as compiled graphs, and keeps them in `executors`."""

    name = "compiled"

    def __init__(self, program: Program, options: TrainerOptions, counters: Counters) -> None:
        self.program = program
        self.executors = Executors(options.max_executors, dynamic=options.sizes == "dynamic")
        self._options, self._counters = options, counters
        self._steps: dict[tuple[int | None, bool], TrainStep] = {}
        self._runs: dict[tuple[str, AdmittedCase, int], Runner] = {}
        self._seen: list[SeenBatch] = []  # of which the next one is likely to be
        self._graphs: Graphs | None = None  # how steps are captured; None where they are not
        if options.capture and program.params.device.type == "cuda":
            self._graphs = CudaGraphs(program.params.device)
        self.apart: Apart | None = None  # who compiles in another process, while the call is one that need not wait
        self.keeper: Callable[[Compiled], object] | None = None  # is told when another executor was held
        self._narrow: dict[Key, str] = {}  # what the compiler refused for all sizes, and why
        self._layouts: dict[Hashable, int] = {}  # strides and dtypes of parameters and state, numbered as they come

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss."""
        case, inputs = self._admit(inputs)
        loss, *rest = self._pass("forward", case, inputs, self._forward)(self.program.plain, inputs)
        self._refuse_wrong("forward", rest[self.program.more :], case, inputs)
        self.program.keep(loss, rest[: self.program.more])
        return loss

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the gradients of `program.used` and the values of `program.writes`, from one graph."""
        case, inputs = self._admit(inputs)
        loss, *rest = self._pass("loss_and_backward", case, inputs, self._joint)(self.program.plain, inputs)
        count = len(self.program.used)
        wrote = count + len(self.program.writes)
        returned = wrote + self.program.more
        self._refuse_wrong("loss_and_backward", rest[returned:], case, inputs)
        self.program.keep(loss, rest[wrote:returned])
        return loss, list(rest[:count]), list(rest[count:wrote])

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]:
        """Take a step, or with `last=False` gather a batch for it. Returns the loss, and whether all was finite.

        Where it was not, nothing has changed. With `nonfinite="skip"` the flag is always True and the device counts.
        """
        step = self._step(optimizer)  # refuses what cannot be compiled before anything waits
        if not last:
            step = self._step(optimizer, last)
            for update in optimizer.updates(self.program.used_tensors):
                update.scalars()  # out of range: an error before any work
        case, inputs = self._admit(inputs)
        step.prepare(case.samples, self._layout)
        runner = step.runs.get(case) or self._runner(step, case, inputs)
        return self._moved(step, optimizer, last, runner, case, inputs)

    def again(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """The same right after an update, where only the batch and what the loss reads can be others since."""
        step = self._step(optimizer)
        case, ready = self._looked(inputs)
        if (runner := step.runs.get(case)) is None:
            return self.update(inputs, optimizer)
        return self._moved(step, optimizer, True, runner, case, ready)

    def _moved(
        self, step: TrainStep, optimizer: FusedOptimizer, last: bool, runner: Runner, case: AdmittedCase, inputs: Any
    ) -> tuple[Tensor, bool]:
        """Run a step that is prepared, and count it."""
        with Whole():
            loss, why, *rest = runner(step.state, inputs)
            norm = rest[self.program.more :]
            reason = why.item() if step.asks else 0
            if self._counted(step, optimizer, reason, last):
                self.program.keep(loss, rest[: self.program.more])
                if norm and reason == 0:
                    self._counters.grad_norm = optimizer.grad_norm = norm[0]
                return loss, True
        if reason == WRONG_VALUE:
            raise self._wrong(step.name, case, inputs)
        if self._options.accumulate > 1:
            checked_count(self.program.count(case, inputs))
        return loss, False

    def _counted(self, step: TrainStep, optimizer: FusedOptimizer, reason: float, last: bool) -> bool:
        """Count what a step did: taken, gathered, or left out as the options say. False for what is an error."""
        if reason not in (0, NO_SAMPLES) and (not self._options.skips or reason == WRONG_VALUE):
            return False
        taken = last and not self._options.skips and reason != NO_SAMPLES
        self._counters.count(optimizer, last=last, taken=taken)
        step.commit()
        return True

    def after_step(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the parameters as one step from here would leave them; it runs on copies."""
        step = self._step(optimizer)
        case, inputs = self._admit(inputs)
        state = step.prepare(case.samples, self._layout)
        runner = step.runs.get(case) or self._runner(step, case, inputs)
        copies = self._copies(state)
        loss = runner.executor([*runner.sizes, *copies, *inputs])[0]
        return loss, copies[: len(self.program.tensors)]

    def step_graph(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[GraphModule, list[Tensor]]:
        """The whole step as one functional graph, as it is lowered at these sizes, and copies of what it runs on."""
        step = self._step(optimizer)
        case, inputs = self._admit(inputs)
        arguments = [*self._copies(step.prepare(case.samples, self._layout)), *inputs]
        return whole_graph(step.function(case.graph), arguments), arguments

    def aside(self) -> "Compiled":
        """Another one that finds these executors and keeps what it makes to itself: no place, no hook, no capture."""
        other = Compiled(self.program, replace(self._options, capture=False, verify=False), self._counters)
        other.executors = self.executors.aside()
        other._layouts, other._narrow = self._layouts, self._narrow
        return other

    def _copies(self, state: Sequence[Tensor]) -> list[Tensor]:
        """The state without gradients that wait, so that a step is from one batch."""
        return [torch.zeros_like(t) if t is self._counters.weight else t.clone() for t in state]

    def precompile(self, mode: str, inputs: Sequence[Tensor], optimizer: FusedOptimizer | None) -> list[Executor]:
        """Make the executors for such a batch of a pass ("forward", "loss_and_backward") or of a step ("update")."""
        case, inputs = self._admit(inputs)
        if optimizer is None or mode != "update":
            build = self._forward if mode == "forward" else self._joint
            return [self._pass(mode, case, inputs, build, first=False).executor]
        made = []
        with self.kept_as_they_are():
            for last in (True, False) if self._options.accumulate > 1 else (True,):
                step = self._step(optimizer, last)
                step.prepare(case.samples, self._layout)
                made.append((step.runs.get(case) or self._runner(step, case, inputs, first=False)).executor)
        return made

    @contextmanager
    def kept_as_they_are(self) -> Iterator[None]:
        """Forget the steps of an optimizer that may be made in between; their executors stay."""
        before = dict(self._steps)
        try:
            yield
        finally:
            self._steps = before

    def _refuse_wrong(self, mode: str, right: Sequence[Tensor], case: AdmittedCase, inputs: Sequence[Tensor]) -> None:
        if right and not right[0].item():
            raise self._wrong(mode, case, inputs)

    def _wrong(self, mode: str, case: AdmittedCase, inputs: Sequence[Tensor]) -> ExecutorError:
        """What a value is that an operation cannot take: the forward pass again, operation by operation."""
        checked = Checked(forward_graph(case.graph))
        with torch.no_grad(), suppress(RuntimeError, IndexError):  # the kernel may refuse what was noted before it ran
            checked.run(*self.program.for_writing(self.program.plain)[0], *inputs)
        return ExecutorError(f"`{mode}` at {case}: {checked.first_wrong()}. Nothing has changed")

    # -- executors ---------------------------------------------------------------------------------------------------

    def _step(self, optimizer: FusedOptimizer, last: bool = True) -> TrainStep:
        # What gathers is one for all optimizers, save for those that take gradients elsewhere than at the parameters.
        leads = not last and any(optimizer.rule_of(group).leads for group in optimizer.param_groups)
        owner = optimizer if last or leads else None
        key = None if owner is None else id(owner), last
        step = self._steps.get(key)
        if step is None:
            made = self._made_step(owner, last)
            while len(self._steps) >= _STEPS:  # loading a state makes new optimizers; the old ones must not stay alive
                del self._steps[next(iter(self._steps))]
            step = self._steps[key] = made
        return step

    def _made_step(self, optimizer: FusedOptimizer | None, last: bool) -> TrainStep:
        return TrainStep(self.program, optimizer, self._options, self._counters, last)

    def _layout(self, state: Hashable = ()) -> int:
        """A number for what lowered code takes for granted, so that no step hashes hundreds of strides."""
        key = (self.program.strides, tuple(self.program.writes), state)
        return self._layouts.setdefault(key, len(self._layouts))

    def _under(self, key: Key) -> Hashable:
        """What the number of a layout stands for."""
        return next(known for known, number in self._layouts.items() if number == key.layout)

    def made(self) -> Iterator[tuple[AdmittedCase, Hashable, Runner, Sequence[Tensor]]]:
        """Each executor that was held: the batch, what its code takes for granted, and the state that it runs on."""
        for (_, case, _), runner in self._runs.items():
            yield case, self._under(runner.executor.key), runner, self.program.plain
        for step in self._steps.values():
            for case, runner in step.runs.items():
                yield case, self._under(runner.executor.key), runner, step.state

    def _admit(self, inputs: Sequence[Tensor]) -> tuple[AdmittedCase, list[Tensor]]:
        refuse_modes()
        self.program.follow_storage()
        return self._looked(inputs)

    def _looked(self, inputs: Sequence[Tensor]) -> tuple[AdmittedCase, list[Tensor]]:
        """A batch as admitted, and as executors take it, with what the loss reads from outside."""
        outside = self.program.outside
        outside.look(eager=False)
        if outside.beyond:
            raise CompileError(outside.beyond)
        for seen in self._seen:
            if seen.is_like(inputs, self.program):
                if seen.case.looks:
                    refuse_looks(self.program.signature.name, seen.case.looks, inputs)
                return seen.case, list(map(self.program.apart, inputs))
        case = self.program.admit(inputs)
        if case.refusal:
            raise CompileError(f"`{self.program.signature.name}` {case.refusal}. backend='eager' runs it as it is")
        present = self.program.batch.present(inputs)
        if case.looks:
            refuse_looks(self.program.signature.name, case.looks, present)
        taken = [self._plain(x) for x in (*present, *tensors_of(case.outside))]
        if all(map(is_, taken, inputs)) and len(taken) == len(inputs):
            self._seen = [SeenBatch(case, taken, self.program), *self._seen[: _SEEN - 1]]
        return case, taken

    def _plain(self, x: Tensor) -> Tensor:
        """An input as executors take it: contiguous, as it lies in memory, and in no memory that they write."""
        if x.requires_grad or not x.is_contiguous() or x.is_neg() or x.is_conj():
            x = x.detach().resolve_neg().resolve_conj().contiguous()
        return self.program.apart(x)

    def _free(self, case: AdmittedCase) -> list[str]:
        fixed = {*self.program.params.dims, *case.proof.static}
        return [name for name in case.sizes if name not in fixed]

    def _sizes(self, executor: Executor, case: AdmittedCase) -> list[int]:
        """The sizes that an executor takes first."""
        return [] if executor.holds is None else [case.sizes[name] for name in self._free(case)]

    def _pass(self, mode: str, case: AdmittedCase, inputs: list[Tensor], build: Build, first: bool = True) -> Runner:
        """What runs a pass without an update; `first` where it is about to run these inputs."""
        layout = self._layout()
        found = self._runs.get((mode, case, layout))
        if found is None:
            if len(self._runs) >= CASES:
                self._runs.clear()
            if mode != "forward":
                refuse_hooks(self.program)
                refuse_redrawn(self.program, case.sketch)
            executor = self._executor(self._key(mode, case, layout), case, self.program.plain, inputs, build)
            found = Runner(executor, self._sizes(executor, case), executor)
            if mode == "forward":
                returned = ["the loss"]
            else:
                names = [self.program.params.names[i] for i in (*self.program.used, *self.program.writes)]
                grads = len(self.program.used)
                returned = ["the loss", *(f"the gradient of `{n}`" for n in names[:grads])]
                returned += [f"what `{n}` becomes" for n in names[grads:]]
            returned += self._returned
            known = self.program.params.names
            kept = [f"`{name}`" for name in known]
            args = (case, found.sizes, self.program.plain, inputs, (), returned, kept, ())
            if self._holds(FirstRun(executor, build, *args), first, mode == "forward"):
                self._runs[mode, case, layout] = found
                self._tell_keeper()
        return found

    def _holds(self, trial: FirstRun, first: bool, only_loss: bool = False) -> bool:
        """Hold an executor against eager at its first batch; False where there is none, or it tells nothing."""
        executor = trial.executor
        if executor.wrong:
            raise DisagreementError(executor.wrong)
        if executor.held or not (first and self._options.verify):
            return executor.held or not self._options.verify
        try:
            executor.held = hold(trial, Eager(self.program, self._options, self._counters), only_loss)
        except Unheld as error:
            executor.held, executor.note = True, f"not held against eager: {error}"
        except DisagreementError as error:
            executor.wrong, executor.note = str(error), "compiled code is not the program"
            if executor.how == "kept" and self.program.kept is not None:
                self.program.kept.refuted()
            raise
        return executor.held

    @property
    def _returned(self) -> list[str]:
        return [f"{RETURNED} `{entry.path}`" for entry in self.program.signature.returns.entries[1:]]

    def _step_executor(self, step: TrainStep, case: AdmittedCase, inputs: list[Tensor]) -> Executor:
        return self._executor(self._key(step.name, case, step.layout), case, step.state, inputs, step.function)

    def _runner(self, step: TrainStep, case: AdmittedCase, inputs: list[Tensor], first: bool = True) -> Runner:
        """What takes the step at these sizes from now on, until the state moves; `first` where it is about to."""
        refuse_hooks(self.program)
        refuse_redrawn(self.program, case.sketch)
        calls = self._counters.calls
        executor = self._step_executor(step, case, inputs)
        if self._counters.calls != calls:
            raise ValueError("a hook of executors.on_create took a step within this one, which was not taken")
        if len(step.runs) >= CASES:
            step.runs.clear()
        sizes, run = self._sizes(executor, case), cast(Run, executor)
        if self._graphs is not None:
            if sum(isinstance(runner.run, Capture) for runner in step.runs.values()) < self._options.max_executors:
                run = Capture(executor, len(sizes) + len(step.state), self._graphs)
            else:
                executor.note = "sizes beyond max_executors are not captured"
        made = Runner(run, sizes, executor)
        names = [f"`{name}`" for name in self.program.params.names]
        moved = [*self.program.used, *range(len(names), len(step.state))]
        args = (case, sizes, step.state, inputs, step.rows, ["the loss", WHY, *self._returned], names, moved)
        if self._holds(FirstRun(executor, step.function, *args), first):
            step.runs[case] = made
            self._tell_keeper()
        return made

    def _tell_keeper(self) -> None:
        if self.keeper is not None:
            self.keeper(self)

    def _executor(
        self, key: Key, case: AdmittedCase, state: list[Tensor], inputs: list[Tensor], build: Build
    ) -> Executor:
        """An executor that is right for this batch: one of its sizes, one of all sizes, or a new one."""
        exact = self.executors.find(key)
        if exact is not None:
            return exact
        if self.program.kept is not None and (kept := self.program.kept.executor(key, case, self._under(key), state)):
            return self.executors.add(key, str(case), lambda: kept, told=False)
        if case.apart:  # these sizes take a branch of their own
            return self._add(key, str(case), build(case.graph), state, inputs)
        free = self._free(case)
        sizes = [case.sizes[name] for name in free]
        wide = replace(key, shapes=tuple(free_shape(entry, case.sizes, free) for entry in case.entries))
        found = self.executors.find(wide)
        if found is None and wide not in self._narrow and self._widens(key, sizes):
            fixed = ", ".join(f"{name} = {size}" for name, size in case.sizes.items() if name not in free)
            title = "; ".join(filter(None, [f"any {', '.join(free)}", fixed]))
            free_sizes = Free(dict(zip(free, sizes, strict=True)), partial(shapes_of, case))
            try:
                found = self._add(wide, title, build(case.graph), state, inputs, free_sizes)
            except CompileError as error:
                if self._options.sizes == "dynamic":
                    raise
                self._narrow[wide] = str(error)  # each size may still go through
        if found is not None and found.holds is not None and found.holds(sizes):
            return found
        made = self._add(key, str(case), build(case.graph), state, inputs)
        made.note = f"not for all sizes: {self._narrow[wide]}" if wide in self._narrow else ""
        return made

    def _add(
        self,
        key: Key,
        sizes: str,
        function: Flat,
        state: list[Tensor],
        inputs: list[Tensor],
        free: Free | None = None,
    ) -> Executor:
        """A new executor, compiled now or, where that is asked for, in another process."""
        if self.apart is None:
            return self.executors.add(key, sizes, lambda: lower(function, state, inputs, free))
        apart, what = self.apart, f"{key.mode} at {sizes}"
        make = partial(prepare, function, state, inputs, free)
        return self.executors.add(key, sizes, lambda: apart.lower(key, what, make), told=False)

    def _widens(self, key: Key, sizes: Sequence[int]) -> bool:
        """Whether to make an executor of all sizes now."""
        if not sizes or min(sizes) < 2 or self._options.sizes == "static":
            return False
        return self._options.sizes == "dynamic" or bool(self.executors.like(key))

    def _key(self, mode: str, case: AdmittedCase, layout: int) -> Key:
        batch = case.key[: len(self.program.inputs)]
        return Key(
            mode,
            tuple(tuple(one[0]) for one in batch if one is not None),
            tuple(one and one[1] for one in batch),
            self.program.params.device,
            tuple(case.key[len(batch) :]),
            layout,
            case.world,
        )

    def _forward(self, graph: GraphModule, runs: Callable[[GraphModule], Runs] = Checked) -> Flat:
        def run(*flat: Tensor) -> tuple[Any, ...]:
            outputs, _, right = self._run(runs(forward_graph(graph)), flat)
            return outputs[0].clone(), *self._more(outputs), *right

        return run

    def _joint(self, graph: GraphModule, runs: Callable[[GraphModule], Runs] = Checked) -> Flat:
        kept = [1 + self.program.trainable.index(i) for i in self.program.used]

        def run(*flat: Tensor) -> tuple[Any, ...]:
            outputs, written, right = self._run(runs(graph), flat)
            gradients = [outputs[i] if self.program.strategy is None else outputs[i].clone() for i in kept]
            return (outputs[0].clone(), *gradients, *written, *self._more(outputs), *right)

        return run

    def _more(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What the loss returns beside itself: the last outputs of its graph."""
        return [t.clone() for t in outputs[len(outputs) - self.program.more :]]

    def _run(self, checked: Runs, flat: Sequence[Tensor]) -> tuple[Sequence[Any], list[Tensor], list[Tensor]]:
        """The proved graph on copies of what it writes into, these copies, and whether it could take all values."""
        count = len(self.program.tensors)
        params, written = self.program.for_writing(flat[:count])
        outputs = checked.run(*params, *flat[count:])
        right = checked.right()
        return outputs, written, [] if right is None else [right]
