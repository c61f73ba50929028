"""Executors: compiled callables in a bounded cache that the user can see."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from shaped.backends.draws import Draws
from shaped.errors import ExecutorError, first_line

Run = Callable[[list[Any]], Sequence[Any]]

# What a new executor may differ in from one of the same mode, and how the table says so.
_REASONS = {
    "shapes": "another size",
    "dtypes": "another dtype",
    "device": "another device",
    "training": "train() or eval()",
    "layout": "parameters or state laid out anew",
    "world": "another value outside",
}


class CompileError(ExecutorError):
    """The compiler refused a graph; nothing has run."""


@dataclass(frozen=True)
class Lowered:
    """What a compiler made of a graph: a callable over a list of arguments, which it may empty.

    Attributes:
        run: The callable. Where sizes are free they come first in the list, as plain numbers.
        how: "inductor"; "kept" where it was compiled by another process; or "python" where there is no C++ compiler:
            the traced operations run one by one.
        holds: Where sizes are free: whether the code is right at these.
        draws: Its random numbers apart, where it computes its own.
        seconds: How long it took, where it was not made while one waited.
        code: What it was made of, from which it can be kept.
    """

    run: Run
    how: str
    holds: Callable[[Sequence[int]], bool] | None = None
    draws: Draws | None = None
    seconds: float | None = None
    code: Any = None


@dataclass(frozen=True)
class Key:
    """What one executor is for.

    Attributes:
        mode: "forward", "loss_and_backward", "gather" (a batch of several for one update), or the optimizer: "AdamW".
        shapes: Of the inputs; None stands for a size that is free.
        dtypes: Of the inputs; None stands for one that is left out.
        device: Where all of it is.
        training: `training` of each module, where the loss is over a module.
        layout: A number for dtypes and strides of parameters and state, and for the groups of the optimizer.
        world: A number for the values that the loss reads from outside.
    """

    mode: str
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[torch.dtype | None, ...]
    device: torch.device
    training: tuple[bool, ...] = ()
    layout: int = 0
    world: int = 0


@dataclass(eq=False)
class Executor:
    """One compiled callable: a mode at one tuple of shapes and dtypes, or at all sizes.

    Attributes:
        key: What it is for.
        sizes: The same for a reader: "batch = 64, pixels = 64", or "any batch; pixels = 64".
        reason: Why it was made.
        run: The callable; it takes a list and may empty it.
        how: "inductor", "kept" (compiled by another process), or "python" where there is no C++ compiler.
        seconds: To trace and compile.
        holds: For an executor of all sizes: whether these sizes are among them.
        draws: Its random numbers apart, where it computes its own.
        code: What it was made of, from which it can be kept.
        held: Whether it was held against eager.
        wrong: How it differs from eager; it is not run again.
        calls: How often it ran.
        captures, replays: Of a captured step (`note` says why there is none).
    """

    key: Key
    sizes: str
    reason: str
    run: Run
    how: str = "inductor"
    seconds: float = 0.0
    holds: Callable[[Sequence[int]], bool] | None = None
    draws: Draws | None = None
    code: Any = None
    held: bool = False
    wrong: str = ""
    calls: int = 0
    captures: int = 0
    replays: int = 0
    note: str = ""

    @property
    def mode(self) -> str:
        """What it does: "forward", "loss_and_backward", "AdamW"."""
        return self.key.mode

    def __call__(self, arguments: list[Any]) -> Sequence[Any]:
        self.calls += 1
        try:
            return self.run(arguments)
        except (RuntimeError, IndexError) as error:  # an index out of range, no memory: values that no shape tells
            said = first_line(error)
            raise ExecutorError(
                f"`{self.mode}` at {self.sizes} failed while it ran: {said}. with_backend('eager') shows the operation"
            ) from error

    def __str__(self) -> str:
        line = f"{self.mode:<18} {self.how:<9} {self.seconds:6.1f} s  {self.calls:>8} calls  {self.sizes}"
        graph = f"captured {self.captures} times, {self.replays} replays" if self.captures else ""
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.key.dtypes if dtype)
        return f"{line}  ({'; '.join(filter(None, [self.reason, dtypes, str(self.key.device), graph, self.note]))})"


@dataclass
class Executors:
    """The cache: at most `limit` executors, kept for as long as the trainer lives.

    Attributes:
        limit: `max_executors`.
        note: Why there are none, where `backend="auto"` went on with the eager backend.
        dynamic: Whether one executor is made for all sizes.

    Raises:
        ExecutorError: One more is needed than fits; the message names `max_executors` and what is there.
    """

    limit: int
    note: str = ""
    dynamic: bool = False
    _made: dict[Key, Executor] = field(default_factory=dict)
    _hooks: list[Callable[[Executor], Any]] = field(default_factory=list)

    def on_create(self, hook: Callable[[Executor], Any]) -> Callable[[Executor], Any]:
        """Call `hook(executor)` after each executor that is made from now on; may be used as a decorator.

        Args:
            hook: Sees `executor.mode`, `.sizes`, `.reason` and `.seconds`. An error in it is the step's error.

        Returns:
            The hook.
        """
        self._hooks.append(hook)
        return hook

    def find(self, key: Key) -> Executor | None:
        """The executor for a key, if there is one."""
        return self._made.get(key)

    def like(self, key: Key) -> list[Executor]:
        """Executors for the same at other sizes."""
        return [e for k, e in self._made.items() if _differing(k, key) <= {"shapes"}]

    def add(self, key: Key, sizes: str, lower: Callable[[], Lowered], told: bool = True) -> Executor:
        """Make an executor, measure it, and tell the hooks; `told` where stderr is to say what takes its time."""
        if len(self._made) >= self.limit:
            one = "" if self.dynamic else "use sizes='dynamic', "
            raise ExecutorError(
                f"`{key.mode}` at {sizes} would be executor {self.limit + 1}, and max_executors is {self.limit}. Pad "
                f"batches to few sizes, {one}or raise max_executors.\n{self}"
            )
        reason = self._reason(key)
        with _said(f"compiling {key.mode} at {sizes} ({reason})") if told else nullcontext():
            started = time.perf_counter()
            lowered = lower()
            seconds = time.perf_counter() - started if lowered.seconds is None else lowered.seconds
        made = self._made[key] = Executor(
            *(key, sizes, reason, lowered.run, lowered.how, seconds, lowered.holds, lowered.draws, lowered.code)
        )
        for hook in self._hooks:
            hook(made)
        return made

    def aside(self) -> "Executors":
        """Another cache that begins with these, without a limit and without hooks."""
        return Executors(sys.maxsize, _made=dict(self._made))

    def _reason(self, key: Key) -> str:
        """In what it differs from the executor that is most like it."""
        same = [known for known in self._made if known.mode == key.mode]
        if not same:
            return "the first"
        differing = min((_differing(known, key) for known in same), key=len)
        if all((None in known.dtypes or None in key.dtypes) and known.dtypes != key.dtypes for known in same):
            return "other inputs"
        return " and ".join(text for name, text in _REASONS.items() if name in differing)

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Executor]:
        return iter(self._made.values())

    def __str__(self) -> str:
        lines = [f"  {executor}" for executor in self]
        return "\n".join([*([f"  {self.note}"] if self.note else []), *lines]) or "  no executors yet"


def tell(text: str, end: str = "\n") -> None:
    """Say on stderr what takes its time, to a person or a log."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # a closed pipe or file loses no run
            print(text, end=end, file=sys.stderr, flush=True)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say what is done, and how long it took: on one line to a person, on two in a log."""
    person, started = sys.stderr is not None and sys.stderr.isatty(), time.perf_counter()
    tell(f"shaped: {what} ...", "" if person else "\n")
    try:
        yield
    finally:
        seconds = f"{time.perf_counter() - started:.1f} s"
        tell(f" {seconds}" if person else f"shaped: {what}: {seconds}")


def _differing(a: Key, b: Key) -> set[str]:
    names = ("mode", *_REASONS)
    return {name for name in names if getattr(a, name) != getattr(b, name)}
