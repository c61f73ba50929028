"""Going over data epoch by epoch, from any batch of any epoch.

Data is one of

    a list, a DataLoader, any iterable      gone over anew in each epoch; its `set_epoch(epoch)`, its sampler's and its
                                            data set's are called first
    a function of the epoch                 `lambda epoch: digits(seed=0, epoch=epoch)`
    an object with iterate(epoch, start)    starts at any batch, passing over none (`Batches`, `prefetch`)
    a generator                             one epoch; more if it has `reset()`
    an object with state_dict() and         says itself where it is, as torchdata's StatefulDataLoader does; gone over
    load_state_dict()                       anew after each epoch, from where it was loaded

and a batch is a tensor, a tuple or list of tensors (and of numbers, for inputs without axes), a mapping from names of
inputs, or a `Batch` with a spec. To resume in the middle of an epoch, the
epoch is begun with the generator states it was begun with, and its first batches are passed over. These are the global
generators, and those that the data holds (kept.py).
"""

import copy
import itertools
import warnings
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from shaped.arguments import checked, keyed
from shaped.checkpoint.generators import generator_states, generators_kept, set_generator_states
from shaped.data.kept import (
    checksum,
    differences,
    facts,
    fingerprints,
    generator_states_of,
    is_stateful,
    put_back,
    said_to_differ,
    unsavable,
)
from shaped.data.local import Local
from shaped.data.moving import Moving
from shaped.errors import ShapedError, StateError, listing, nearest
from shaped.shapes import Signature


class DataError(ShapedError):
    """The data ended early, gave no batch, or gave something that is no batch."""


@dataclass(frozen=True)
class Batch:
    """The inputs of a step, by position or by name, and the spec that they are for: which loss takes them."""

    inputs: tuple[Any, ...] = ()
    spec: Hashable = None
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        return [x for x in pytree.tree_leaves((self.inputs, dict(self.named))) if isinstance(x, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same of other tensors."""
        inputs, named = pytree.tree_map_only(Tensor, change, (self.inputs, dict(self.named)))
        return Batch(inputs, self.spec, named)


def as_batch(item: Any, where: str = "a batch") -> Batch:
    """A tensor, a tuple or list of tensors, or a mapping from names, as a Batch.

    Raises:
        DataError: It is none of these; `where` says which batch.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping) and all(isinstance(name, str) for name in item):
        return Batch(named=dict(item))
    inputs = (item,) if isinstance(item, Tensor) else item
    if not isinstance(inputs, tuple | list) or not all(isinstance(x, Tensor | Number | None) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs) if isinstance(inputs, tuple | list) else ""
        given = f"a {type(item).__name__}{f' of {kinds}' if kinds else ''}"
        raise DataError(
            f"{where} is {given}; a batch is a tensor, a tuple of tensors, a mapping from names of inputs to tensors, "
            "or shaped.data.Batch(inputs, spec)"
        )
    return Batch(tuple(inputs))


def by_position(batch: Batch, signature: Signature, ignore: bool | Collection[str] = ()) -> Batch:
    """A batch with its named inputs in the order of the signature.

    Args:
        batch: It may have both.
        signature: Of the loss that takes it.
        ignore: What no input has and is left out: these names, or True for all such.

    Raises:
        DataError: It has an entry that no input has, or lacks one.
    """
    if not batch.named:
        return batch
    inputs = {a.name: a for a in signature.arguments if a.kind in ("tensor", "container")}
    unknown = [n for n in batch.named if n not in inputs and ignore is not True and n not in (ignore or ())]
    left = {name: a.default for name, a in inputs.items() if a.optional or a.default is not None}
    given = {**left, **dict(zip(inputs, batch.inputs, strict=False)), **batch.named}
    absent = [name for name in inputs if name not in given]
    if unknown or absent:
        wrong = [f"{listing(absent)} {'is' if len(absent) == 1 else 'are'} missing"] if absent else []
        close = "".join(nearest(name, absent) for name in unknown)
        wrong += [f"{listing(unknown)} {'is' if len(unknown) == 1 else 'are'} none of them{close}"] if unknown else []
        leave = "" if absent else f" (ignore={unknown!r} leaves that out, ignore=True all such)"
        raise DataError(f"`{signature.name}` takes {listing(list(inputs))}, and of a batch {'; '.join(wrong)}{leave}")
    return Batch(tuple(given[name] for name in inputs), batch.spec)


def batch_size(batch: Batch) -> int:
    """The size of the first axis of the first input that has one; 1 where none has."""
    return next((x.shape[0] for x in batch.tensors if x.dim()), 1)


class Feed:
    """An iterator over data that knows its epoch and the index of its next batch.

    Args:
        data: See the module.
        state: Where to start: what `state_dict()` returned, perhaps in another process.
        used: A generator that has been gone over already, and must be reset first.
        fit: What makes of a batch one that its loss takes; None leaves it as it is.

    Raises:
        DataError: `data` is no iterable and no function.
    """

    @checked
    def __init__(
        self,
        data: Any,
        state: Mapping[str, Any] | None = None,
        *,
        used: bool = False,
        fit: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.given = data
        data = data.data if isinstance(data, Local) else data
        if not (isinstance(data, Iterable) or callable(data) or hasattr(data, "iterate")):
            raise DataError(f"data is a {type(data).__name__}: pass an iterable of batches, or a function of the epoch")
        self.data, self._fit = data, fit
        if state:
            keyed("state", state, "epoch", "index", "generators", error=StateError)
        self.epoch = int(state["epoch"]) if state else 0
        self.index = int(state["index"]) if state else 0
        self._began: Any = state["generators"] if state else None  # generator states where the epoch began
        self.iterator: Iterator[Any] | None = None  # over the epoch, once it is open
        self._held: Any = None  # keeps the iterator until the feed is gone
        self._last: Batch | None = None
        self._again = False  # the last batch is to come once more
        self._opened = used
        own = (state or {}).get("own") or {}
        self._own: Any = own.get("began")  # states of the data's own generators where the epoch began, and
        self._own_now: Any = own.get("now")  # where they were when the state was saved
        self._stateful, self._moving = is_stateful(data), Moving(data)
        self._inner: Any = (state or {}).get("inner")  # what stateful data is to go on from
        self._sum = (state or {}).get("sum")  # of the batch before the next
        self._anew = bool((state or {}).get("anew"))  # whether a generator was reset where the epoch began
        self._facts: dict[str, Any] | None = None
        if state and state.get("again") is not None:  # the state was saved between a batch and its step
            self._last, self._again = Batch(tuple(state["again"]["inputs"]), state["again"]["spec"]), True
        if state and "about" in state:
            self._compare(state)
        elif state and state.get("generators") is not None and (found := generator_states_of(data)):
            warnings.warn(
                f"the state is of a version that did not save the generators that the data keeps ({', '.join(found)}): "
                "the next epochs may come in another order",
                stacklevel=4,
            )
        self.waiting = False  # for the data's next batch, and nothing else is under way

    def _compare(self, state: Mapping[str, Any]) -> None:
        """Say so where the data is not what the state was saved with."""
        self._facts = facts(self._moving.first)
        if differ := differences(state["about"], self._facts):
            warnings.warn(said_to_differ(differ), stacklevel=5)

    @property
    def length(self) -> int | None:
        """Batches in an epoch, where the data says."""
        try:
            return len(self.data)
        except (TypeError, AttributeError):
            return None

    def next(self) -> Batch | None:
        """The next batch, or None where the epoch ends. DataError where an epoch has no batch at all."""
        if not self._again:
            self._last = self._fetch()
        self._again = False
        if self._last is not None:
            self.index += 1
        elif self.index == 0:
            raise DataError(f"the data gave no batch in epoch {self.epoch}")
        return self._last

    def _fetch(self) -> Batch | None:
        if self.iterator is None:
            self._hold(self._open())
        assert self.iterator is not None
        try:
            self.waiting = True
            item = next(self.iterator, self)
        except Exception:
            if self._stateful:
                with suppress(Exception):
                    self._inner = copy.deepcopy(self.data.state_dict())
                    self._own_now = self._own_states()
            self._hold(None)  # it is not to be trusted any more: the next call opens the data at this batch
            raise
        finally:
            self.waiting = False
        return None if item is self else self._batch(item)

    def _hold(self, iterator: Iterator[Any] | None) -> None:
        """Keep an iterator, and let it go after the feed and not with it.

        A loop is part of a cycle. If the garbage collector finds a DataLoader's iterator within one, it takes the
        queues first, and the workers hear of no end: whatever line runs then waits 5 seconds for each (torch 2.13).
        """
        if self._held is not None:
            self._held.detach()
        self.iterator = iterator
        self._held = None if iterator is None else weakref.finalize(self, id, iterator)
        if self._held is not None:
            self._held.atexit = False

    def _batch(self, item: Any) -> Batch:
        batch = as_batch(item, f"batch {self.index} of epoch {self.epoch}")
        return batch if self._fit is None else self._fit(batch)

    def back(self) -> None:
        """Take back the last batch: its step did not happen, and this run or a resumed one goes on with it."""
        self.index -= 1
        self._again = True

    def next_epoch(self) -> None:
        """Go on to the first batch of the next epoch."""
        self.epoch, self.index = self.epoch + 1, 0
        self.close()

    def close(self) -> None:
        """Let the iterator go; a prefetching one ends its thread."""
        close = getattr(self.iterator, "close", None)
        if close is not None:
            close()
        self._hold(None)
        self._began, self._again, self._anew = None, False, False
        self._own = self._own_now = self._inner = None

    def check_savable(self) -> None:
        """Raise a StateError where the data keeps random state that cannot be saved."""
        if why := unsavable(self.data):
            raise StateError(why)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, index of the next batch, and generator states: where the epoch began, and those of the data now."""
        if self._facts is None:
            self._facts = facts(self._moving.first)
        waits = self._last if self._again else None
        before = self._last if self._last is not None and not self._again and self.index else None
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "index": self.index,
            "generators": self._began,
            "about": self._facts,
            "sum": checksum(before.tensors) if before is not None else self._sum if self.iterator is None else None,
        }
        if self._stateful:
            state["inner"] = copy.deepcopy(self.data.state_dict() if self._inner is None else self._inner)
            if waits is not None:
                state["again"] = {"inputs": [*waits.map(lambda x: x.detach().clone()).inputs], "spec": waits.spec}
        now = self._own_now if self._own_now is not None else self._own_states()
        state["own"] = {"began": self._own, "now": now}
        if self._anew or (self._opened and self.iterator is None):
            state["anew"] = True
        return state

    def _own_states(self) -> dict[str, Any]:
        """Where the data's own generators are, and what else it keeps and has moved."""
        return {**generator_states_of(self.data), **self._moving.states()}

    def _put_back(self, states: Mapping[str, Any]) -> None:
        put_back(self.data, states)
        self._moving.put_back(states)

    def _open(self) -> Iterator[Any]:
        if self._stateful:
            return self._go_on()
        if self._own is not None:  # in the middle of an epoch, here or in the run that was saved
            self._put_back(self._own)
        elif self._own_now is not None:
            self._put_back(self._own_now)
        self._own, now, self._own_now = self._own or self._own_states(), self._own_now, None
        iterator = self._open_globally()
        if now is not None and self.index and not hasattr(self.data, "iterate"):  # a thread would be anywhere
            self._put_back(now)
        return iterator

    def _open_globally(self) -> Iterator[Any]:
        if self._began is None:
            self._began = generator_states()
            return self._begin(self.index)
        if self.index == 0:  # nothing has been drawn since: an order may be drawn with the first batch only
            set_generator_states(self._began)
            return self._begin(0)
        with generators_kept():  # as they were where the run was stopped
            set_generator_states(self._began)
            return self._begin(self.index)

    def _go_on(self) -> Iterator[Any]:
        """Stateful data from where it was; in the middle of an epoch all generators are as they were there.

        On its way back it may begin its epoch again, and so draw what it drew there: an order that it does not save.
        """
        self._began = self._began or generator_states()
        inner, now, self._inner, self._own_now = self._inner, self._own_now, None, None
        with generators_kept() if self.index else nullcontext():
            self._set_epoch()
            self._put_back((self._own if self.index else now) or now or {})
            self._own = self._own or self._own_states()
            if inner is None:
                return self._checked(self.data, self.index)
            if self.index:
                set_generator_states(self._began)
            before = fingerprints(self.data)
            self.data.load_state_dict(copy.deepcopy(inner))
            iterator = iter(self.data)
            if self.index:  # what it drew anew is where it is to be, or ahead where it looks ahead
                after = {} if isinstance(self.data, DataLoader) else fingerprints(self.data)
                left = {path for path in after if after[path] != before.get(path)}
                self._put_back({path: state for path, state in (now or {}).items() if path not in left})
            return iterator

    def _set_epoch(self) -> None:
        batches = getattr(self.data, "batch_sampler", None)
        owners = [getattr(self.data, part, None) for part in ("sampler", "dataset")]
        seen: list[Any] = []
        for owner in (self.data, batches, getattr(batches, "sampler", None), *owners):
            set_epoch: Callable[[int], Any] | None = getattr(owner, "set_epoch", None)
            if set_epoch is not None and not any(owner is one for one in seen):
                seen.append(owner)
                set_epoch(self.epoch)

    def _begin(self, start: int) -> Iterator[Any]:
        data, epoch = self.data, self.epoch
        again, self._opened = self._opened, True
        if hasattr(data, "iterate"):
            seen = self._sum is not None
            return self._checked(data.iterate(epoch, start - seen), int(seen))
        if not isinstance(data, Iterable):
            made = data(epoch)
            if not isinstance(made, Iterable):
                raise DataError(f"the data of epoch {epoch} is a {type(made).__name__}: return a list of batches")
            iterator = iter(made)
        elif isinstance(data, Iterator):
            if again or (self._anew and hasattr(data, "reset")):
                self._anew = True
                _reset(data)
            iterator = data
        else:
            self._set_epoch()
            iterator = iter(data)
        return self._checked(iterator, start)

    def _checked(self, batches: Iterable[Any], start: int) -> Iterator[Any]:
        """Pass over batches; the last of them must be the one that the run had before it was saved."""
        iterator, passed, last = iter(batches), 0, None
        for last in itertools.islice(iterator, start):  # noqa: B007 - the last one is looked at
            passed += 1
        if passed < start and hasattr(self.data, "iterate"):  # its epoch is over before the batch that it left off at
            warnings.warn(said_to_differ([f"epoch {self.epoch} has no batch {self.index - 1}"]), stacklevel=6)
        elif passed < start:
            raise DataError(
                f"the run stopped at batch {start} of epoch {self.epoch}, and now the data has only {passed}"
            )
        elif self._sum is not None and start and checksum(self._batch(last).tensors) != self._sum:
            what = [f"batch {self.index - 1} of epoch {self.epoch} is not the one that was trained on"]
            warnings.warn(said_to_differ(what), stacklevel=6)
        self._sum = None
        return iterator


def _reset(data: Any) -> None:
    reset = getattr(data, "reset", None)
    if reset is None:
        raise DataError(
            f"a {type(data).__name__} is one epoch and is used up: pass a list, a function of the epoch that returns "
            "an iterable, or an object with `reset()`"
        )
    reset()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; from pinned memory the copy does not wait."""
    return batch.map(lambda x: x.to(device, non_blocking=True))
