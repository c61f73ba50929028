"""Where a workflow's batches come from: providers of training and validation data, and data read chunk by chunk.

A provider is anything with `training_data`, `validation_data`, `metadata` and `close`. What it gives is data as a loop
takes it, so lists of batches, DataLoaders and tables need no iterator of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from shaped.arguments import checked
from shaped.data import DataError
from shaped.workflow.config import BatchConfig


@runtime_checkable
class DataProvider(Protocol):
    """Training and validation data, what is known about them, and an end.

    `metadata["sizes"]` gives dimension names their sizes (`{"features": 30, "classes": 2}`); models are made with them.
    """

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    def training_data(self, batches: BatchConfig) -> Any: ...

    def validation_data(self, batches: BatchConfig) -> Any: ...

    def close(self) -> Any: ...


class GivenData:
    """A provider of data that is there already: lists of batches, DataLoaders, functions of the epoch.

    They bring their own batches, so `BatchConfig` says nothing to them.

    Args:
        training: As a loop takes it.
        validation: Likewise, or None.
        metadata: What a workflow may want to know.
        close: Called once, when the provider is closed.
    """

    @checked
    def __init__(
        self,
        training: Any,
        validation: Any = None,
        metadata: Mapping[str, Any] | None = None,
        close: Callable[[], Any] | None = None,
    ) -> None:
        self._training, self._validation, self._close = training, validation, close
        self._metadata = dict(metadata or {})
        self.closed = False

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given."""
        return self._metadata

    def training_data(self, batches: BatchConfig) -> Any:
        """The training data. Raises DataError where the provider is closed."""
        return self._open(self._training)

    def validation_data(self, batches: BatchConfig) -> Any:
        """The validation data, or None. Raises as `training_data`."""
        return self._open(self._validation)

    def _open(self, data: Any) -> Any:
        if self.closed:
            raise DataError("the provider is closed")
        return data

    def close(self) -> None:
        """Let go of the data; a second call does nothing."""
        if not self.closed:
            self.closed, self._training, self._validation = True, None, None
            if self._close is not None:
                self._close()


class ChunkedData:
    """Data that is too large for memory, one chunk at a time: `load(0)`, `load(1)`, ... until `load` returns None.

    The chunk before is let go before the next is loaded. A chunk is anything that a loop takes (a list of batches,
    `Batches(...)`); an empty one is passed over. An error of `load` is raised where its batch would have come, with a
    note that names the chunk, and stays in `error`; the next pass over the data begins at chunk 0 again.

    It is an iterator too: `next(data)`, and `reset()` for another pass.

    Args:
        load: From the chunk's number, from 0, to the chunk; None ends the epoch.
        close: Called once by `close`, after which nothing is loaded any more.

    Raises:
        ValueError: `load` is no function.
    """

    @checked
    def __init__(self, load: Callable[[int], Any], close: Callable[[], Any] | None = None) -> None:
        self._load, self._close, self._closed = load, close, False
        self._passes, self._running = 0, self.iterate(0)
        self.error: Exception | None = None

    @checked
    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from the `start`-th on; the chunks before it are loaded to count theirs."""
        number = 0
        while True:
            chunk = self._fetch(number)
            if chunk is None:
                return
            for batch in _batches(chunk, epoch):
                if start:
                    start -= 1
                else:
                    yield batch
                del batch
            del chunk  # before the next is loaded
            number += 1

    def _fetch(self, number: int) -> Any:
        if self._closed:
            raise DataError("the data is closed")
        try:
            return self._load(number)
        except Exception as error:
            error.add_note(f"in chunk {number}")
            self.error = error
            raise

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._running)

    def reset(self) -> None:
        """Begin another pass, the next epoch; forgets the error."""
        self._running.close()  # type: ignore[attr-defined]
        self._passes += 1
        self._running, self.error = self.iterate(self._passes), None

    def close(self) -> None:
        """Load nothing more and let the chunk go; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._running.close()  # type: ignore[attr-defined]
            if self._close is not None:
                self._close()


def _batches(chunk: Any, epoch: int) -> Iterable[Any]:
    if hasattr(chunk, "iterate"):
        batches: Iterable[Any] = chunk.iterate(epoch)
        return batches
    if not isinstance(chunk, Iterable):
        raise DataError(f"a chunk is a {type(chunk).__name__}: return a list of batches, or None at the end")
    return chunk
