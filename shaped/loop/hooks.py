"""Hooks and when they are due.

    every_n_steps(100)        where the loop's step is a multiple of 100, also after resuming
    n_times(10)               exactly ten times in a run, evenly, the last time at its end
    periodic(60)              when 60 seconds have passed since the last time (monotonic clock)
    exponential(100, 1.2)     at steps 100, 220, 364, 537, 745, 995, ...: gaps of 100, 120, 144, 173, 208, 250

Differences from GoMLX: n_times(n) fires n times there n + 1, and on a second run only once.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from shaped.arguments import checked, whole
from shaped.loop.running import Running

HookFunction = Callable[[Any], Any]
Added = TypeVar("Added", bound=HookFunction)


class Schedule:
    """When a step hook is due. This one: at every step."""

    at_end = False

    def begin(self, loop: Running) -> None:
        """A run begins, or goes on after a resume: `loop.step` steps are behind it."""

    def due(self, loop: Running) -> bool:
        """Whether the hook runs after this step."""
        return True

    def done(self) -> None:
        """The hook has run."""

    def state(self) -> dict[str, float]:
        """What a resumed run needs, beyond its step and its ends."""
        return {}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a state."""


class EveryN(Schedule):
    """Where the step is a multiple of n."""

    def __init__(self, n: int) -> None:
        self.n = whole("n", n, 1)

    def due(self, loop: Running) -> bool:
        return loop.step % self.n == 0


class NTimes(Schedule):
    """n times in a run, evenly; where the run is shorter than n, at every step.

    While the end is unknown (the first epoch of data that has no length) it fires at steps 128, 256, 512, ..., and
    then spreads what is left over what is left.
    """

    def __init__(self, n: int) -> None:
        self.n = whole("n", n, 1)
        self._fired = 0
        self._spread(0, None)

    def begin(self, loop: Running) -> None:
        if not loop.resumed:
            self._fired = 0
            self._spread(loop.start_step, loop.end_step)

    def _spread(self, start: int, end: int | None) -> None:
        """Divide what is left of the n over the steps from here to the end."""
        self._from, self._end, self._base = start, -1 if end is None else end, self._fired

    def due(self, loop: Running) -> bool:
        if loop.end_step is None:
            taken = loop.step - loop.start_step
            return self._fired < self.n - 1 and taken >= 128 and taken & (taken - 1) == 0
        if loop.end_step != self._end:  # it has become known, or has moved
            self._spread(loop.step - 1, loop.end_step)
        left, length = self.n - self._base, max(self._end - self._from, 1)
        before, now = ((step - self._from) * left // length for step in (loop.step - 1, loop.step))
        return left > 0 and now > before

    def done(self) -> None:
        self._fired += 1

    def state(self) -> dict[str, float]:
        return {"fired": self._fired, "from": self._from, "end": self._end, "base": self._base}

    def load(self, state: dict[str, float]) -> None:
        self._fired, self._from = int(state["fired"]), int(state["from"])
        self._end, self._base = int(state["end"]), int(state["base"])


class Periodic(Schedule):
    """When some seconds have passed since the last time ended; the run's beginning starts the clock."""

    def __init__(self, seconds: float, at_end: bool) -> None:
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {seconds!r}; it is a number above 0")
        self.seconds, self.at_end = seconds, at_end
        self._since = 0.0
        self.agreed: bool | None = None  # on several ranks: what rank 0's clock said before the step

    def begin(self, loop: Running) -> None:
        self._since, self.agreed = time.monotonic(), None if loop.peers.size == 1 else False

    @property
    def passed(self) -> bool:
        """Whether the time is over, by this process's clock."""
        return time.monotonic() - self._since >= self.seconds

    def due(self, loop: Running) -> bool:
        return self.passed if self.agreed is None else self.agreed

    def done(self) -> None:
        self._since = time.monotonic()
        self.agreed = None if self.agreed is None else False


class Exponential(Schedule):
    """At steps that lie `start` apart at first, and then further and further."""

    def __init__(self, start: int, factor: float, at_end: bool) -> None:
        self.start = whole("start", start, 1)
        if not 1 < factor < math.inf:
            raise ValueError(f"factor is {factor!r}; it is a number above 1")
        self.factor, self.at_end = factor, at_end
        self._next, self._gap = start, start

    def begin(self, loop: Running) -> None:
        self._next = self._gap = self.start
        while self._next <= loop.step:
            self._advance()

    def due(self, loop: Running) -> bool:
        return loop.step >= self._next

    def done(self) -> None:
        self._advance()

    def _advance(self) -> None:
        self._gap = max(round(self._gap * self.factor), self._gap + 1)
        self._next += self._gap


@dataclass(eq=False)
class Hook:
    """A function of the loop with a name and a priority: lower first, then in order of registration."""

    function: HookFunction
    name: str
    priority: int
    schedule: Schedule = field(default_factory=Schedule)
    last_step: int = -1

    def run(self, loop: Running) -> None:
        """Run it; an error carries the hook's name as a note."""
        try:
            self.function(loop)
        except Exception as error:
            error.add_note(f"in hook `{self.name}` after step {loop.step}")
            raise
        self.last_step = loop.step
        self.schedule.done()


class Hooks:
    """Registers hooks: what a loop inherits. A hook is a function of the loop, with a name and a priority."""

    def __init__(self) -> None:
        self.hooks: dict[str, list[Hook]] = {"start": [], "step": [], "epoch": [], "end": []}

    @checked
    def on_start(self, function: Added | None = None, *, name: str = "", priority: int = 0) -> Any:
        """Run a function before a run's first step. As `on_step` in all else."""
        return self._add("start", function, name, priority, Schedule())

    @checked
    def on_step(self, function: Added | None = None, *, name: str = "", priority: int = 0) -> Any:
        """Run a function after every step: as `loop.on_step(f)`, or as the decorator `@loop.on_step`.

        Args:
            function: Takes the loop. What it raises ends the run, with a note that names the hook.
            name: For errors and saved state; the function's own by default. Two hooks cannot have one.
            priority: Lower runs first; equal ones run in order of registration.
        """
        return self._add("step", function, name, priority, Schedule())

    @checked
    def on_epoch(self, function: Added | None = None, *, name: str = "", priority: int = 0) -> Any:
        """Run a function where the data has been gone over to its end; `epoch` is complete. As `on_step` in all else.

        In `run_steps` and `run_to_step` the end of the data is seen when the next batch is asked for.
        """
        return self._add("epoch", function, name, priority, Schedule())

    @checked
    def on_end(self, function: Added | None = None, *, name: str = "", priority: int = 0) -> Any:
        """Run a function after a run's last step; not where it is interrupted. As `on_step` in all else."""
        return self._add("end", function, name, priority, Schedule())

    @checked
    def every_n_steps(self, n: int, function: Added | None = None, *, name: str = "", priority: int = 0) -> Any:
        """Run a function where `step` is a multiple of n. As `on_step` in all else."""
        return self._add("step", function, name, priority, EveryN(n))

    @checked
    def n_times(self, n: int, function: Added | None = None, *, name: str = "", priority: int = 0) -> Any:
        """Run a function exactly n times in each run, evenly, the last time after its last step. As `on_step`."""
        return self._add("step", function, name, priority, NTimes(n))

    @checked
    def periodic(
        self, seconds: float, function: Added | None = None, *, at_end: bool = False, name: str = "", priority: int = 0
    ) -> Any:
        """Run a function when so many seconds have passed, and with `at_end` after the last step. As `on_step`."""
        return self._add("step", function, name, priority, Periodic(seconds, at_end))

    @checked
    def exponential(
        self,
        start: int,
        function: Added | None = None,
        *,
        factor: float = 1.2,
        at_end: bool = False,
        name: str = "",
        priority: int = 0,
    ) -> Any:
        """Run a function at steps that lie ever further apart: 100, 220, 364, ... As `on_step` in all else."""
        return self._add("step", function, name, priority, Exponential(start, factor, at_end))

    def _add(self, kind: str, function: Added | None, name: str, priority: int, schedule: Schedule) -> Any:
        if function is None:
            return lambda decorated: self._add(kind, decorated, name, priority, schedule)
        name = name or getattr(function, "__name__", type(function).__name__)
        if name == "<lambda>":  # each has a state of its own to be saved under its name
            name = self.free_name(name)
        if name in self._names():
            raise ValueError(f"there is a hook named `{name}` already; give this one another: name=...")
        hooks = self.hooks[kind]
        hooks.append(Hook(function, name, priority, schedule))
        hooks.sort(key=lambda hook: hook.priority)
        return function

    def _names(self) -> set[str]:
        return {hook.name for hooks in self.hooks.values() for hook in hooks}

    @checked
    def free_name(self, name: str) -> str:
        """The name, or `name 2` and so on where hooks have it already."""
        names = [name, *(f"{name} {i}" for i in range(2, len(self._names()) + 3))]
        return next(name for name in names if name not in self._names())

    def _fire(self, kind: str) -> None:
        loop = cast(Any, self)
        for place, hook in enumerate(self.hooks[kind]):
            loop._at = (kind, place) if kind == "epoch" else None  # the others run again where a run goes on
            hook.run(loop)

    def _at_end(self) -> None:
        for hook in self.hooks["step"]:
            if hook.schedule.at_end and hook.last_step != cast(Any, self).step:
                hook.run(cast(Any, self))
