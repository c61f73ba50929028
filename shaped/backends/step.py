"""One optimizer's update as a part of the graph: its state as flat tensors, and the function to lower.

    finite   <- the loss and every gradient are finite, and every index is in range
    mean     <- mean + share*(g - mean)                  several batches an update; share = samples / all samples so far
    g        <- g * min(1, max_norm / (norm + 1e-6))     the smaller of the trainer's and the optimizer's
    p, state <- the optimizer's rule                     this and the rest where something finite is there
    e        <- e + (1 - ema_decay)*(p - e)
    t        <- t + 1

The flat arguments are: all parameters; for each update its slots, its averages, its step count and its row of scalars;
what waits (means, weight, samples) and the counts, where they are used; then the inputs. All of them are written in
place. `lr` and every other number that a schedule may touch stand in a float64 row for each group, so changing them
compiles nothing, and a captured step reads them.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import is_

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.cases import AdmittedCase
from shaped.backends.counters import Counters
from shaped.backends.executors import CompileError, Executor, Run
from shaped.backends.gradients import clipped, finite_flag, global_norm, mean_with, of_counted
from shaped.backends.guards import Guards
from shaped.backends.inductor import Flat
from shaped.backends.options import TrainerOptions
from shaped.backends.program import Program
from shaped.backends.samples import FACTOR
from shaped.backends.values import Checked, Runs
from shaped.optim import FusedOptimizer, GroupUpdate
from shaped.optim.foreign import Foreign
from shaped.optim.updates import CheckedRule, CheckedRules
from shaped_kernels.rule import Rule, refuse_misshapen

NOT_FINITE, WRONG_VALUE, NO_SAMPLES = 1, 2, 3  # why a step changed nothing
WHY = "why"  # what its second result is called


@dataclass(frozen=True)
class Runner:
    """What runs a batch: an executor or its capture, with the sizes that it takes first where they are free."""

    run: Run
    sizes: Sequence[int]
    executor: Executor

    def __call__(self, state: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.run([*self.sizes, *state, *inputs])


class TrainStep:
    """One optimizer over a program: `prepare` gives the flat state as it is now, `function` what to lower.

    Args:
        program: The loss and its parameters.
        optimizer: Whose rule it is. None where gradients are gathered, and taken at the parameters.
        last: Whether the parameters move; otherwise gradients are gathered.
        options: Clipping, accumulation and what is done with what is not finite.
        counters: Counts, and gradients that wait.

    Raises:
        CompileError: The optimizer stores state in a way that the graph cannot express; the message says what to do.
    """

    def __init__(
        self,
        program: Program,
        optimizer: FusedOptimizer | None,
        options: TrainerOptions,
        counters: Counters,
        last: bool,
    ) -> None:
        self._program, self._optimizer, self._last = program, optimizer, last
        self._options, self._counters = options, counters
        self._gathers = options.accumulate > 1
        if optimizer is not None:
            _refuse_storage(optimizer)
        with torch.inference_mode(False):
            self._samples = torch.zeros((), dtype=torch.float64, device=program.params.device)
        self._samples_now = 0.0
        self._updates: list[GroupUpdate] = []
        self._plain: list[Tensor] = []
        self._rows: list[list[Tensor]] = []
        self._rules: list[Rule] = []
        self._scalars: list[tuple[float, ...]] = []
        self._read: CheckedRules | None = None
        self._guards: Guards | None = None  # under which what was read was looked at
        self.state: list[Tensor] = []
        self.rows: list[int] = []  # where in the state the rows of scalars lie
        self.layout = 0
        self.runs: dict[AdmittedCase, Runner] = {}  # by admitted batch, so that a step looks one thing up

    @property
    def name(self) -> str:
        """What executors of it are called."""
        return type(self._optimizer).__name__ if self._last else "gather"

    @cached_property
    def asks(self) -> bool:
        """Whether the host reads how it went."""
        return not self._options.skips or self._program.params.device.type == "cpu"

    def prepare(self, samples: float, number: Callable[[Hashable], int]) -> list[Tensor]:
        """The flat state, with every scalar as it is now; `number` names a layout when it is a new one."""
        if self._optimizer is None:
            if self._plain is not self._program.plain or not self.state:
                self._take([], [], number)
        else:
            guards = self._program.guards
            laid_out = guards is self._guards and guards.known
            read = self._optimizer.read(self._program.used_tensors, laid_out)
            self._guards = guards
            if read is not self._read or self._plain is not self._program.plain:
                both = zip(read.plan.updates, read.readings, strict=True)
                self._take(read.plan.updates, [u.read() if u.lr_on_device else r for u, r in both], number)
                self._read = read
        if samples != self._samples_now:
            self._samples.fill_(samples)
            self._samples_now = samples
        return self.state

    def _take(self, updates: list[GroupUpdate], readings: list[CheckedRule], number: Callable[[Hashable], int]) -> None:
        """Go on with other updates, rules or numbers."""
        rules = [reading.rule for reading in readings]
        same = rules == self._rules and len(updates) == len(self._updates) and all(map(is_, updates, self._updates))
        if not same:
            self._program.take_new_layout()
        if not same or self._plain is not self._program.plain or not self.state:
            self._rules = rules
            with torch.inference_mode(False):  # the rows are written in every later step
                self._gather(updates, readings)
            self.layout = number(self._kinds())
            self.runs = {}
        for i, reading in enumerate(readings):
            if reading.numbers != self._scalars[i]:
                self._write_row(i, reading.numbers)

    def _write_row(self, index: int, scalars: tuple[float, ...]) -> None:
        """Entry by entry: filling a tensor on a device does not wait for it, as copying from the host may."""
        for entry, new, old in zip(self._rows[index], scalars, self._scalars[index], strict=True):
            if new != old:
                entry.fill_(new)
        self._scalars[index] = scalars

    def _gather(self, updates: list[GroupUpdate], readings: Sequence[CheckedRule]) -> None:
        self._updates, self._plain = updates, self._program.plain
        device = self._program.params.device
        self._scalars = [reading.numbers for reading in readings]
        rows = [torch.tensor(scalars, dtype=torch.float64, device=device) for scalars in self._scalars]
        self._rows = [list(row.unbind()) for row in rows]
        self.state, self.rows = list(self._program.plain), []
        for update, row in zip(updates, rows, strict=True):
            self.state += [tensor for slot in (*update.slots, *_averages(update)) for tensor in slot]
            self.state += [update.counted, row]
            self.rows.append(len(self.state) - 1)
        if self._gathers:
            self.state += [*self._counters.means, self._counters.weight, self._samples]
        if self._options.skips:
            self.state.append(self._counters.counts)

    def _kinds(self) -> Hashable:
        """All that the lowered code takes for granted of the state and the groups."""
        return self._optimizer and tuple(
            (
                self._optimizer.options,
                tuple(update.indices),
                tuple((t.dtype, t.stride()) for slot in (*update.slots, *_averages(update)) for t in slot),
                rule,
            )
            for update, rule in zip(self._updates, self._rules, strict=True)
        )

    def commit(self) -> None:
        """Tell autograd and the optimizer what compiled code has written unseen."""
        if not self._last:
            return
        torch.autograd.graph.increment_version(self._program.used_tensors)
        for update in self._updates:
            update.adopt()

    def function(self, graph: GraphModule, runs: Callable[[GraphModule], Runs] = Checked) -> Flat:
        """What to lower: flat tensors to the loss, 0 or why nothing changed, more results, a norm that is kept.

        Where the host does not ask, a batch with a wrong value is left out like one that is not finite.
        """
        program, inputs = self._program, self._taken(graph)

        def step(*flat: Tensor) -> tuple[Tensor, ...]:
            params = flat[: len(program.tensors)]
            rest = list(flat[len(program.tensors) : len(flat) - inputs])
            tensors, written = program.for_writing(params)
            self._lead(tensors, rest)
            checked = runs(graph)
            loss, *every = checked.run(*tensors, *flat[len(flat) - inputs :])
            more = [t.clone() for t in every[len(every) - program.more :]]
            gradients = [every[program.trainable.index(i)] for i in program.used]
            if program.strategy is not None:  # one that is a parameter must not follow its update
                gradients = [g.clone() for g in gradients]
            finite, right = finite_flag(loss, gradients), checked.right()
            samples = torch.ones_like(finite, dtype=torch.float64)
            if self._gathers:
                samples, right = self._count(graph, flat, right)
                loss, finite = of_counted(loss, finite, samples)
            why = ~finite
            if right is not None:
                finite = finite & right
                why = torch.where(right, why.to(torch.int8), WRONG_VALUE)
            if right is None or not self.asks:
                right = torch.ones_like(finite)
            loss = loss.clone()  # one that is a parameter must not follow its update
            for i, new in zip(program.writes, written, strict=True):
                params[i].copy_(torch.where(finite, new, params[i]))
            counts = rest.pop() if self._options.skips else None
            go = finite
            if self._gathers:
                count = len(program.used) + 2
                gradients, go = self._blend(rest[-count:], gradients, finite, right, samples)
                del rest[-count:]
                if self._last:
                    why = torch.where(finite & ~go, NO_SAMPLES, why.to(torch.int8))
            if counts is not None:
                taken = go if self._last else torch.zeros_like(go)
                counts.add_(torch.stack([taken, right & ~finite]).to(counts.dtype))
            if not self._last:
                return loss, why, *more
            used = [params[i] for i in program.used]
            return loss, why, *more, *self._move(used, gradients, rest, go)

        return step

    def _lead(self, tensors: list[Tensor], rest: Sequence[Tensor]) -> None:
        """Put parameters where their rule takes the gradient."""
        at = 0
        for update, rule in zip(self._updates, self._rules, strict=True):
            size = len(update.params)
            slots = [rest[at + size * kind : at + size * (kind + 1)] for kind in range(len(update.slots))]
            at += size * (len(update.slots) + len(_averages(update))) + 2
            for j, index in enumerate(update.indices if rule.leads else ()):
                i, state = self._program.used[index], tuple(slot[j] for slot in slots)
                tensors[i] = rule.point(tensors[i], state, list(rest[at - 1].unbind()))

    def _taken(self, graph: GraphModule) -> int:
        """How many inputs the graph has: the batch, and what it reads from outside."""
        return sum(node.op == "placeholder" for node in graph.graph.nodes) - len(self._program.tensors)

    def _count(self, graph: GraphModule, flat: Sequence[Tensor], right: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """How many samples the batch has, and whether it could take all values."""
        inputs, factor = self._taken(graph), graph.meta.get(FACTOR)
        by_sizes = flat[len(flat) - inputs - 1 - self._options.skips]
        if factor is None:
            return by_sizes, right
        checked = Checked(factor.graph)
        given = factor.arguments(flat[: len(self._program.tensors)], flat[len(flat) - inputs :])
        value = factor.value(checked.run(*given))
        more = checked.right()
        return by_sizes * value, right if more is None else more if right is None else right & more

    def _blend(
        self,
        waiting: Sequence[Tensor],
        gradients: Sequence[Tensor],
        finite: Tensor,
        right: Tensor,
        samples: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Take a batch into the mean; with an optimizer, hand the mean over and start anew."""
        *means, weight, _ = waiting
        blended, weighed = mean_with(means, weight, gradients, samples, finite)
        go = right & (weighed > 0)
        for mean, new in zip(means, blended, strict=True):
            mean.copy_(new)
        if not self._last:
            weight.copy_(weighed)
            return blended, go
        if not self._options.skips:  # an error leaves what waits as it was
            go = finite & (weighed > 0)
            weighed = torch.where(finite, torch.zeros_like(weight), weight)
        else:
            weighed = torch.where(right, torch.zeros_like(weight), weight)
        weight.copy_(weighed)
        return blended, go

    def _move(
        self,
        used: Sequence[Tensor],
        gradients: Sequence[Tensor],
        rest: list[Tensor],
        go: Tensor,
        norm: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Clip and update where `go`; returns the norm that trainer and optimizer keep as `grad_norm`, where taken.

        `norm` is the gradients' where it is known: of all ranks, where these have parts of them.
        """
        assert self._optimizer is not None
        options, mine = self._optimizer.options, self._options.max_norm
        norms = [global_norm(gradients) if norm is None else norm] if options.measures(mine) else []
        if (limit := options.limit(mine)) is not None:
            gradients = clipped(gradients, limit, norms[0])
        for update, rule in zip(self._updates, self._rules, strict=True):
            size = len(update.params)
            slots = [[rest.pop(0) for _ in range(size)] for _ in update.slots]
            averages = [[rest.pop(0) for _ in range(size)] for _ in _averages(update)]
            moving = [used[i] for i in update.indices], [gradients[i] for i in update.indices], slots
            self._apply(rule, *moving, averages, rest.pop(0), rest.pop(0), go)
        return tuple(norms)

    def _apply(
        self,
        rule: Rule,
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        averages: Sequence[Sequence[Tensor]],
        counted: Tensor,
        row: Tensor,
        go: Tensor,
    ) -> None:
        assert self._optimizer is not None
        new, state = rule.plain_list(params, gradients, slots, list(row.unbind()), counted.double() + 1)
        for kind, before, after in zip(("parameter", *rule.slots), (params, *slots), (new, *state), strict=True):
            refuse_misshapen(rule, kind, before, after)
        state = [list(map(_without_subnormals, slot)) for slot in state]
        for at, p in enumerate(new):
            for before, after in zip((params, *slots), (new, *state), strict=True):
                before[at].copy_(torch.where(go, after[at], before[at]))
            for average in averages:
                e = average[at]
                moved = e + (1.0 - (self._optimizer.options.ema_decay or 0.0)) * (p.to(e.dtype) - e)
                e.copy_(torch.where(go, moved, e))
        counted.add_(go.to(counted.dtype))


def _without_subnormals(state: Tensor) -> Tensor:
    """0 for each number too small for its leading bit, at which a CPU is slow.

    The moment of an entry whose gradient stays 0 shrinks to such a number and remains one: 0.9 of it rounds to itself.
    Those of float16 are left: they are in use, and wide where they are computed with.
    """
    if state.device.type != "cpu" or state.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return state
    return torch.where(state.abs() < torch.finfo(state.dtype).tiny, 0.0, state)


def _averages(update: GroupUpdate) -> tuple[list[Tensor], ...]:
    """The moving averages that an optimizer with `ema_decay` keeps."""
    return () if update.ema is None else (update.ema,)


def _refuse_storage(optimizer: FusedOptimizer) -> None:
    if isinstance(optimizer, Foreign):
        raise CompileError(optimizer.refusal)
    options = optimizer.options
    wrong = []
    if options.store != "nearest":
        wrong.append(f"store={options.store!r}")
    if options.moments == "8bit":
        wrong.append("moments='8bit'")
    if wrong:
        raise CompileError(
            f"the compiled step rounds to nearest and keeps whole moments; {type(optimizer).__name__} was made with "
            f"{' and '.join(wrong)}, which only the kernels of shaped.optim do: leave it out, or use backend='eager'"
        )
