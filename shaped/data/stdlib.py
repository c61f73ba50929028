"""Text that is on every machine: the sources of Python's own standard library, about 11 to 14 MB."""

import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Generator, Tensor

from shaped.arguments import checked
from shaped.data.batches import mixed
from shaped.errors import ShapedError

Pair = tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
_HELD_OUT = 20  # one file in so many is for validation


@checked
def stdlib_text(split: Literal["train", "validation"] = "train") -> UInt8[Tensor, " bytes"]:
    """The bytes of the standard library's Python files, one after the other.

    Which files are held out depends on their names alone: about one in 20. Another version of Python has other text.

    Raises:
        ValueError: `split` is unknown.
        ShapedError: There are no sources here (a stripped installation).
    """
    return _load(split == "validation")


@cache
def _load(held_out: bool) -> Tensor:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not _LEFT_OUT & set(p.relative_to(root).parts))
    parts = [
        path.read_bytes()
        for path in files
        if (zlib.crc32(path.relative_to(root).as_posix().encode()) % _HELD_OUT == 0) == held_out
    ]
    if sum(map(len, parts)) < 100_000:
        raise ShapedError(f"the standard library at {root} has no sources to read")
    return torch.frombuffer(bytearray(b"\n".join(parts)), dtype=torch.uint8)


class Windows:
    """Batches of windows into a text: tokens, and the same shifted by one. An epoch is a number of batches.

    Where a window lies is a function of (seed, epoch, index), drawn with replacement.

    Args:
        text: Token numbers.
        batch_size: Windows in a batch.
        length: Tokens in a window.
        batches: In an epoch.
        seed: Of the places.
        device: Where the batches are to be.

    Raises:
        ValueError: The text is not longer than a window, or a number is below 1.
    """

    @checked
    def __init__(
        self,
        text: UInt8[Tensor, " bytes"],
        *,
        batch_size: int,
        length: int,
        batches: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if min(batch_size, length, batches) < 1 or len(text) <= length:
            raise ValueError(
                f"no {batches} batches of {batch_size} windows of {length} in a text of {len(text)} tokens"
            )
        self._text, self._size, self._length, self._batches = text, batch_size, length, batches
        self._seed, self._device = seed, device

    def __len__(self) -> int:
        return self._batches

    @checked
    def iterate(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """The batches of an epoch from the `start`-th on."""
        within = torch.arange(self._length + 1)
        for index in range(start, self._batches):
            generator = Generator().manual_seed(mixed(self._seed, epoch, index))
            places = torch.randint(0, len(self._text) - self._length, (self._size, 1), generator=generator)
            tokens = self._text[places + within].long().to(self._device)
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
