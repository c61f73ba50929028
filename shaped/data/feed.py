"""Going over data epoch by epoch, from any batch of any epoch.

Data is one of

    a list, a DataLoader, any iterable      gone over anew in each epoch; its `set_epoch(epoch)`, or its sampler's, is
                                            called first
    a function of the epoch                 `lambda epoch: digits(seed=0, epoch=epoch)`
    an object with iterate(epoch, start)    starts at any batch, passing over none (`Batches`, `prefetch`)
    a generator                             one epoch; more if it has `reset()`

and a batch is a tensor, a tuple or list of tensors, or a `Batch` with a spec. To resume in the middle of an epoch, the
epoch is begun with the generator states it was begun with, and its first batches are passed over.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shaped.checkpoint.generators import generator_states, generators_kept, set_generator_states
from shaped.errors import ShapedError


class DataError(ShapedError):
    """The data ended early, gave no batch, or gave something that is no batch."""


@dataclass(frozen=True)
class Batch:
    """The inputs of a step, and the spec that they are for: which loss of the loop takes them."""

    inputs: tuple[Tensor, ...]
    spec: Hashable = None


def as_batch(item: Any, where: str = "a batch") -> Batch:
    """A tensor, or a tuple or list of tensors, as a Batch.

    Raises:
        DataError: It is none of these; `where` says which batch.
    """
    if isinstance(item, Batch):
        return item
    inputs = (item,) if isinstance(item, Tensor) else item
    if not isinstance(inputs, tuple | list) or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs) if isinstance(inputs, tuple | list) else ""
        given = f"a {type(item).__name__}{f' of {kinds}' if kinds else ''}"
        raise DataError(
            f"{where} is {given}; a batch is a tensor, a tuple of tensors, or shaped.data.Batch(inputs, spec)"
        )
    return Batch(tuple(inputs))


def batch_size(batch: Batch) -> int:
    """The size of the first axis of the first input that has one; 1 where none has."""
    return next((x.shape[0] for x in batch.inputs if x.dim()), 1)


class Feed:
    """An iterator over data that knows its epoch and the index of its next batch.

    Args:
        data: See the module.
        state: Where to start: what `state_dict()` returned, perhaps in another process.
        used: A generator that has been gone over already, and must be reset first.

    Raises:
        DataError: `data` is no iterable and no function.
    """

    def __init__(self, data: Any, state: Mapping[str, Any] | None = None, *, used: bool = False) -> None:
        if not (isinstance(data, Iterable) or callable(data) or hasattr(data, "iterate")):
            raise DataError(f"data is a {type(data).__name__}: pass an iterable of batches, or a function of the epoch")
        self.data = data
        self.epoch = int(state["epoch"]) if state else 0
        self.index = int(state["index"]) if state else 0
        self._began: Any = state["generators"] if state else None  # generator states where the epoch began
        self._iterator: Iterator[Any] | None = None
        self._last: Batch | None = None
        self._again = False  # the last batch is to come once more
        self._opened = used

    @property
    def length(self) -> int | None:
        """Batches in an epoch, where the data says."""
        try:
            return len(self.data)
        except (TypeError, AttributeError):
            return None

    def next(self) -> Batch | None:
        """The next batch, or None where the epoch ends."""
        if not self._again:
            self._last = self._fetch()
        self._again = False
        if self._last is not None:
            self.index += 1
        elif self.index == 0:
            raise DataError(f"the data gave no batch in epoch {self.epoch}")
        return self._last

    def _fetch(self) -> Batch | None:
        if self._iterator is None:
            self._iterator = self._open()
        try:
            item = next(self._iterator, self)
        except Exception:
            self._iterator = None  # it is not to be trusted any more: the next call opens the data at this batch
            raise
        return None if item is self else as_batch(item, f"batch {self.index} of epoch {self.epoch}")

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
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator, self._began, self._again = None, None, False

    def state_dict(self) -> dict[str, Any]:
        """Epoch, index of the next batch, and the generator states with which the epoch began."""
        return {"epoch": self.epoch, "index": self.index, "generators": self._began}

    def _open(self) -> Iterator[Any]:
        if self._began is None:
            self._began = generator_states()
            return self._begin(self.index)
        if self.index == 0:  # nothing has been drawn since: an order may be drawn with the first batch only
            set_generator_states(self._began)
            return self._begin(0)
        with generators_kept():  # as they were where the run was stopped
            set_generator_states(self._began)
            return self._begin(self.index)

    def _begin(self, start: int) -> Iterator[Any]:
        data, epoch = self.data, self.epoch
        again, self._opened = self._opened, True
        if hasattr(data, "iterate"):
            return iter(data.iterate(epoch, start))
        if not isinstance(data, Iterable):
            iterator = iter(data(epoch))
        elif isinstance(data, Iterator):
            if again:
                _reset(data)
            iterator = data
        else:
            for owner in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
                set_epoch: Callable[[int], Any] | None = getattr(owner, "set_epoch", None)
                if set_epoch is not None:
                    set_epoch(epoch)
            iterator = iter(data)
        passed = sum(1 for _ in itertools.islice(iterator, start))
        if passed < start:
            raise DataError(f"the run stopped at batch {start} of epoch {epoch}, and now the data has only {passed}")
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
    return Batch(tuple(x.to(device, non_blocking=True) for x in batch.inputs), batch.spec)
