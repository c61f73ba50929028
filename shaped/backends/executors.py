"""Executors: compiled callables in a bounded cache that the user can see."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shaped.errors import ExecutorError


@dataclass
class Executor:
    """One compiled callable: a mode at one tuple of shapes and dtypes."""

    mode: str  # "forward", "loss_and_backward", "AdamW"
    sizes: str  # "batch = 64, pixels = 64"
    how: str  # "inductor", or "python" where there is no C++ compiler
    seconds: float  # to trace and compile
    run: Callable[[list[Tensor]], Sequence[Any]]
    calls: int = 0

    def __call__(self, arguments: list[Tensor]) -> Sequence[Any]:
        self.calls += 1
        try:
            return self.run(arguments)
        except (RuntimeError, IndexError) as error:  # an index out of range, no memory: values that no shape tells
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExecutorError(
                f"`{self.mode}` at {self.sizes} failed while it ran: {said}. with_backend('eager') shows the operation"
            ) from error

    def __str__(self) -> str:
        return f"{self.mode:<18} {self.how:<9} {self.seconds:6.1f} s  {self.calls:>8} calls  {self.sizes}"


class Executors:
    """The cache: at most `limit` executors, kept for as long as the trainer lives.

    Raises:
        ExecutorError: One more is needed than fits; the message names `max_executors` and what is there.
    """

    def __init__(self, limit: int) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValueError(f"max_executors is {limit!r}; it must be a whole number of at least 1")
        self.limit = limit
        self._made: dict[Hashable, Executor] = {}

    def get(self, key: Hashable, make: Callable[[], Executor], mode: str, sizes: object) -> Executor:
        """The executor for a key, made if it is new; `mode` and `sizes` are for the message if there is no room."""
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= self.limit:
                raise ExecutorError(
                    f"`{mode}` at {sizes} would be executor {self.limit + 1}, and max_executors is {self.limit}. Each "
                    f"new tuple of shapes needs one: pad batches to few sizes, or raise max_executors.\n{self}"
                )
            found = self._made[key] = make()
        return found

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Executor]:
        return iter(self._made.values())

    def __str__(self) -> str:
        return "\n".join(f"  {executor}" for executor in self) or "  no executors yet"
