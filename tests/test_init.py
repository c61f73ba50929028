"""Initialisers: what is drawn obeys its name, and a number out of range is refused where it is written."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from shaped import init

shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


def drawn(initializer: Any, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    result: Tensor = initializer.draw(shape, Generator().manual_seed(seed), dtype)
    return result


EVERY = [init.zeros(), init.ones(), init.constant(3.5), init.normal(0.5, 1.0), init.uniform(0.5), init.fan_in()]


@pytest.mark.parametrize("initializer", EVERY, ids=repr)
@given(shape=shapes, seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_draw_has_the_shape_and_dtype_and_is_a_function_of_the_generator(
    initializer: Any, shape: tuple[int, ...], seed: int, dtype: torch.dtype
) -> None:
    first, second = drawn(initializer, shape, seed, dtype), drawn(initializer, shape, seed, dtype)

    assert (first.shape, first.dtype) == (shape, dtype)
    assert torch.equal(first, second)


def test_constants_are_constant() -> None:
    assert drawn(init.zeros(), (2, 3)).unique().tolist() == [0.0]
    assert drawn(init.ones(), (2, 3)).unique().tolist() == [1.0]
    assert drawn(init.constant(-2.5), (2, 3)).unique().tolist() == [-2.5]


@given(shapes, st.floats(0, 100))
def test_uniform_values_lie_within_the_bound(shape: tuple[int, ...], bound: float) -> None:
    assert drawn(init.uniform(bound), shape, dtype=torch.float64).abs().max() <= bound


def test_normal_values_have_the_mean_and_the_deviation() -> None:
    values = drawn(init.normal(std=0.5, mean=2.0), (100_000,))

    # Standard errors are 0.5/sqrt(1e5) = 0.0016 and 0.0011; six of them.
    assert abs(values.mean().item() - 2.0) < 0.01
    assert abs(values.std().item() - 0.5) < 0.007


@pytest.mark.parametrize(("shape", "inputs"), [((), 1), ((7,), 7), ((100, 30), 100), ((30, 4, 5, 5), 100)])
def test_fan_in_is_bounded_by_the_root_of_the_inputs(shape: tuple[int, ...], inputs: int) -> None:
    values = drawn(init.fan_in(gain=2.0), shape)
    bound = 2.0 / math.sqrt(inputs)

    assert values.abs().max() <= bound
    assert values.numel() < 1000 or values.abs().max() > 0.98 * bound


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (4, 2, 3)])
def test_orthogonal_rows_or_columns_are_orthonormal_up_to_the_gain(shape: tuple[int, ...]) -> None:
    q = drawn(init.orthogonal(2.0), shape, dtype=torch.float64).flatten(1) / 2.0
    gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q

    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: init.constant(math.nan), "value is nan; it is a finite number"),
        (lambda: init.constant("1"), "value is '1'; it is a number"),  # type: ignore[arg-type]
        (lambda: init.normal(-0.1), "std is -0.1; it is a finite number of at least 0"),
        (lambda: init.normal(mean=math.inf), "mean is inf; it is a finite number"),
        (lambda: init.uniform(-1), "bound is -1; it is a finite number of at least 0"),
        (lambda: init.fan_in(True), "gain is True; it is a number"),
        (lambda: init.orthogonal(None), "gain is None; it is a number"),  # type: ignore[arg-type]
    ],
)
def test_a_number_out_of_range_is_refused_where_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()

    assert str(caught.value) == message


def test_an_initialiser_prints_as_it_is_written() -> None:
    assert [repr(i) for i in (init.zeros(), init.constant(2.0), init.orthogonal())] == [
        "init.zeros()",
        "init.constant(2.0)",
        "init.orthogonal(1.0)",
    ]
