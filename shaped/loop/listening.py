"""Listeners: objects that hear of a run (logs, curves, progress, checkpoints), and what is recorded for them."""

import warnings
from collections.abc import Mapping
from typing import Any, cast

from shaped.arguments import keyed, real
from shaped.errors import listing

HEARD = ("attached", "on_record", "on_settled", "on_finish", "on_stop", "on_error", "on_close")


class Listeners:
    """Attaches objects and tells them of the run: what a loop inherits."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}  # what `record` was given last, by name
        self._attached: list[Any] = []
        self._settling: list[Any] = []  # those of them that hear `on_settled`
        self._recorded: set[str] = set()  # names that were recorded in this run, and
        self._known: set[str] = set()  # those that ever were
        self._warned: set[int] = set()  # listeners whose figure was said to be missing so far

    def attach(self, listener: Any) -> Any:
        """Let an object hear of the run; it is returned.

        Called, where it has them: `attached(loop)` now, `on_record(loop, values)` for each `record`, `on_settled(loop)`
        where all hooks of a step, of an epoch's end or of the run's end have run, `on_finish(loop)` after that at a
        run's end, `on_stop(loop)` where a signal ends the run at a step boundary, `on_error(loop, error)` where the
        data, a hook or a NaN ends it there, and `on_close(loop)` when the run is over, however it ended. One with an
        attribute `watches` waits for the figure of that name: a run that records others and never this one ends in a
        ValueError, after all is saved.

        Raises:
            ValueError: It has none of these methods, or is attached already.
        """
        if not any(callable(getattr(listener, name, None)) for name in HEARD) or isinstance(listener, type):
            given = listener.__name__ + ", a class" if isinstance(listener, type) else f"a {type(listener).__name__}"
            raise ValueError(f"a listener has one of the methods {', '.join(HEARD)}, and {given} was given")
        if any(known is listener for known in self._attached):
            raise ValueError(f"this {type(listener).__name__} is attached already")
        if hasattr(listener, "attached"):
            listener.attached(self)
        self._attached.append(listener)
        if hasattr(listener, "on_settled"):
            self._settling.append(listener)
        return listener

    def record(self, values: Mapping[str, float]) -> None:
        """Hand figures to whoever is attached (logs, curves, the best checkpoint), by name, at this step."""
        numbers = {name: real(f"values[{name!r}]", value) for name, value in keyed("values", values).items()}
        self.latest.update(numbers)
        self._recorded.update(numbers)
        self._known.update(numbers)
        self._tell("on_record", numbers)
        if not cast(Any, self).running:  # within a run, all hooks of the moment come first
            self._tell("on_settled")

    def _tell(self, method: str, *arguments: Any) -> None:
        for listener in self._attached:
            heard = getattr(listener, method, None)
            if heard is not None:
                heard(self, *arguments)

    def _unseen(self) -> list[tuple[Any, str]]:
        """Listeners whose figure was never recorded, each with what there is to say."""
        there = f"recorded were {listing(sorted(self._recorded))}" if self._recorded else "nothing was recorded"
        watched = ((listener, getattr(listener, "watches", None)) for listener in self._attached)
        return [
            (listener, f"{type(listener).__name__} waits for `{name}`, which no hook of this run has recorded; {there}")
            for listener, name in watched
            if name and name not in self._known
        ]

    def _warn_unseen(self) -> None:
        """After an epoch: it may still come, so it is no error yet, and early is better than late."""
        for listener, said in self._unseen():
            if id(listener) not in self._warned:
                self._warned.add(id(listener))
                warnings.warn(said, stacklevel=2)

    def _check_unseen(self) -> None:
        """At a run's end."""
        if self._recorded and (unseen := self._unseen()):
            raise ValueError("; ".join(said for _, said in unseen))
