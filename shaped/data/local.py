"""A mark for data of which each rank of a run has rows of its own."""

from collections.abc import Iterator
from typing import Any

from shaped.arguments import checked


class Local:
    """Data of which each rank gives rows of its own, as an IterableDataset that is split by rank does.

        loop.run_epochs(Local(loader), 3)

    Each rank must give as many batches as the others. Without it a batch is that of all ranks.

    Args:
        data: As a loop takes it.
    """

    @checked
    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)
