"""The eager backend: the user's function under autograd, operation by operation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shaped.backends.counters import Counters
from shaped.backends.executors import Executors
from shaped.backends.gradients import all_finite, finite_flag, gradients_of, mean_with, of_counted
from shaped.backends.interrupts import Whole
from shaped.backends.options import TrainerOptions
from shaped.backends.program import Program
from shaped.backends.samples import checked_count
from shaped.optim import FusedOptimizer
from shaped.optim.averaging import swapped
from shaped.optim.updates import CheckedRules


class Eager:
    """Runs a program with autograd and updates with `shaped_kernels`."""

    name = "eager"

    def __init__(self, program: Program, options: TrainerOptions, counters: Counters) -> None:
        self.program = program
        self.executors = Executors(options.max_executors)  # stays empty
        self._options, self._counters = options, counters
        self._used = program.used_tensors
        self._quiet = options.skips and program.params.device.type != "cpu"  # the host must not ask what was finite

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss, without a graph behind it."""
        self._admit(inputs)
        with torch.no_grad():
            return self.program.call(inputs)[0].clone()

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the gradients of `program.used` and the values of `program.writes`, from one pass."""
        self._admit(inputs)
        with torch.enable_grad(), self.program.around():  # also under the caller's no_grad
            if self.program.strategy is not None:
                loss, gradients, written = self.program.differentiate(inputs)
            else:
                loss, written = self.program.call(inputs)
                gradients = gradients_of(loss, self._used)
        return loss.detach().clone(), gradients, written  # a loss that is a parameter must not follow its update

    def at(
        self, tensors: Sequence[Tensor], inputs: Sequence[Tensor], only_loss: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same pass with other tensors in the place of the parameters; of the loss alone, without gradients.

        They are run through the function of the proof, so that they may be whole where the parameters lie in parts.
        """
        program = self.program
        leaves = [t.detach().requires_grad_(i in program.used) for i, t in enumerate(tensors)]
        with torch.set_grad_enabled(not only_loss), program.around():
            given, written = program.for_writing(leaves)
            loss, *others = program.setting.run([*given, *inputs])
            program.keep(loss, others)
            gradients = [] if only_loss else list(torch.autograd.grad(loss, [leaves[i] for i in program.used]))
        return loss.detach().clone(), gradients, written

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]:
        """Take a step, or with `last=False` gather a batch for it. Returns the loss, and whether all was finite.

        Where it was not, nothing has changed. With `nonfinite="skip"` the flag is always True: such a batch is left out
        and counted.
        """
        readings = optimizer.read(self._used)  # out of range: an error before any work
        counted: Tensor | float = 1.0
        if self._options.accumulate > 1:
            counted = self.program.count_now(inputs)
        samples = 1.0 if self._quiet else checked_count(counted)
        with optimizer.ahead(self._used, readings):
            loss, gradients, written = self.loss_and_backward(inputs)
        if self._quiet:
            with Whole():
                finite = finite_flag(loss, gradients)
                if self._options.accumulate > 1:
                    loss, finite = of_counted(loss, finite, counted)
                self._update_quietly(finite, gradients, written, counted, optimizer, readings, last)
                self._counters.count(optimizer, last=last)
            return loss, True
        right = not samples or all_finite([loss, *gradients], own=self.program.strategy is None)
        loss = loss if samples else torch.zeros_like(loss)  # of nothing; a mean over it may be NaN
        if not right and not self._options.skips:
            return loss, False
        with Whole():
            self._move(right, gradients, written, samples, optimizer, readings, last)
        return loss, True

    def again(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """The same right after an update; nothing of it is left out here."""
        return self.update(inputs, optimizer)

    def _move(
        self,
        finite: bool,
        gradients: Sequence[Tensor],
        written: Sequence[Tensor],
        samples: float,
        optimizer: FusedOptimizer,
        readings: CheckedRules,
        last: bool,
    ) -> None:
        """Take a batch in, update where it is time for it, and count."""
        counters = self._counters
        if finite and written:
            self.program.write(written)
        go = finite and last
        if self._options.accumulate > 1:
            if finite:
                counters.blend(gradients, samples)
            go = last and float(counters.weight) > 0
            gradients = counters.means
            if last:
                counters.weight.zero_()
        if go:
            self._step(optimizer, gradients, readings)
        counters.count(optimizer, last=last, taken=go, left_out=not finite)

    def update_waiting(self, optimizer: FusedOptimizer) -> bool:
        """Update with the mean gradient of the batches that wait; False where they have no samples."""
        self.program.follow_storage()
        readings = optimizer.read(self._used)
        counters, go = self._counters, float(self._counters.weight) > 0
        with Whole():
            if go:
                self._step(optimizer, counters.means, readings)
            counters.weight.zero_()
            counters.count(optimizer, last=True, taken=go)
        return go

    def after_step(
        self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, params: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the parameters as one step from here would leave them.

        Args:
            inputs: A batch.
            optimizer: A copy of one over `params`; it is stepped.
            params: Copies of the program's tensors; they are written.
        """
        with optimizer.ahead([params[i] for i in self.program.used]):
            at = [params[i].detach().clone() for i in self.program.used]
        with swapped(self._used, at):
            loss, gradients, written = self.loss_and_backward(inputs)
        if self._options.accumulate > 1 and not checked_count(self.program.count_now(inputs)):
            return torch.zeros_like(loss), list(params)  # as a step of a batch without samples
        finite = all_finite([loss, *gradients], own=self.program.strategy is None)
        if finite:
            for i, new in zip(self.program.writes, written, strict=True):
                params[i].copy_(new)
            used = [params[i] for i in self.program.used]
            optimizer.update(gradients, used, max_norm=self._options.max_norm)
        return loss, list(params)

    def _update_quietly(
        self,
        finite: Tensor,
        gradients: Sequence[Tensor],
        written: Sequence[Tensor],
        samples: Tensor | float,
        optimizer: FusedOptimizer,
        readings: CheckedRules,
        last: bool,
    ) -> None:
        """The same step where the verdict stays on the device; it is counted there too."""
        counters = self._counters
        self.program.write(
            [
                torch.where(finite, new, self.program.plain[i])
                for i, new in zip(self.program.writes, written, strict=True)
            ]
        )
        go = finite
        if self._options.accumulate > 1:
            means, weight = mean_with(counters.means, counters.weight, gradients, samples, finite)
            torch._foreach_copy_(counters.means, means)
            counters.weight.copy_(weight)
            gradients, go = counters.means, counters.weight > 0
        if last:
            self._step(optimizer, gradients, readings, (~go).to(torch.float32))
            counters.weight.zero_()
        taken = go if last else torch.zeros_like(go)
        counters.counts.add_(torch.stack([taken, ~finite]).to(torch.int64))

    def _step(
        self,
        optimizer: FusedOptimizer,
        gradients: Sequence[Tensor],
        readings: CheckedRules,
        found_inf: Tensor | None = None,
    ) -> None:
        """Clip and update: the one place where this backend does."""
        optimizer.update(gradients, self._used, found_inf, readings, self._options.max_norm)
        if optimizer.options.measures(self._options.max_norm):
            self._counters.grad_norm = optimizer.grad_norm

    def _admit(self, inputs: Sequence[Tensor]) -> None:
        self.program.follow_storage()
        if self.program.check or self.program.modules:  # a module's mode says what it writes
            self.program.outside.look(eager=True)
            self.program.admit(inputs)
