"""What a hook's schedule asks of the loop that runs it."""

from typing import Protocol


class Running(Protocol):
    """A loop as schedules see it.

    Attributes:
        step: Steps taken.
        start_step: Where this run began.
        end_step: Where it will end, as far as that is known.
        resumed: Whether it goes on from a saved state.
    """

    step: int
    start_step: int
    resumed: bool

    @property
    def end_step(self) -> int | None:
        """Where it will end, as far as that is known."""
