"""Sequences of eras for curriculum learning: which stretches of time a model is shown, and in which order.

An era is a group of rows that belong to one time (a week of a market); eras have an order, rows within one have none. A
sequence is a few eras in a row. Three strategies:

    consecutive     one after another from the first era on, each as long as can be
    random          each of a length drawn from 1..max_length, and a start drawn among those where it fits
    curriculum      as random, from sequences of one era in the first epoch to any length in the last: the longest that
                    may be drawn in epoch e of n is 1 + round((max_length - 1)*e/(n - 1))

All that is drawn is a function of seed and epoch.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from shaped.arguments import checked, whole
from shaped.data import DataError
from shaped.data.batches import mixed

STRATEGIES = ("consecutive", "random", "curriculum")


class SequenceProvider:
    """Sequences of eras, and the batches of rows that they are.

    Args:
        eras: The era of each row: whole numbers, or texts that sort as time does.
        strategy: "consecutive", "random" or "curriculum".
        max_length: Eras in a sequence at most.
        count: Sequences in an epoch, for "random" and "curriculum"; by default as many as "consecutive" has.
        epochs: Of the curriculum: in the last of them sequences have any length.
        seed: Of all that is drawn.

    Raises:
        DataError: There are no eras. ValueError: An argument is out of range.
    """

    @checked
    def __init__(
        self,
        eras: Any,
        *,
        strategy: Literal["consecutive", "random", "curriculum"] = "consecutive",
        max_length: int = 4,
        count: int | None = None,
        epochs: int = 10,
        seed: int = 0,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}; it is 'consecutive', 'random' or 'curriculum'")
        whole("max_length", max_length, 1)
        whole("epochs", epochs, 1)
        if count is not None:
            whole("count", count, 1)
        whole("seed", seed)
        if isinstance(eras, str) or not isinstance(eras, Iterable):
            raise DataError(f"eras is a {type(eras).__name__}; it has the era of each row")
        values = eras.tolist() if hasattr(eras, "tolist") else list(eras)
        if not values:
            raise DataError("there are no eras")
        # NaN and NaT are not themselves, save the NaT of numpy's nanoseconds, which is the least number
        missing = [i for i, value in enumerate(values) if value is None or value != value or value == -(2**63)]
        if missing:
            raise DataError(f"rows without an era: {len(missing)}, row {missing[0]} among them")
        try:
            self.names = tuple(sorted(set(values)))  # in order of time
        except TypeError as error:
            raise DataError(f"the eras have no order: {error}; pass one value of one kind for each row") from None
        number = {name: i for i, name in enumerate(self.names)}
        self._era = torch.tensor([number[value] for value in values])
        self._count = count
        self.strategy, self.max_length, self.epochs, self.seed = strategy, max_length, epochs, seed

    def __len__(self) -> int:
        """Sequences in an epoch."""
        return self._count or -(-len(self.names) // self.max_length)

    @checked
    def sequences(self, epoch: int = 0) -> list[tuple[Any, ...]]:
        """The sequences of an epoch, each as the names of its eras in order of time."""
        return [self.names[start : start + length] for start, length in self._spans(epoch)]

    @checked
    def rows(self, epoch: int = 0) -> list[Tensor]:
        """The rows of each sequence, in order of era and then as they stand in the table."""
        order = torch.argsort(self._era, stable=True)
        counts = torch.bincount(self._era, minlength=len(self.names))
        ends = [0, *torch.cumsum(counts, 0).tolist()]
        return [order[ends[start] : ends[start + length]] for start, length in self._spans(epoch)]

    def _spans(self, epoch: int) -> list[tuple[int, int]]:
        """First era and number of eras of each sequence."""
        total = len(self.names)
        if self.strategy == "consecutive":
            starts = range(0, total, self.max_length)
            spans = [(start, min(self.max_length, total - start)) for start in starts]
            return [spans[i % len(spans)] for i in range(len(self))]
        longest = min(self.max_length, total)
        if self.strategy == "curriculum":
            done = min(epoch / (self.epochs - 1), 1.0) if self.epochs > 1 else 1.0
            longest = min(1 + round((self.max_length - 1) * done), total)
        generator = Generator().manual_seed(mixed(self.seed, epoch))
        spans = []
        for _ in range(len(self)):
            length = int(torch.randint(1, longest + 1, (), generator=generator))
            spans.append((int(torch.randint(0, total - length + 1, (), generator=generator)), length))
        return spans

    @checked
    def split(self, last: int, *, gap: int = 0) -> tuple["SequenceProvider", "SequenceProvider"]:
        """Training and validation: the last eras are held out, and `gap` eras before them are used for neither.

        Each of the two speaks of the rows of the whole table, and the second is consecutive.

        Raises:
            ValueError: `last` is below 1, or no era is left to train on.
        """
        whole("last", last, 1)
        whole("gap", gap, 0)
        kept = len(self.names) - last - gap
        if kept < 1:
            raise ValueError(f"of {len(self.names)} eras, {last} to validate and a gap of {gap} leave {max(kept, 0)}")
        return self._of(0, kept, self.strategy), self._of(kept + gap, len(self.names), "consecutive")

    def _of(self, first: int, end: int, strategy: Any) -> "SequenceProvider":
        """The same over some eras; rows of the others are in none."""
        part = copy.copy(self)
        part.strategy, part._count = strategy, self._count if strategy == self.strategy else None
        inside = (self._era >= first) & (self._era < end)
        part._era = torch.where(inside, self._era - first, end - first)  # the others come after the last era
        part.names = self.names[first:end]
        return part

    @checked
    def batches(self, *tensors: Tensor) -> "SequenceBatches":
        """Data for a loop: a batch for each sequence, of the rows of these tensors.

        Raises:
            DataError: A tensor has another number of rows than there are eras.
        """
        for tensor in tensors:
            if tensor.dim() == 0 or len(tensor) != len(self._era):
                raise DataError(f"a tensor is {list(tensor.shape)}, and {len(self._era)} rows have an era")
        return SequenceBatches(self, tensors)


class SequenceBatches:
    """The batches of a SequenceProvider over some tensors; an epoch begins at any of them."""

    def __init__(self, provider: SequenceProvider, tensors: tuple[Tensor, ...]) -> None:
        self.provider, self.tensors = provider, tensors

    def __len__(self) -> int:
        return len(self.provider)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.iterate(0)

    @checked
    def iterate(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of an epoch from the `start`-th on."""
        for rows in self.provider.rows(epoch)[start:]:
            yield tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)
