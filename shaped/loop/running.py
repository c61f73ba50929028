"""What a hook's schedule asks of the loop that runs it."""

from typing import Protocol

from shaped.ranks.peers import Peers


class Running(Protocol):
    """A loop as schedules see it.

    Attributes:
        step: Steps taken.
        peers: The ranks of the run.
        start_step: Where this run began.
        end_step: Where it will end, as far as that is known.
        resumed: Whether it goes on from a saved state.
    """

    step: int
    peers: Peers
    start_step: int
    resumed: bool

    @property
    def end_step(self) -> int | None:
        """Where it will end, as far as that is known."""
