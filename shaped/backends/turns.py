"""Errors on several ranks: what one of them meets is raised on all, and none waits for it.

A rank whose batch is refused takes its turns in the collectives of the step with nothing to give, and says so in the
agreement at their end. All then ask what it was.
"""

import builtins
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.fx import GraphModule

import shaped.errors
from shaped.backends.alike import stepped_by
from shaped.backends.drift import Differing, Drift, Waiting
from shaped.backends.gathering import Gathering
from shaped.errors import ExecutorError, RankError, listing
from shaped.optim import FusedOptimizer
from shaped.optim.updates import CheckedRules
from shaped.ranks.exchange import MARK, Totals
from shaped.ranks.join import cause
from shaped.ranks.peers import peers_of

if TYPE_CHECKING:
    from shaped.ranks.exchange import Exchange


class Turns:
    """What `Together` does about errors; see there for the attributes."""

    exchange: "Exchange"
    sharded: bool
    _under_way: bool
    _gathering: Gathering | None
    number: int  # among the trainers of these ranks, in the order in which they were made
    _read: CheckedRules | None = None
    _last = True
    _stepped_by: dict[str, Any] = {}  # noqa: RUF012  replaced, never changed
    _plain: dict[str, Any] = {}  # noqa: RUF012  as above
    _said: dict[str, Any] = {}  # noqa: RUF012  as above
    _optimizer: FusedOptimizer | None = None
    _sum = 0  # of what this rank steps by
    _loaded = ""
    drift: Drift  # what all ranks have alike

    def gathering(self, graph: GraphModule, samples: Tensor | None = None, forward: bool = False) -> Gathering:
        """A run of a graph on parts."""
        raise NotImplementedError

    def ended(self) -> None:
        """Say that all ranks are through."""
        raise NotImplementedError

    @property
    def _parts(self) -> Sequence[Tensor]:
        """The parameters as they lie."""
        raise NotImplementedError

    @property
    def _graph(self) -> GraphModule:
        """The graph that was proved first."""
        raise NotImplementedError

    @property
    def _in_full(self) -> Sequence[Tensor]:
        """The parameters that every rank has whole."""
        raise NotImplementedError

    @property
    def _lengths(self) -> list[tuple[torch.dtype, int]]:
        """Of the messages in which whole gradients are summed."""
        raise NotImplementedError

    @property
    def named(self) -> dict[int, str]:
        """The names of the program's tensors, by identity."""
        raise NotImplementedError

    def meet(self, place: str, failed: Exception | None) -> None:
        """Come to collectives that are no step's, with what this rank failed with until here: an error of all.

        Raises:
            The error of a rank that failed, marked as one that all raise. RankError: They step by different updates.
        """
        if len(set(peers_of(self.exchange).meet(place, self.exchange.mark, failed=failed))) > 1:
            self.settle_unlike()
        self._under_way, self._gathering = True, None

    def come(self, place: str) -> None:
        """Come to where parts are gathered that no step gathers: a rank that is elsewhere is told, and not mixed up.

        Raises:
            RankError: Another rank does not come.
        """
        peers_of(self.exchange).meet(place)

    @contextmanager
    def watched(self, forward: bool = False) -> Iterator[None]:
        """As `guard`; what this rank's own code wrote into before is noted, and what is written within is not."""
        self.drift.note()
        try:
            with self.guard(forward):
                yield
        finally:
            self.drift.record()

    @contextmanager
    def guard(self, forward: bool = False) -> Iterator[None]:
        """Around what all ranks call: an error of this rank is raised on all of them, and none waits for it.

        Before the first collective, and in a pass op by op, this rank takes the turns that are left, with nothing to
        give. After that it leaves word of its error, and its end ends the others.

        Args:
            forward: Where it is a loss alone, whose errors stay this rank's own.
        """
        try:
            yield
        except Exception as error:
            if getattr(error, "together", False) or (forward and not self.sharded):
                raise
            gathering, stuck = self._gathering, self._under_way and self._gathering is None
            self.ended()
            if stuck or lost(error):
                self._end(error)
            try:
                self._take_turns(gathering, forward)
            except RuntimeError as other:
                self._end(other)
            if forward:
                raise
            self.raise_on_all(error)

    def _end(self, error: Exception) -> NoReturn:
        """Raise for a rank that cannot go on with the others, or whose others are gone."""
        if lost(error) or cause() is not None:
            why = self.exchange.whereabouts(error)
            raise RankError(f"another rank is gone: {why}. Nothing was updated in this step") from error
        self.exchange.failed(error)
        raise error

    def _take_turns(self, gathering: Gathering | None, forward: bool) -> None:
        zero = torch.zeros_like(self.exchange.said[0])
        with torch.no_grad():
            if self.sharded:
                (gathering or self.gathering(self._graph, zero, forward).hold(self._parts)).finish()
            elif not forward:
                self.exchange.totals([torch.zeros(n, dtype=dtype, device=zero.device) for dtype, n in self._lengths])
            if not forward:
                one, said = torch.ones_like(zero), self.exchange.said
                self.exchange.read(self.exchange.agree(zero, zero, zero, one, zero, zero, zero, said))

    def raise_on_all(self, own: Exception | None) -> None:
        """Raise on all ranks what was wrong on some: the rank's own error there, and one that names the rank elsewhere.

        Every rank calls it, with its own error or none.
        """
        try:
            told = self.exchange.tell(None if own is None else (type(own).__name__, str(own)))
        except RuntimeError as error:
            self._end(error)
        if own is not None:
            raise self.agreed(own)
        for rank, said in enumerate(told):
            if said is not None:
                raise self.agreed(_like(said[0], f"on rank {rank}: {said[1]}"))

    def hold_alike(self, optimizer: FusedOptimizer, readings: CheckedRules, last: bool = True) -> None:
        """Take what this rank steps by next; where ranks differ in it no step is taken.

        Args:
            optimizer: Of the step.
            readings: What it read for it.
            last: Whether it updates, or gathers a batch for a later update.
        """
        if readings is not self._read or last != self._last:
            self._read, self._last, self._optimizer = readings, last, optimizer
            kind = "an update" if last else "a batch that waits"
            self._plain = {"the step": kind, **stepped_by(optimizer, readings, self.named)}
            self._stepped_by = {}

    def hold_pass(self) -> None:
        """Take that this rank takes gradients alone, without an update."""
        self._read = None
        self._plain, self._stepped_by = {"the step": "loss_and_backward"}, {}

    def note_loaded(self, what: str) -> None:
        """Note that this rank loaded something, which all ranks do between the same two steps or none does."""
        told = zlib.crc32(b"".join(map(_sample, self._in_full)))
        self._loaded = f"{what} (checksum {told:08x}) before step {self.exchange.agreements + 1} of this trainer"
        self._read = None
        self.drift.forget()

    def mark(self, waiting: Waiting) -> None:
        """Mark what was taken, and what all ranks have alike: the last thing before the collectives of a step."""
        said = self.drift.said()
        if not self._stepped_by or said is not self._said:
            self._said = said
            self._stepped_by = {"the trainer": f"number {self.number}", **self._plain, **said}
            if self._loaded:
                self._stepped_by["what was loaded last"] = self._loaded
            self._sum = zlib.crc32(repr(self._stepped_by).encode())
        self.exchange.mark = self.drift.told(self._optimizer, waiting, self.exchange.agreements, self._sum) % MARK

    def unlike(self, totals: Totals) -> bool:
        """Whether a step was not taken since ranks differed, and is to be taken again: they are alike now.

        Raises:
            RankError: They are not, on all ranks.
        """
        if not totals.unlike:
            self.drift.agreed()
            return False
        self.settle_unlike()
        return True

    def settle_unlike(self) -> None:
        """Raise on all ranks what they differ in; return where it comes to nothing but rounding. Collective."""
        told: list[dict[str, Any]] = self.exchange.tell(self._stepped_by)
        if any(theirs != told[0] for theirs in told):
            self._raise_unlike(told)
        self.settle_drift()

    def settle_drift(self) -> None:
        """Raise on all ranks what they have otherwise that all have alike; as `settle_unlike`."""
        if (differing := self.drift.settle(self.exchange)) is not None:
            raise self.agreed(_not_alike(differing))

    def _raise_unlike(self, told: list[dict[str, Any]]) -> NoReturn:
        """Raise on all ranks that they step by different updates."""
        if len({of.get("what was loaded last") for of in told}) > 1:
            shown = "; ".join(f"rank {r}: {of.get('what was loaded last', 'nothing')}" for r, of in enumerate(told[:4]))
            raise self.agreed(
                RankError(
                    f"the ranks loaded different states ({shown}). Nothing was updated. load_state_dict is called by "
                    "all ranks between the same two steps, with the same state; make it again on all of them"
                )
            )
        rank = next(rank for rank, theirs in enumerate(told) if theirs != told[0])
        differing = [what for what in {**told[0], **told[rank]} if told[0].get(what) != told[rank].get(what)][:3]
        shown = ", ".join(
            f"{w} is {told[0].get(w)} on rank 0 and {told[rank].get(w)} on rank {rank}" for w in differing
        )
        raise self.agreed(
            RankError(
                f"the ranks step by different updates: {shown}. Nothing was updated. Take the same steps on all of "
                "them, with an optimizer and a schedule that are alike; one that follows a figure takes that of all "
                "ranks: loop.evaluate's"
            )
        )

    @property
    def blame(self) -> str:
        """`on rank 2 `: where something was not finite in the last step, as far as one rank is to blame."""
        last = self.exchange.last
        return f"{last.where} ".lstrip() if last is not None and last.where else ""

    def agreed(self, error: Exception) -> Exception:
        """An error that all ranks raise, marked as one."""
        vars(error)["together"] = True
        return error


def _not_alike(differing: Differing) -> RankError:
    shown = listing(differing.names[:3]) + (f" and {len(differing.names) - 3} more" if len(differing.names) > 3 else "")
    writers = f"rank{'s' if len(differing.writers) > 1 else ''} {' and '.join(map(str, differing.writers))}"
    who = f"{writers} wrote into that" if differing.writers else "something changed that on one of them alone"
    return RankError(
        f"ranks 0 and {differing.rank} do not have the same {shown}: {who}, between two steps. Nothing was updated. "
        "Parameters, buffers and an optimizer's state are changed on all ranks alike: do so, or call load_state_dict "
        "on all of them with one state"
    )


def lost(error: Exception) -> bool:
    """Whether an error is that of a collective whose other ranks are gone, or was raised from one.

    gloo says it in its text alone; compiled code's error is raised from it.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RuntimeError) and (type(found).__name__.startswith("Dist") or "gloo" in str(found)):
            return True
        found = found.__cause__
    return False


def _sample(t: Tensor) -> bytes:
    """Up to some 1,000 entries of a tensor, spread over it."""
    flat = t.detach().reshape(-1)
    return flat[:: max(flat.numel() // 1000, 1)].double().cpu().numpy().tobytes()


def _like(kind: str, text: str) -> Exception:
    """An error of the same class where that takes a text alone; the others are told by name."""
    made: Any = getattr(shaped.errors, kind, None) or getattr(builtins, kind, None)
    if isinstance(made, type) and issubclass(made, Exception):
        try:
            found: Exception = made(text)
            return found
        except TypeError:
            pass
    return ExecutorError(f"{text} ({kind})")
