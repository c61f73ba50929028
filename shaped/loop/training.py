"""Metrics of training: from what a loss returns beside itself, so that they cost no second pass."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shaped.arguments import checked, keyed
from shaped.errors import StateError
from shaped.metrics import Mean
from shaped.ranks.peers import ALONE, Peers

if TYPE_CHECKING:
    from shaped.loop.loop import Loop


class TrainMetrics:
    """Averages figures over the steps of an epoch and records them where it ends, as `train/accuracy` and so on.

        loop.attach(TrainMetrics({"accuracy": lambda out, x, y: (out.logits.argmax(-1) == y).float().mean()}))

    Each step is weighed by what the trainer counts as samples. A step that was skipped has no part. They are of the
    parameters before each update, as the loss that is returned is. A resumed run goes on with what there was.

    Args:
        metrics: By name: a function of what the loss returned (`trainer.returned`) and the batch, which gives a number.
        name: What the recorded names begin with.

    Raises:
        ValueError: There are no metrics, or one is no function.
    """

    @checked
    def __init__(self, metrics: Mapping[str, Callable[..., Any]], name: str = "train") -> None:
        wrong = [key for key, function in metrics.items() if not callable(function)]
        if wrong or not metrics:
            raise ValueError(f"metrics are functions of what the loss returned and the batch, by name; not {metrics!r}")
        self._metrics, self._name = dict(metrics), name
        self._means = {key: Mean() for key in metrics}
        self._skipped = 0
        self._peers: Peers = ALONE

    def attached(self, loop: "Loop") -> None:
        """Register what is done after each step and at an epoch's end, before other hooks."""
        self._peers = loop.peers
        loop.on_start(self._count_skips, name=f"{self._name} metrics of a run", priority=-1000)
        loop.on_step(self._add, name=f"{self._name} metrics", priority=-1000)
        loop.on_epoch(self._record, name=f"{self._name} metrics of an epoch", priority=-1000)
        loop.keep(f"{self._name} metrics", self)

    def on_close(self, loop: "Loop") -> None:
        """The means go on in the next run, where this one ends within an epoch."""

    def _count_skips(self, loop: "Loop") -> None:
        self._skipped = loop.trainer.skipped  # of a state that was loaded, too

    def _add(self, loop: "Loop") -> None:
        skipped, trainer = loop.trainer.skipped, loop.trainer
        taken, self._skipped = skipped == self._skipped, skipped
        if loop.batch is None or loop.batch.spec is not None or not taken or not loop.counts:
            return
        returned, inputs = trainer.returned, loop.batch.inputs
        samples = trainer.count(*inputs)
        for key, function in self._metrics.items():
            self._means[key].update(function(returned, *inputs), samples)

    def _record(self, loop: "Loop") -> None:
        loop.record(
            {
                f"{self._name}/{key}": total / weight if weight else math.nan
                for key, (total, weight) in self._sums().items()
            }
        )
        for mean in self._means.values():
            mean.reset()

    def _sums(self) -> dict[str, tuple[float, float]]:
        """Total and weight of each mean, over all ranks."""
        told = self._peers.tell("the training metrics", [(mean.total, mean.weight) for mean in self._means.values()])
        sums = ((math.fsum(t for t, _ in parts), math.fsum(w for _, w in parts)) for parts in zip(*told, strict=True))
        return dict(zip(self._means, sums, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The means so far in this epoch, over all ranks."""
        return {key: {"total": total, "weight": weight} for key, (total, weight) in self._sums().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; a metric that it does not have begins anew. Raises StateError where it is none."""
        keyed("state", state, error=StateError)
        for key, mean in self._means.items():
            saved = state.get(key, {"total": 0.0, "weight": 0.0})
            share = 1.0 if self._peers.leads else 0.0  # the sum over the ranks is what was saved
            mean.total, mean.weight = share * float(saved["total"]), share * float(saved["weight"])
