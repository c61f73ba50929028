"""The digits: a disjoint, complete split, in an order that is a function of seed, epoch and place."""

import builtins
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shaped import ShapedError
from shaped.data import digits
from shaped.data.digits import _load


def everything(**options: Any) -> tuple[Tensor, Tensor]:
    images, classes = zip(*digits(**options), strict=True)
    return torch.cat(images), torch.cat(classes)


def rows(images: Tensor) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in images)


def test_an_image_has_64_pixels_from_0_to_1_and_a_class_from_0_to_9() -> None:
    images, classes = everything(split="all")

    assert (images.shape, images.dtype) == ((1797, 64), torch.float32)
    assert (images.min().item(), images.max().item()) == (0, 1)
    assert (classes.shape, classes.dtype) == ((1797,), torch.int64)
    assert classes.unique().tolist() == list(range(10))


@given(seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**6))
@settings(max_examples=10)
def test_the_split_is_disjoint_and_complete(seed: int, epoch: int) -> None:
    train, test = (everything(seed=seed, epoch=epoch, split=split)[0] for split in ("train", "test"))

    assert (len(train), len(test)) == (1437, 360)
    assert sorted(rows(train) + rows(test)) == rows(everything(split="all")[0])


def test_the_order_is_a_function_of_the_seed_and_the_epoch() -> None:
    first, again = everything(seed=3, epoch=5), everything(seed=3, epoch=5)
    other_epoch, other_seed = everything(seed=3, epoch=6), everything(seed=4, epoch=5)

    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other_epoch[0])
    assert rows(first[0]) == rows(other_epoch[0]), "another epoch is another order of the same images"
    assert rows(first[0]) != rows(other_seed[0]), "another seed holds out other images"


def test_the_held_out_images_come_in_one_order() -> None:
    assert torch.equal(everything(split="test", epoch=0)[0], everything(split="test", epoch=9)[0])


@given(st.integers(1, 2000), st.booleans())
@settings(max_examples=15)
def test_batches_cut_one_order_and_only_the_last_is_smaller(batch_size: int, drop_last: bool) -> None:
    batches = [len(classes) for _, classes in digits(batch_size, drop_last=drop_last)]
    whole, rest = divmod(1437, batch_size)

    assert batches == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)


def test_batches_are_copies() -> None:
    next(digits())[0].fill_(7)

    assert everything(split="all")[0].max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it is a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it is a whole number"),
        ({"batch_size": True}, "batch_size is True; it is a whole number"),
        ({"epoch": -1}, "epoch is -1; it is a whole number of at least 0"),
        ({"seed": None}, "seed is None; it is a whole number"),
        ({"split": "validation"}, "split is 'validation'; it is 'train', 'test' or 'all'"),
    ],
)
def test_a_wrong_argument_is_refused_at_the_call(options: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        digits(**options)

    assert str(caught.value) == message


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    _load.cache_clear()
    with pytest.raises(ShapedError) as caught:
        digits()

    assert str(caught.value) == 'the digits come with scikit-learn: pip install "shaped-trainer[recipes]"'
