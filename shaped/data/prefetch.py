"""Batches fetched, and moved to the device, while the step before them runs."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from shaped.arguments import checked, whole
from shaped.data.feed import Batch, Feed, to_device
from shaped.drawing import check_device

_END = object()


class prefetch:
    """The same data, with up to `depth` batches fetched ahead by a thread and moved to `device`.

    Order and number of batches stay as they are; an error in the data is raised where its batch would have come. The
    thread draws from the global generators ahead of the steps: data that draws from them while a loss does too should
    have a generator of its own, as `Batches` has.

    Args:
        data: As a loop takes it: an iterable of batches, a function of the epoch, ...
        device: Where the batches are to be. On CUDA they are copied through pinned memory.
        depth: Batches that wait at most; each takes its memory on the device.

    Raises:
        ValueError: `depth` is below 1, or tensors cannot be made on `device`.
    """

    @checked
    def __init__(self, data: Any, device: torch.device | str = "cpu", depth: int = 2) -> None:
        whole("depth", depth, 1)
        check_device(device)
        self.data, self.device, self.depth = data, torch.device(device), depth
        self._used = False

    def __len__(self) -> int:
        return len(self.data)

    @checked
    def iterate(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from the `start`-th on; the first is fetched here, in turn with other draws."""
        feed = Feed(self.data, {"epoch": epoch, "index": start, "generators": None}, used=self._used)
        self._used = True
        return self._ahead(feed, feed.next())

    def _ahead(self, feed: Feed, first: Batch | None) -> Iterator[Batch]:
        if first is None:
            return
        ready: queue.Queue[Any] = queue.Queue(self.depth)
        stop = threading.Event()
        thread = threading.Thread(target=self._fetch, args=(feed, ready, stop), name="shaped-prefetch", daemon=True)
        thread.start()
        try:
            yield self._placed(first)
            while (item := ready.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            # It may be waiting for room, or be the one that collects this generator.
            while thread.is_alive() and thread is not threading.current_thread():
                _drain(ready)
                thread.join(0.01)

    def _placed(self, batch: Batch) -> Batch:
        if self.device.type == "cuda":
            batch = batch.map(lambda x: x.pin_memory() if x.device.type == "cpu" else x)
        return to_device(batch, self.device)

    def _fetch(self, feed: Feed, ready: "queue.Queue[Any]", stop: threading.Event) -> None:
        try:
            while not stop.is_set() and (batch := feed.next()) is not None:
                ready.put(self._placed(batch))
            ready.put(_END)
        except BaseException as error:
            ready.put(error)
        finally:
            feed.close()


def _drain(ready: "queue.Queue[Any]") -> None:
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return
