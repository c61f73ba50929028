"""Listeners: objects that hear of a run (logs, curves, progress, checkpoints), and what is recorded for them."""

from collections.abc import Mapping
from typing import Any


class Listeners:
    """Attaches objects and tells them of the run: what a loop inherits."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}  # what `record` was given last, by name
        self._attached: list[Any] = []

    def attach(self, listener: Any) -> Any:
        """Let an object hear of the run; it is returned.

        Called, where it has them: `attached(loop)` now, `on_record(loop, values)` for each `record`, `on_stop(loop)`
        where a signal ends the run at a step boundary, `on_error(loop, error)` where the data, a hook or a NaN ends it
        there, and `on_close(loop)` when the run is over, however it ended.
        """
        if hasattr(listener, "attached"):
            listener.attached(self)
        self._attached.append(listener)
        return listener

    def record(self, values: Mapping[str, float]) -> None:
        """Hand figures to whoever is attached (logs, curves, the best checkpoint), by name, at this step."""
        numbers = {name: float(value) for name, value in values.items()}
        self.latest.update(numbers)
        self._tell("on_record", numbers)

    def _tell(self, method: str, *arguments: Any) -> None:
        for listener in self._attached:
            heard = getattr(listener, method, None)
            if heard is not None:
                heard(self, *arguments)
