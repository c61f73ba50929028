"""The handwritten digits that scikit-learn ships: 1,797 real 8x8 images of ten classes."""

from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from shaped.arguments import checked, whole
from shaped.errors import ShapedError

Batch = tuple[Float[Tensor, "batch 64"], Int[Tensor, " batch"]]
_TEST = 360  # one image in five is held out


@checked
def digits(
    batch_size: int = 64,
    *,
    seed: int = 0,
    split: Literal["train", "test", "all"] = "train",
    epoch: int = 0,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Iterate once over the digits, in batches.

    Args:
        batch_size: Images in a batch; the last one is smaller unless `drop_last`.
        seed: Fixes which images are held out for "test", and with `epoch` the order of the others.
        split: "train" (1,437 images, shuffled), "test" (360, in order) or "all".
        epoch: Another epoch is another order.
        drop_last: Leave out a smaller last batch.

    Yields:
        Images as float32 [batch, 64], from 0 to 1, and classes as int64 [batch], from 0 to 9.

    Raises:
        ValueError: `batch_size` is below 1, `epoch` below 0, one of them or `seed` no whole number, or `split` unknown.
        ShapedError: scikit-learn is not installed.

    Source: the UCI test set of optical recognition of handwritten digits (Alpaydin & Kaynak 1998), as shipped in
    sklearn.datasets.load_digits.
    """
    whole("batch_size", batch_size, 1)
    whole("epoch", epoch, 0)
    return _batches(*_load(), batch_size, seed, split, epoch, drop_last)


def _batches(
    images: Tensor, classes: Tensor, batch_size: int, seed: int, split: str, epoch: int, drop_last: bool
) -> Iterator[Batch]:
    order = _permutation(len(images), seed)
    chosen = {"train": order[_TEST:], "test": order[:_TEST], "all": order}[split]
    if split != "test":
        chosen = chosen[_permutation(len(chosen), (seed + 1) * 1_000_003 + epoch)]
    for part in torch.split(chosen, batch_size):
        if len(part) == batch_size or not drop_last:
            yield images[part], classes[part]


def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=Generator().manual_seed(seed % 2**63))


@cache
def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ShapedError('the digits come with scikit-learn: pip install "shaped-trainer[recipes]"') from None
    images, classes = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(classes).long()
