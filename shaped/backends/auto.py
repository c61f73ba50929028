"""The backend that chooses: eager until a compiled step is worth its while and there, and eager where none can be.

Compiling takes 10 to 60 seconds, which a short run never earns back. So steps are taken eagerly at first. When those at
one size have taken `PATIENCE` seconds they may well go on as long again, and another process compiles them (`apart.py`)
while they go on; the compiled step takes over between two of them, after it was held against eager at its first batch.
Several ranks would have to change over together: there it compiles before a step.
"""

import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from shaped.backends.apart import Apart, NotYetError
from shaped.backends.compiled import Compiled
from shaped.backends.eager import Eager
from shaped.backends.executors import CompileError, Executors
from shaped.backends.program import Program
from shaped.errors import ExecutorError
from shaped.optim import FusedOptimizer

T = TypeVar("T")
PATIENCE = 2.0  # seconds of eager passes at one size before it is compiled
_MANY = 4  # times as long at all sizes together do as well
_AGAIN = 0.05  # seconds between looks whether an executor is there
_KINDS = 64  # of batches that wait for one


@dataclass
class _Wait:
    """Batches of a kind that have no executor as yet."""

    spent: float = 0.0  # seconds of eager passes
    until: float = 0.0  # when to look again


class Auto:
    """Eager, then compiled; or eager for good with one warning and the reason in `executors`.

    Args:
        eager, compiled: The two, over one program.
    """

    def __init__(self, eager: Eager, compiled: Compiled) -> None:
        self._eager, self._compiled = eager, compiled
        self._refused = False
        self._now: Eager | Compiled = eager
        self._spent = 0.0  # seconds of eager passes
        self._waiting: dict[Hashable, _Wait] = {}
        self._apart = None if self.program.together else Apart()

    @property
    def name(self) -> str:
        """The one that ran last; "eager" before a first step."""
        return self._now.name

    @property
    def why(self) -> str:
        """Why it is that one, for a reader."""
        if self._refused or self._apart is None:
            return "" if not self._refused else "the compiler refused"
        if self._apart.compiling:
            return f"{self._apart.compiling} is being compiled"
        if self._now is self._compiled:
            return f"after {self._spent:.1f} s of eager passes" if self._spent else ""
        return f"{self._spent:.1f} s of passes; what takes {PATIENCE:.0f} s is compiled"

    @property
    def program(self) -> Program:
        """What both run."""
        return self._compiled.program

    @property
    def executors(self) -> Executors:
        """Those of the compiled backend; `note` says why it was left, or not yet taken."""
        if not self._refused:
            self._compiled.executors.note = f"{self.name}: {self.why}" if self.why else ""
        return self._compiled.executors

    @property
    def compiled(self) -> Compiled | None:
        """The compiled backend, unless it was left. What it is asked for by itself is compiled at once."""
        self._waiting.clear()
        return None if self._refused else self._compiled

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The loss."""
        return self._run("forward", inputs, lambda backend: backend.forward(inputs))

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the gradients and the values that a forward would write."""
        return self._run("loss_and_backward", inputs, lambda backend: backend.loss_and_backward(inputs))

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]:
        """Take a step, or gather a batch for one."""
        return self._run((id(optimizer), last), inputs, lambda backend: backend.update(inputs, optimizer, last))

    def again(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """The same right after an update; nothing of it is left out here."""
        return self.update(inputs, optimizer)

    def _run(self, kind: Hashable, inputs: Sequence[Tensor], call: Callable[[Eager | Compiled], T]) -> T:
        wait = self._waiting.get(_batch(kind, inputs)) if self._waiting else None
        if not self._refused and (wait is None or wait.until <= time.monotonic()):
            if self._apart is not None:
                own = wait.spent if wait is not None else 0.0
                self._apart.ready = max(own, self._spent / _MANY) >= PATIENCE
            try:
                self._compiled.apart = self._apart
                done = call(self._compiled)
                self._now = self._compiled
                return done
            except NotYetError:
                wait = self._wait(_batch(kind, inputs))
            except CompileError as error:  # raised before anything has run
                self.leave(error)
            except ExecutorError:  # of the step, and not of the compiler
                self._now = self._compiled
                raise
            finally:
                self._compiled.apart = None
        self._now, began = self._eager, time.perf_counter()
        done = call(self._eager)
        took = time.perf_counter() - began
        self._spent += took
        if wait is not None:
            wait.spent += took
        return done

    def _wait(self, batch: Hashable) -> _Wait:
        """Note that a kind of batches has to wait a little longer."""
        if len(self._waiting) >= _KINDS and batch not in self._waiting:
            self._waiting.clear()
        wait = self._waiting.setdefault(batch, _Wait())
        wait.until = time.monotonic() + _AGAIN
        return wait

    def leave(self, error: CompileError) -> None:
        """Go on with the eager backend."""
        self._refused, self._now = True, self._eager
        self._compiled.executors.note = f"eager from here on: {error}"
        warnings.warn(f"backend='auto' goes on with the eager backend: {error}", RuntimeWarning, stacklevel=2)


def _batch(kind: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return kind, tuple(getattr(x, "shape", None) for x in inputs)
