"""What a loop's ranks agree on: they take the same steps, stop at the same one, look at one clock, and fail together.

Each step has two meetings of the ranks on the host: one when the hooks of the step before have run (signals, `stop`,
errors of hooks, what is due by rank 0's clock), and one with the next batch in hand, which data in memory needs at the
beginning of an epoch only. A process alone has none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor

from shaped.data.feed import Batch, Feed
from shaped.data.sharing import SharedFeed, all_same, cut, looked_at
from shaped.loop.hooks import Periodic
from shaped.loop.signals import Watch
from shaped.ranks import Peers, together
from shaped.trainer import ScalarTrainer

_CLOCKS = 60  # periodic hooks that one whole number has bits for


class Stopped(Exception):
    """A signal was received: leave for the step boundary."""


class Between:
    """Ends an evaluation at once where a signal has come, on all ranks."""

    def __init__(self, loop: "LoopRanks", watch: Watch) -> None:
        self._loop, self._watch = loop, watch

    def asks(self) -> int:
        """The signal that this rank was sent; 0 for none."""
        return self._watch.received

    def __call__(self, signal: int | None = None) -> None:
        signal = self._watch.received if signal is None else signal
        if signal:
            self._loop._signal = signal
            raise Stopped


class LoopRanks:
    """What a loop inherits to run on several ranks.

    Attributes:
        peers: The ranks of the run; a process alone is one.
        counts: Whether the last batch has rows of this rank, and not one that stands in where there were too few.
    """

    def __init__(self, trainer: ScalarTrainer) -> None:
        self.peers: Peers = trainer.peers
        self._signal = 0  # that some rank was sent, and all know of
        self.counts = True  # the last batch of this rank was its own; else a row that stands for none
        self._held: Exception | None = None  # what failed on this rank, until all have met
        self._looked = 0  # at the batch of a step for which ranks did not meet

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """What all ranks do; where one fails, all do."""
        failed = None
        try:
            yield
        except Exception as error:
            if self.peers.size == 1 or isinstance(error, Stopped) or together(error):
                raise
            failed = error
        if self.peers.size > 1:
            loop = cast(Any, self)
            every = self.peers.meet(f"{name} at step {loop.step}", loop._watch.received, failed=failed)
            self._signal = max(row[0] for row in every)

    def _new_watch(self) -> Watch:
        """What listens for signals in a run; one that came too late for the ranks to agree on is of the next run."""
        loop = cast(Any, self)
        watch, late = Watch(loop._listen), loop._watch.received if self.peers.size > 1 and not self._signal else 0
        watch.received, self._signal = late, 0
        return watch

    def _heard(self) -> int:
        """The signal that ends a run; on several ranks one that all know of."""
        return cast(Any, self)._watch.received if self.peers.size == 1 else self._signal

    def _between(self) -> Callable[..., None]:
        """What an evaluation calls between batches: within a run, to end where a signal has come."""
        loop = cast(Any, self)
        return Between(self, loop._watch) if loop.running else lambda: None

    def _hold(self, hooks: Callable[..., None], *arguments: Any) -> None:
        """Run hooks of a step; what fails on a rank is told at the meeting that follows, and raised there on all."""
        try:
            hooks(*arguments)
        except Exception as error:
            if self.peers.size == 1 or isinstance(error, Stopped) or together(error):
                raise
            self._held = error

    def _boundary(self) -> bool:
        """Between two steps: the signals, the stops and the errors of all ranks, and rank 0's clock.

        Returns:
            Whether the run ends here.

        Raises:
            Stopped: Some rank was sent a signal. DataError: The batch was not the same on all ranks. What a hook of
            some rank raised.
        """
        loop = cast(Any, self)
        watch = loop._watch
        signal, stops = int(watch.received), bool(loop.stopped)
        if self.peers.size > 1:  # what is heard after the meeting counts at the next
            held, self._held = self._held, None
            clocks = [hook.schedule for hook in loop.hooks["step"] if isinstance(hook.schedule, Periodic)][:_CLOCKS]
            due = sum(1 << place for place, clock in enumerate(clocks) if clock.passed)
            place = f"the end of step {loop.step}"
            every = self.peers.meet(place, signal, stops, due, self._looked, failed=held)
            all_same([row[3] for row in every], f"the batch of step {loop.step}")
            for place_, clock in enumerate(clocks):
                clock.agreed = bool(every[0][2] >> place_ & 1)
            signal = self._signal = max(row[0] for row in every)
            stopping = [rank for rank, row in enumerate(every) if row[1]]
            if stopping and not stops:
                loop.stopped = f"rank {stopping[0]} asked to stop"
            stops = bool(stopping)
        if signal:
            raise Stopped
        return stops

    def _next(self, feed: Feed) -> Batch | None:
        """The next batch of this rank, or None where the epoch ends; alike on all."""
        if not isinstance(feed, SharedFeed):
            return feed.next()
        batch = feed.follow()
        self._looked = looked_at(batch) if batch is not None else 0
        return batch if batch is not None else feed.take(f"the batch of step {cast(Any, self).step + 1}")[0]

    def _taken(self, take: Callable[..., Tensor], batch: Batch, feed: Feed) -> tuple[Batch, Tensor]:
        """Take a step with this rank's rows of a batch, or with a row that does not count where it has none."""
        if not isinstance(feed, SharedFeed) or feed.local:
            return batch, take(*batch.inputs)
        loop = cast(Any, self)
        trainer = loop.specs.get(batch.spec, loop.trainer)
        share = cut(batch, trainer.proof.setting.signature, feed.rows)
        self.counts = share.own > 0
        trainer.ranks.weight = float(self.counts)
        try:
            return share.batch, take(*share.batch.inputs)
        finally:
            trainer.ranks.weight = 1.0
